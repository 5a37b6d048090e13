"""From scores to anomalous intervals: hysteresis, and a shortest length, chosen on validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from train.evaluation.segments import stretches_above

LEVELS = 20  # of the upper threshold that are tried
LOWER = (1.0, 0.75, 0.5)  # of the upper threshold: where an interval may go on
SHORTEST = (1, 2, 4, 8)  # snippets


class Anomaly(NamedTuple):
    """An anomalous stretch of a clip.

    Attributes:
        start, end: in seconds.
        label: the anomalous class that is likeliest in it.
        score: the highest anomaly score in it.
    """

    start: float
    end: float
    label: str
    score: float


@dataclass(frozen=True)
class Hysteresis:
    """Which scores make an interval.

    Attributes:
        high: an interval has a score of at least this,
        low: none below this,
        shortest: and at least so many seconds.
    """

    high: float = 0.5
    low: float = 0.5
    shortest: float = 0.0

    def find(
        self,
        scores: NDArray[np.float32],
        classes: Sequence[str],
        normal: str,
        snippet_seconds: float,
    ) -> list[Anomaly]:
        """Return the anomalous intervals of a clip, in order.

        Args:
            scores: (T, classes) probabilities of every snippet.
            classes: names of their columns.
            normal: the class that is no anomaly.
            snippet_seconds: length of a snippet.

        >>> scores = np.array([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5], [0.8, 0.2]], np.float32)
        >>> [(a.start, a.end) for a in Hysteresis(0.6, 0.4).find(scores, ["no", "yes"], "no", 0.5)]
        [(0.5, 1.5)]
        """
        anomalous = anomaly_scores(scores, classes, normal)
        others = [name for name in classes if name != normal]
        columns = [classes.index(name) for name in others]
        found = []
        for first, last in zip(*_stretches(anomalous, self.high, self.low), strict=True):
            start, end = float(first * snippet_seconds), float(last * snippet_seconds)
            if end - start >= self.shortest - 1e-9:
                likeliest = others[int(scores[first:last, columns].mean(0).argmax())]
                peak = float(anomalous[first:last].max())
                found.append(Anomaly(start, end, likeliest, peak))
        return found

    @classmethod
    def choose(
        cls,
        clips: Sequence[NDArray[np.float32]],
        anomalous: Sequence[bool],
        snippet_seconds: float,
    ) -> tuple[Hysteresis, dict[str, Any]]:
        """Choose the settings by which clips with and without anomaly are separated best.

        Of all clips only that is known, so an interval is right if its clip is anomalous. Between
        settings that tell clips apart equally well, the one is taken whose intervals divide all
        snippets' scores the most clearly into high and low ones (Otsu 1979: the largest variance
        between the two).

        Args:
            clips: anomaly scores (T,) of each.
            anomalous: whether there is an anomaly in it.
            snippet_seconds: length of a snippet.

        Returns:
            The settings; and ``clips``, how many there were, and ``balanced_accuracy``, which is
            None where all clips are of one kind: nothing was chosen then.
        """
        if len(set(anomalous)) < 2:
            return cls(), {"clips": len(clips), "balanced_accuracy": None}
        # one row of all snippets; between clips there is a score that ends every stretch
        whole = np.concatenate([np.append(scores, np.float32(-1)) for scores in clips])
        ends = np.cumsum([len(scores) + 1 for scores in clips])
        real = whole >= 0
        total = np.insert(np.cumsum(np.where(real, whole, 0), dtype=np.float64), 0, 0)
        truth = np.array(anomalous, bool)
        levels = np.linspace(whole[real].min(), whole.max(), LEVELS + 2)[1:-1]
        ranked = []
        for high, share in product(map(float, levels), LOWER):
            first, last = _stretches(whole, high, share * high)
            for shortest in SHORTEST:
                long = last - first >= shortest
                found = np.zeros(len(clips), bool)
                found[np.searchsorted(ends, first[long], side="right")] = True
                inside = int((last - first)[long].sum())
                scored = float((total[last] - total[first])[long].sum())
                apart = _between(inside, scored, int(real.sum()), float(total[-1]))
                balanced = float(found[truth].mean() + (~found[~truth]).mean()) / 2
                rank = (balanced, apart)
                ranked.append((rank, cls(high, share * high, shortest * snippet_seconds)))
        best, _ = max(ranked, key=lambda found: found[0])
        equals = [settings for rank, settings in ranked if rank == best]
        # the one in the middle is the farthest from where the result changes
        return equals[len(equals) // 2], {"clips": len(clips), "balanced_accuracy": best[0]}


def anomaly_scores(
    scores: NDArray[np.float32], classes: Sequence[str], normal: str
) -> NDArray[np.float32]:
    """Return (T,), how likely each snippet is anything but `normal`, of (T, classes)."""
    rest: NDArray[np.float32] = 1 - scores[:, classes.index(normal)]
    return rest


def _between(count: int, total: float, all_count: int, all_total: float) -> float:
    """Return the variance of all scores that is between some of them and the others.

    Args:
        count, total: how many these are, and their sum.
        all_count, all_total: the same of all scores.
    """
    if count in (0, all_count):
        return 0.0
    share, mean, rest = (
        count / all_count,
        total / count,
        (all_total - total) / (all_count - count),
    )
    return share * (1 - share) * (mean - rest) ** 2


def _stretches(
    scores: NDArray[np.float32], high: float, low: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first snippets and the last ones + 1 of where (T,) is `low`, and once `high`."""
    first, last = stretches_above(scores, low).T
    peaks = np.array([]) if not len(first) else np.maximum.reduceat(scores, first)
    # reduceat extends to the next stretch; what lies between is lower than any peak
    return first[peaks >= high], last[peaks >= high]
