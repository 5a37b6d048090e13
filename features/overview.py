"""What a store holds: in few numbers, and clip by clip."""

from __future__ import annotations

from typing import NamedTuple

from features.clip_features import Flag
from features.store import Store


class Overview(NamedTuple):
    """What a store holds.

    Attributes:
        clips, shards, snippets: how many.
        hours: of footage.
        nbytes: of all shards.
        lacking: stream -> clips that have nothing in it.
        flags: what went wrong, in words -> clips.
    """

    clips: int
    shards: int
    snippets: int
    hours: float
    nbytes: int
    lacking: dict[str, int]
    flags: dict[str, int]


def overview(store: Store) -> Overview:
    """Sum up a store from its tables."""
    flags = store.column("flags")
    counts = {
        str(flag.name).lower().replace("_", " "): int(((flags & flag) > 0).sum())
        for flag in Flag
        if flag and len(flags)
    }
    return Overview(
        clips=len(store),
        shards=len(store.shards),
        snippets=int(store.column("rows").sum()),
        hours=float(store.column("duration").sum()) / 3600,
        nbytes=sum(shard.nbytes for shard in store.shards),
        lacking={name: int((store.valid_counts(name) == 0).sum()) for name in store.recipe.streams},
        flags={words: count for words, count in counts.items() if count},
    )


class Entry(NamedTuple):
    """One clip of a listing."""

    clip: str
    snippets: int
    duration: float  # seconds
    flags: Flag


def entries(store: Store) -> list[Entry]:
    """List every clip of a store."""
    columns = (store.column(name).tolist() for name in ("rows", "duration", "flags"))
    return [
        Entry(clip_id, rows, seconds, Flag(flags))
        for clip_id, rows, seconds, flags in zip(store, *columns, strict=True)
    ]
