"""Checking a store against its checksums, and taking out what is damaged."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.clip_features import Features
from features.format.shard import Shard
from features.format.shard_name import ShardName
from features.format.shard_writer import write_error
from features.recipe import FeatureError, Recipe, VersionError, WriteError
from features.store import Store
from features.writer import Writer, pack

ASIDE = ".damaged"  # appended to the name of a damaged shard that was taken out
TRIAL = np.arange(8, dtype=np.float16).reshape(4, 2)  # the rows of a store to try a folder with


class Damage(NamedTuple):
    """A shard that is not as it was sealed."""

    shard: Path
    reason: str
    clips: list[str]  # the damaged clips; empty if only the file's own bookkeeping is damaged
    readable: bool  # False if not even its table can be read: its clips are then unknown
    other_version: bool = False  # of the format: then it may be intact
    closed: bool = False  # to this user: then, too


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

    Raises:
        FeatureError: the folder is not a store, or a shard was taken out of it meanwhile.
    """
    path = Path(path)
    store = Store(path)
    sound = {shard.path: shard for shard in store.shards}
    files = sorted([*sound, *store.unreadable])
    sizes = {file: shard.nbytes for file, shard in sound.items()}
    total, done = sum(sizes.values()), 0
    damages = []
    progress(0, total)

    def check(file: Path) -> Damage | None:
        return _damage(file, sound.get(file), store.unreadable.get(file, ""))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for file, damage in zip(files, pool.map(check, files), strict=True):
            if damage:
                damages.append(damage)
            done += sizes.get(file, 0)
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
    try:
        if shard:
            if shard.intact():
                return None
            reason = f"{file}: its bytes are not those of its name: it was changed or renamed"
        return Damage(file, reason, Shard(file, damaged=True).damaged_clips(), readable=True)
    except (FeatureError, OSError) as error:
        if not os.path.lexists(file):
            raise FeatureError(
                f"{file} is gone: was its store compacted, or rid of clips? Verify it again"
            ) from error
        if shard and isinstance(error, OSError):  # a disk that fails, say
            return Damage(file, f"{file}: cannot be read ({error.strerror})", shard.ids, True)
        closed = not os.access(file, os.R_OK)
        return Damage(file, reason, [], False, isinstance(error, VersionError), closed)


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
        FeatureError: a shard is closed to this user, and perhaps intact.
        WriteError: the store cannot be written.
    """
    path = Path(path)
    recipe = Store(path).recipe
    repairable = []
    for damage in damages:
        try:
            Shard(damage.shard, damaged=True)
            repairable.append(damage)
        except VersionError:
            raise  # made by another version of avarnet: perhaps intact
        except FeatureError:
            if damage.shard.is_file() and not os.access(damage.shard, os.R_OK):
                raise  # it says so
            if ShardName.parse(damage.shard.name):  # else a file that is no shard of ours
                repairable.append(damage)
    # rename all first: a new shard of intact clips may get the name of another damaged one
    try:
        aside = [damage.shard.rename(f"{damage.shard}{ASIDE}") for damage in repairable]
    except OSError as error:
        raise write_error(path, error) from error
    for damage, file in zip(repairable, aside, strict=True):
        try:
            shard = Shard(file, damaged=True)
            if shard.recipe.fingerprint == recipe.fingerprint:
                lost = set(damage.clips)
                rest = ((i, shard.read(n)) for n, i in enumerate(shard.ids) if i not in lost)
                pack(path, rest, recipe)
        except WriteError:
            raise
        except FeatureError:
            continue  # none of its clips can be saved


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
