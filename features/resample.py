"""Features on another time grid: each row the mean of those that it overlaps, by how much."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from features.clip_features import Features
from features.recipe import FeatureError

SLACK = 1e-6  # of a snippet: lengths such as 16/24 s are no exact numbers
MOST_TIMES = 1000  # one grid's snippets as long as the other's; a mistake would take all memory
RESAMPLED = "resampled_from"  # in a stream's settings: the seconds of its own snippets


def resampled(clip: Features, snippet_seconds: float) -> Features:
    """Return a clip's features on the time grid of another length of snippets.

    A row is the mean of the valid rows that its snippet overlaps, weighted by how long. It is valid
    where these cover at least half of the snippet, as far as that lies in the clip.

    >>> rows = np.array([[1.0], [3.0]], np.float16)
    >>> clip = Features({"video": rows}, {"video": np.ones(2, bool)}, 1.0, 2.0)
    >>> resampled(clip, 1.5).video.ravel().tolist()  # (1 x 1 s + 3 x 0.5 s) / 1.5 s, and 3
    [1.6669921875, 3.0]

    Args:
        clip: on its own grid.
        snippet_seconds: of the new one.

    Raises:
        FeatureError: the two are too unlike.
    """
    ratio = snippet_seconds / clip.snippet_seconds  # a new snippet, in old ones
    if not 1 / MOST_TIMES <= ratio <= MOST_TIMES:
        raise FeatureError(
            f"snippets of {clip.snippet_seconds:g} s and of {snippet_seconds:g} s: at most "
            f"{MOST_TIMES} times as long or short can be resampled"
        )
    length = math.ceil(len(clip) * ratio**-1 - SLACK)
    ends = np.minimum(np.arange(length + 1) * ratio, len(clip))  # the last may reach beyond
    streams, valid = {}, {}
    for name, rows in clip.streams.items():
        mask = clip.valid[name].astype(np.float64)
        known = np.diff(_integral(mask[:, None], ends), axis=0)  # of each new snippet
        total = np.diff(_integral(np.where(mask[:, None] > 0, rows, 0), ends), axis=0)
        good = known[:, 0] >= np.diff(ends) / 2 - SLACK
        mean = np.where(good[:, None], total / np.maximum(known, SLACK), 0)
        streams[name], valid[name] = mean.astype(np.float16), good
    return Features(streams, valid, snippet_seconds, clip.duration, clip.flags, clip.source)


def _integral(rows: NDArray[np.floating], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the integral of rows over time, from the start to each of some moments.

    Args:
        rows: (T, D), each for one unit of time.
        at: (N,) moments, in these units.
    """
    sums = np.zeros((len(rows) + 1, rows.shape[1]))
    np.cumsum(rows, axis=0, out=sums[1:])
    whole = np.floor(at).astype(int)
    nothing = np.zeros((1, rows.shape[1]))  # behind the end
    part: NDArray[np.float64] = sums[whole]
    part += (at - whole)[:, None] * np.concatenate([rows, nothing])[whole]
    return part
