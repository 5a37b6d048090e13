"""The mean row of every clip of a shard, kept in the user's cache folder.

A file holds one stream of one shard. It is named after the digests of the rows it was made of, so
it is never out of date, and a folder that cannot be written to costs time alone.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from features.format.mapped_file import map_file
from features.format.shard import Shard
from features.recipe import FeatureError

CHECKSUM_BYTES = 16


class ShardMeans(NamedTuple):
    """The means of one shard.

    Attributes:
        means: stream -> (clips, values); a row of NaN where a clip has no valid rows.
        damaged: clip id -> why it cannot be read.
    """

    means: dict[str, NDArray[np.float32]]
    damaged: dict[str, str]


def mean_row(rows: NDArray[np.float16], valid: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Return the mean of the valid rows; None if there are none, or if it is not finite.

    Args:
        rows: (T, D).
        valid: (T,) validity mask.
    """
    if not valid.any():
        return None
    mean: NDArray[np.float64] = (rows if valid.all() else rows[valid]).mean(0, dtype=np.float64)
    return mean if np.isfinite(mean).all() else None


def make_means(shard: Shard) -> ShardMeans:
    """Compute the means of a shard, reading all of its rows."""
    means = {
        stream: np.full((len(shard), extent.features), np.nan, np.float32)
        for stream, extent in shard.table.extents.items()
    }
    damaged = {}
    for index, clip_id in enumerate(shard.ids):
        try:
            clip = shard.read(index)
        except FeatureError as error:
            damaged[clip_id] = str(error)
            continue
        for stream, rows in clip.streams.items():
            mean = mean_row(rows, clip.valid[stream])
            if mean is not None:
                means[stream][index] = mean
    return ShardMeans(means, damaged)


def cache_folder() -> Path:
    """Return the user's folder of what can be made or fetched again."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "avarnet"


def means_folder() -> Path:
    """Return the folder where means are kept."""
    return cache_folder() / "means"


def _cache_file(shard: Shard, stream: str) -> Path:
    """Return where a shard's means are kept: the digests are of all that they are made of."""
    digest = xxhash.xxh3_128(np.ascontiguousarray(shard.table.digests[stream]).data)
    return means_folder() / digest.hexdigest()


def load_means(shard: Shard) -> dict[str, NDArray[np.float32]] | None:
    """Map the means of a shard that were kept; None if some are missing or damaged."""
    means = {}
    for stream, extent in shard.table.extents.items():
        try:
            content = map_file(_cache_file(shard, stream))
        except (OSError, FeatureError):
            return None
        values, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:].tobytes()
        fits = len(values) == len(shard) * extent.features * np.float32().nbytes
        if not fits or xxhash.xxh3_128_digest(values.data) != checksum:
            return None
        means[stream] = values.view(np.float32).reshape(len(shard), extent.features)
    return means


def keep_means(shard: Shard, means: dict[str, NDArray[np.float32]]) -> None:
    """Write means where `load_means` finds them, if that is possible.

    Args:
        shard: whose they are.
        means: stream -> (clips, values).
    """
    for stream, values in means.items():
        file = _cache_file(shard, stream)
        temporary = file.with_name(f".{uuid.uuid4().hex}")
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "wb") as disk:
                    disk.write(values.data)
                    disk.write(xxhash.xxh3_128_digest(values.data))
                temporary.replace(file)
            finally:
                temporary.unlink(missing_ok=True)
