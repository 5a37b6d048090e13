"""Detection judged by stretches of time: overlap of segments, and alarms as a user gets them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from manifests import Clip

OVERLAPS = (0.1, 0.2, 0.3, 0.4, 0.5)  # intersection over union at which a segment is a hit
LEVELS = 20  # thresholds at which scores are cut into segments
RECALL = 0.8  # of the annotated anomalies, at which false alarms are counted

Segment = tuple[float, float]  # from, to, in seconds


def stretches_above(scores: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Return (stretches, 2): first snippet, and last + 1, of where (T,) is at least `threshold`."""
    above = np.concatenate([[False], scores >= threshold, [False]])
    return np.flatnonzero(above[1:] != above[:-1]).reshape(-1, 2)


def runs_above(
    scores: NDArray[np.float32], threshold: float, snippet_seconds: float
) -> list[Segment]:
    """Return the stretches in which scores (T,) are at least `threshold`.

    >>> runs_above(np.array([0.1, 0.9, 0.8, 0.2, 0.7], np.float32), 0.5, 0.25)
    [(0.25, 0.75), (1.0, 1.25)]
    """
    edges = stretches_above(scores, threshold) * snippet_seconds
    return [(float(first), float(last)) for first, last in edges]


def segment_ap(
    clips: Sequence[Clip], scores: Sequence[NDArray[np.float32]], snippet_seconds: float
) -> dict[str, float | None]:
    """Return the average precision of segments at each of `OVERLAPS`, and the mean of them.

    Scores are cut into segments at `LEVELS` thresholds, evenly spaced between the lowest and the
    highest score; a segment counts with the mean of its scores. Segments of a clip that overlap a
    higher one by half or more are dropped. An annotated anomaly is found by the highest segment
    that overlaps it enough; further ones are false.

    Returns:
        ``"0.1"`` to ``"0.5"`` and ``"mean"``; all None where nothing is annotated.
    """
    real = [[(i.start, i.end) for i in clip.intervals or ()] for clip in clips]
    count = sum(map(len, real))
    if not count:
        return {**{str(overlap): None for overlap in OVERLAPS}, "mean": None}
    every = np.concatenate(list(scores))
    levels = np.linspace(every.min(), every.max(), LEVELS + 1)[1:]
    found: list[tuple[float, int, Segment]] = []
    for number, own in enumerate(scores):
        segments = {}
        for level in levels:
            for first, last in runs_above(own, level, snippet_seconds):
                inside = slice(round(first / snippet_seconds), round(last / snippet_seconds))
                segments[first, last] = float(own[inside].mean())
        kept: list[Segment] = []
        for segment in sorted(segments, key=lambda s: (-segments[s], s)):
            if all(_overlap(segment, other) < 0.5 for other in kept):
                kept.append(segment)
                found.append((segments[segment], number, segment))
    found.sort(key=lambda f: -f[0])
    result: dict[str, float | None] = {}
    for overlap in OVERLAPS:
        taken: set[tuple[int, int]] = set()
        hits = np.zeros(len(found))
        for rank, (_, number, segment) in enumerate(found):
            shares = [
                (_overlap(segment, other), k)
                for k, other in enumerate(real[number])
                if (number, k) not in taken
            ]
            share, k = max(shares, default=(0.0, -1))
            if share >= overlap:
                taken.add((number, k))
                hits[rank] = 1
        precision = hits.cumsum() / np.arange(1, len(hits) + 1)
        result[str(overlap)] = float((precision * hits).sum() / count)
    result["mean"] = float(np.mean([value for value in result.values() if value is not None]))
    return result


def false_alarms(
    clips: Sequence[Clip],
    scores: Sequence[NDArray[np.float32]],
    snippet_seconds: float,
    recall: float = RECALL,
) -> dict[str, float | None]:
    """Return how many false alarms an hour it costs to notice a share of the anomalies.

    An alarm is a stretch of scores at or over a threshold; an anomaly is noticed if an alarm
    overlaps it, and an alarm that overlaps none is false. The threshold is the highest that notices
    a share of `recall`.

    Returns:
        ``threshold``, ``recall`` (the share it notices), ``per_hour``, ``hours`` of footage; all
        but the last None where nothing is annotated.
    """
    hours = sum(map(len, scores)) * snippet_seconds / 3600
    peaks = []
    for clip, own in zip(clips, scores, strict=True):
        for interval in clip.intervals or ():
            first = min(int(interval.start / snippet_seconds), len(own) - 1)
            last = max(first + 1, int(np.ceil(interval.end / snippet_seconds)))
            peaks.append(float(own[first:last].max()))
    if not peaks:
        return {"threshold": None, "recall": None, "per_hour": None, "hours": hours}
    peaks.sort(reverse=True)
    threshold = peaks[max(1, int(np.ceil(recall * len(peaks) - 1e-9))) - 1]
    wrong = 0
    for clip, own in zip(clips, scores, strict=True):
        for start, end in runs_above(own, threshold, snippet_seconds):
            wrong += not any(i.start < end and start < i.end for i in clip.intervals or ())
    noticed = sum(peak >= threshold for peak in peaks) / len(peaks)
    return {
        "threshold": threshold,
        "recall": noticed,
        "per_hour": wrong / hours,
        "hours": hours,
    }


def _overlap(one: Segment, other: Segment) -> float:
    """Return intersection over union."""
    both = min(one[1], other[1]) - max(one[0], other[0])
    return max(0.0, both) / (max(one[1], other[1]) - min(one[0], other[0]))
