"""Operations on whole stores: merge, compact, compare, drop clips.

A sealed shard is never changed: new shards are sealed before old ones are deleted, so a kill in
between costs space and never a clip.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from features.clip_features import Features
from features.format.shard import Shard
from features.format.shard_name import file_hash
from features.format.shard_writer import sync_folder, write_error
from features.pending_clips import Spool
from features.recipe import FeatureError
from features.several import several
from features.store import Store, create
from features.store_files import open_regular
from features.writer import SHARD_BYTES, pack, recover


def merge(sources: Collection[str | Path], target: str | Path) -> int:
    """Copy the shards of several stores into the store in the folder `target`.

    Args:
        sources: at least one folder of a store; all of one recipe.
        target: the folder, made if absent.

    Returns:
        How many shards were copied; those that `target` has already are skipped.

    Raises:
        FeatureError: the recipes differ (the message lists the fields), or shards are damaged: the
            others are copied all the same.
        WriteError: the store cannot be written.
    """
    sources, target = [Path(path) for path in sources], Path(target)
    stores = [Store(source) for source in sources]
    first, *others = stores
    for store in others:
        differing = store.recipe.differences(first.recipe)
        if differing:
            raise FeatureError(
                f"{store.path} cannot be merged with {first.path}, their recipes differ: "
                + "; ".join(differing)
            )
    create(target, first.recipe)
    recover(target)
    copied, damaged = 0, [file for store in stores for file in store.unreadable]
    with Spool(target) as scratch:
        for shard in (shard for store in stores for shard in store.shards):
            name = shard.path.name
            if (target / name).exists():
                continue
            try:
                copy = scratch.path / name
                os.close(open_regular(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
                shutil.copyfile(shard.path, copy)
                if file_hash(copy) in name:
                    copy.rename(target / name)
                    copied += 1
                else:
                    copy.unlink()
                    damaged.append(shard.path)
            except OSError as error:
                raise write_error(target, error) from error
        sync_folder(target)
    if damaged:
        raise FeatureError(
            f"damaged shards were not merged: {', '.join(map(str, damaged))}; run 'avarnet "
            "features verify' on their store, repair it and merge again"
        )
    return copied


class Compaction(NamedTuple):
    """The number of shards before and after `compact`."""

    before: int
    after: int


def compact(path: str | Path, shard_bytes: int = SHARD_BYTES) -> Compaction:
    """Seal the clips of small shards together in a few large ones, and drop duplicates.

    Readers that have the store open keep the shards that they have read from; where another is
    gone, an error asks them to open the store again.

    Args:
        path: the store's folder.
        shard_bytes: how large the new shards are to be.

    Raises:
        FeatureError: a clip is damaged; nothing is lost.
        WriteError: the store cannot be written.
    """
    path = Path(path)
    recover(path)
    store = Store(path)
    live = [_live(store, shard) for shard in store.shards]
    small = [
        number
        for number, shard in enumerate(store.shards)
        if len(live[number]) < len(shard) or shard.nbytes < shard_bytes / 2
    ]
    whole = all(len(live[number]) == len(store.shards[number]) for number in small)
    if not (len(small) == 1 and whole):
        clips = (
            (clip_id, store.shards[number].read(index))
            for number in small
            for clip_id, index in live[number]
        )
        _replace(path, [store.shards[number] for number in small], clips, shard_bytes)
    return Compaction(len(store.shards), len(Store(path).shards))


def drop(path: str | Path, ids: str | Collection[str]) -> list[str]:
    """Take clips out of a store; return those that it had.

    Args:
        path: the store's folder.
        ids: of the clips, or one; those that the store lacks are ignored.

    Raises:
        FeatureError: a clip that stays is damaged; nothing is lost.
        WriteError: the store cannot be written.
    """
    path = Path(path)
    recover(path)
    store, unwanted = Store(path), set(several(ids))
    affected = [shard for shard in store.shards if not unwanted.isdisjoint(shard.ids)]
    clips = (
        (clip_id, shard.read(index))
        for shard in affected
        for clip_id, index in _live(store, shard)
        if clip_id not in unwanted
    )
    _replace(path, affected, clips, SHARD_BYTES)
    return sorted(unwanted & set(store))


class Difference(NamedTuple):
    """How two stores differ.

    Attributes:
        recipe: one line for each field of the recipes that differs.
        only_a, only_b: clips that only one of them has.
        content: clips that both have, whose features differ or are damaged; empty if the recipes
            differ.
    """

    recipe: list[str]
    only_a: list[str]
    only_b: list[str]
    content: list[str]


def diff(a: str | Path, b: str | Path, fast: bool = False) -> Difference:
    """Compare two stores, every byte of their clips.

    Args:
        a: the folder of one store.
        b: the folder of the other.
        fast: compare the checksums that are recorded, and read no rows: damage is not found.
    """
    a, b = Path(a), Path(b)
    one, other = Store(a), Store(b)
    recipe = one.recipe.differences(other.recipe)
    both = [] if recipe else [i for i in one if i in other]
    content = [
        i
        for i in both
        if _digests(one, i) != _digests(other, i) or not (fast or _intact(one, i, other))
    ]
    return Difference(
        recipe=recipe,
        only_a=sorted(one.keys() - other.keys()),
        only_b=sorted(other.keys() - one.keys()),
        content=sorted(content),
    )


def _intact(one: Store, clip_id: str, other: Store) -> bool:
    """Whether a clip has its checksums in two stores; they are compared where it is read."""
    try:
        one[clip_id], other[clip_id]
    except FeatureError:
        return False
    return True


def _digests(store: Store, clip_id: str) -> dict[str, bytes]:
    shard, index = store.locate(clip_id)
    return {name: digests[index].tobytes() for name, digests in shard.table.digests.items()}


class _LiveClip(NamedTuple):
    """A clip that a store reads from this shard and from no other."""

    id: str
    number: int  # of the clip in the shard


def _live(store: Store, shard: Shard) -> list[_LiveClip]:
    return [
        _LiveClip(clip_id, number)
        for number, clip_id in enumerate(shard.ids)
        if store.locate(clip_id) == (shard, number)
    ]


def _replace(
    path: Path, old: list[Shard], clips: Iterator[tuple[str, Features]], shard_bytes: int
) -> None:
    recipe = Store(path).recipe
    new = pack(path, clips, recipe, shard_bytes)
    for shard in old:
        if shard.path not in new:
            shard.path.unlink(missing_ok=True)
