"""Small stores for the tests: a recipe of two narrow streams, and clips made from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from features import Features, Flag, Recipe, Writer

SIZES = {"video": 3, "audio": 2}
RECIPE = Recipe(
    0.25,
    "fp32",
    {"video": {"features": 3, "weights_sha256": "a"}, "audio": {"features": 2}},
    {"video": {"name": "mobilevit_xxs", "weights": "random"}},
)


def clip(length: int, seed: int = 0, flags: Flag = Flag.NONE) -> Features:
    rng = np.random.default_rng(seed)
    return Features(
        {name: rng.normal(size=(length, d)).astype(np.float16) for name, d in SIZES.items()},
        {name: rng.random(length) < 0.5 for name in SIZES},
        0.25,
        length / 4,
        flags,
        f"{seed:064x}" if seed else "",
    )


def same(one: Features, other: Features) -> bool:
    return (
        one.streams.keys() == other.streams.keys()
        and all((one.streams[name] == other.streams[name]).all() for name in one.streams)
        and all((one.valid[name] == other.valid[name]).all() for name in one.valid)
        and (one.duration, one.flags, one.source) == (other.duration, other.flags, other.source)
    )


def fill(path: Path, clips: Mapping[str, Features]) -> None:
    with Writer(path, RECIPE) as writer:
        for clip_id, features in clips.items():
            writer.add(clip_id, features)


def write_until_killed(path: Path, first: int, finished: Connection) -> None:
    """Write clips that are numbered from `first` on, and say of each that it is safe."""
    with Writer(path, RECIPE, shard_bytes=1000) as writer:
        for number in range(first, 1_000_000):
            writer.add(f"clip-{number}", clip(5, number))
            finished.send(number)


def write_some(path: Path, first: int, count: int) -> None:
    """Write `count` clips, numbered from `first` on."""
    with Writer(path, RECIPE, shard_bytes=200) as writer:
        for number in range(first, first + count):
            writer.add(f"clip-{number}", clip(3, number))
