"""Checking a store against its checksums, and taking out what is damaged."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.clip_features import Features
from features.format.shard import Shard
from features.format.shard_name import ShardName
from features.recipe import FeatureError, Recipe, VersionError, WriteError
from features.store import Store
from features.store_files import open_regular, size_of
from features.writer import Writer, pack

ASIDE = ".damaged"  # appended to the name of a damaged shard that was taken out
# HDF5 refuses a file that is shorter than stated; the bytes of a shard that state its length
STATED_SIZE = slice(28, 36)
TRIAL = np.arange(8, dtype=np.float16).reshape(4, 2)  # the rows of a store to try a folder with
MOST_LOST = 16  # a file this many times shorter than stated has nothing to salvage


class Damage(NamedTuple):
    """A shard that is not as it was sealed."""

    shard: Path
    reason: str
    clips: list[str]  # the damaged clips; empty if only the file's own bookkeeping is damaged
    readable: bool  # False if not even its table can be read: its clips are then unknown
    other_version: bool = False  # of the format: then it may be intact


class Verification(NamedTuple):
    """What reading every byte of a store found."""

    intact: int  # clips
    damages: list[Damage]


def verify(
    path: str | Path, progress: Callable[[int, int], None] = lambda *_: None
) -> Verification:
    """Read every byte of a store; return the number of intact clips and the damaged shards.

    Args:
        path: the store's folder.
        progress: called with (bytes read, bytes in all).
    """
    path = Path(path)
    store = Store(path)
    sound = {shard.path: shard for shard in store.shards}
    files = sorted([*sound, *store.unreadable])
    sizes = {file: file.lstat().st_size for file in files}
    total, done = sum(sizes.values()), 0
    damages = []
    progress(0, total)

    def check(file: Path) -> Damage | None:
        return _damage(file, sound.get(file), store.unreadable.get(file, ""))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for file, damage in zip(files, pool.map(check, files), strict=True):
            if damage:
                damages.append(damage)
            done += sizes[file]
            progress(done, total)
    damaged = {(damage.shard, clip_id) for damage in damages for clip_id in damage.clips}
    intact = {
        clip_id
        for shard in store.shards
        for clip_id in shard.ids
        if (shard.path, clip_id) not in damaged
    }
    return Verification(len(intact), damages)


def _damage(file: Path, shard: Shard | None, reason: str) -> Damage | None:
    if shard:
        if shard.intact():
            return None
        reason = f"{file}: its bytes are not those of its name: it was changed or renamed"
    try:
        with _salvage(file) as rest:
            return Damage(file, reason, rest.damaged_clips(), readable=True)
    except FeatureError as error:
        return Damage(file, reason, [], False, other_version=isinstance(error, VersionError))


def repair(path: str | Path, damages: list[Damage]) -> None:
    """Take damaged shards out of a store, keeping their clips that are intact.

    The intact clips are sealed in a new shard; the damaged file gets ``.damaged`` at the end of its
    name, so that no store reads it any more. The damaged clips are then missing: extract them
    again.

    Args:
        path: the store's folder.
        damages: what `verify` found.

    Raises:
        VersionError: a shard is of another version of the format.
        WriteError: the store cannot be written.
    """
    path = Path(path)
    recipe = Store(path).recipe
    repairable = []
    for damage in damages:
        try:
            with _salvage(damage.shard):
                repairable.append(damage)
        except VersionError:
            raise  # made by another version of avarnet: perhaps intact
        except FeatureError:
            if ShardName.parse(damage.shard.name):  # else a file that is no shard of ours
                repairable.append(damage)
    # rename all first: a new shard of intact clips may get the name of another damaged one
    aside = [damage.shard.rename(f"{damage.shard}{ASIDE}") for damage in repairable]
    for damage, file in zip(repairable, aside, strict=True):
        try:
            with _salvage(file) as shard:
                if shard.recipe.fingerprint == recipe.fingerprint:
                    lost = set(damage.clips)
                    rest = ((i, shard.read(n)) for n, i in enumerate(shard.ids) if i not in lost)
                    pack(path, rest, recipe)
        except WriteError:
            raise
        except FeatureError:
            continue  # none of its clips can be saved


@contextmanager
def _salvage(file: Path) -> Iterator[Shard]:
    """Open what is left of a damaged shard; one that was truncated is padded with zeros."""
    size = size_of(file)
    with os.fdopen(open_regular(file), "rb") as head:
        stated = int.from_bytes(head.read(STATED_SIZE.stop)[STATED_SIZE], "little")
    if not size < stated <= MOST_LOST * size:
        yield Shard(file, damaged=True)
        return
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".salvage-") as folder:
        copy = Path(folder) / file.name
        shutil.copyfile(file, copy)
        os.truncate(copy, stated)
        yield Shard(copy, damaged=True)


def try_folder(folder: str | Path) -> None:
    """Write a tiny store in a folder, seal it, read it back and delete it.

    This finds network file systems that refuse locks, renames or mapped memory.

    Raises:
        FeatureError: some part of this does not work in the folder.
        OSError: likewise.
    """
    folder = Path(folder)
    clip = Features({"trial": TRIAL}, {"trial": np.ones(len(TRIAL), bool)}, 1.0, float(len(TRIAL)))
    with tempfile.TemporaryDirectory(prefix=".avarnet-", dir=folder) as inside:
        store = Path(inside) / "store"
        recipe = Recipe(1.0, "fp32", {"trial": {"features": TRIAL.shape[1]}})
        with Writer(store, recipe) as writer:
            writer.add("clip", clip)
        _, damages = verify(store)
        # a copy: NFS cannot empty a folder of files that are mapped
        read = Store(store)["clip"].streams["trial"].copy()
    if damages or not np.array_equal(read, TRIAL):
        raise WriteError(f"{folder}: what was written there is not what is read")
