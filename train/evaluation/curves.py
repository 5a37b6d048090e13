"""Frames sorted once, and the areas under their curves for any weights of their clips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

AREAS = ("ap", "roc_auc")


class Ranking:
    """The frames of some clips, the highest score first.

    A bootstrap over clips is a draw of weights: how often each clip is there. So sorting, which
    takes longest, is done once for all draws; frames of one score in one clip count together.

    Args:
        truth: (frames,) 0 or 1 of each clip.
        scores: (frames,) of each clip.

    >>> truth, scores = [np.array([1, 0]), np.array([0])], [np.array([0.9, 0.1]), np.array([0.5])]
    >>> Ranking(truth, scores).areas(np.array([1, 1])).tolist()
    [1.0, 1.0]
    """

    def __init__(
        self, truth: Sequence[NDArray[np.uint8]], scores: Sequence[NDArray[np.floating]]
    ) -> None:
        clips = len(scores)
        owner = np.repeat(np.arange(clips), [len(own) for own in scores])
        values, level = np.unique(-np.concatenate(list(scores)), return_inverse=True)
        key, place = np.unique(level * clips + owner, return_inverse=True)
        self._anomalous = np.bincount(place, np.concatenate(list(truth))).astype(np.int64)
        self._normal = np.bincount(place) - self._anomalous
        level, self._owner = np.divmod(key, clips)
        self._last = np.flatnonzero(np.diff(level, append=len(values)))  # of each score

    def areas(self, weights: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the areas under the precision-recall and the ROC curve, both by trapezoids.

        Args:
            weights: (clips,) how often each clip counts, 0 and more.

        Returns:
            (2,) in the order of `AREAS`; not a number where the frames are of one kind.
        """
        times = weights.take(self._owner)
        hits = np.cumsum(times * self._anomalous)[self._last]
        false = np.cumsum(times * self._normal)[self._last]
        if not hits[-1] or not false[-1]:
            return np.full(2, np.nan)
        begin = int(np.argmax(hits + false > 0))  # before it there is no precision
        hits, false = hits[begin:], false[begin:]
        precision = np.append(1.0, hits / (hits + false))
        recall, alarms = (np.append(0.0, counts / counts[-1]) for counts in (hits, false))
        return np.array([_area(recall, precision), _area(alarms, recall)])

    def all_areas(self, draws: Iterable[NDArray[np.integer]]) -> NDArray[np.float64]:
        """Return the `areas` (draws, 2) of many weights."""
        return np.array([self.areas(weights) for weights in draws])


def _area(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float(np.diff(x) @ (y[1:] + y[:-1])) / 2
