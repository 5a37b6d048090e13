"""Detection judged by stretches of time: overlap of segments, and alarms as a user gets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests import Clip, Interval

OVERLAPS = (0.1, 0.2, 0.3, 0.4, 0.5)  # intersection over union at which a segment is a hit
LEVELS = 20  # thresholds at which scores are cut into segments
RECALL = 0.8  # of the annotated anomalies, at which false alarms are counted
ALARM_SECONDS = 10.0  # as long as most anomalies: half of XD-Violence's last under 6 s


def stretches_above(scores: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Return (stretches, 2): first snippet, and last + 1, of where (T,) is at least `threshold`.

    >>> stretches_above(np.array([0.1, 0.9, 0.8, 0.2, 0.7], np.float32), 0.5).tolist()
    [[1, 3], [4, 5]]
    """
    above = np.concatenate([[False], scores >= threshold, [False]])
    return np.flatnonzero(above[1:] != above[:-1]).reshape(-1, 2)


def segment_figures(
    clips: Sequence[Clip],
    scores: Sequence[NDArray[np.float32]],
    snippet_seconds: float,
    classes: Mapping[str, Sequence[int]],
    normal: Sequence[bool],
) -> dict[str, Any]:
    """Return the average precision of segments at each of `OVERLAPS`: of all, and class by class.

    Scores are cut into segments at `LEVELS` thresholds, evenly spaced between the lowest and the
    highest score; a segment counts with the mean of its scores. Segments of a clip that overlap a
    higher one by half or more are dropped. Matching is ActivityNet's (Heilbron et al., CVPR 2015):
    the highest segment chooses first, the annotated anomaly that it overlaps the most and that is
    not taken yet; each anomaly is found once, and what finds none is false. Precision is not
    interpolated, as the field's own code has it, and segments of one score count together.

    The detector tells no classes. So a class is judged by the clips of that label, and all of their
    anomalies, beside the normal clips, whose segments are false for every class. That is easier
    than to name the class too, as it is done where mAP is of class-aware detectors.

    Args:
        clips: with annotations in time.
        scores: (T,) of each.
        snippet_seconds: length of a snippet.
        classes: label -> indices of its clips.
        normal: whether a clip has no anomaly.

    Returns:
        ``ap``, of all clips, where an anomaly is an anomaly; ``per_class``, label -> the same; and
        ``map``, the mean over the classes. Each has ``"0.1"`` to ``"0.5"`` and their ``"mean"``;
        all None where nothing is annotated.
    """
    every = np.concatenate(list(scores))
    levels = np.linspace(every.min(), every.max(), LEVELS + 1)[1:]
    said, found = [], []
    for clip, own in zip(clips, scores, strict=True):
        means, edges = _proposals(own, levels)
        said.append(means)
        found.append(_found(edges * snippet_seconds, clip.intervals or ()))
    counts = np.array([len(clip.intervals or ()) for clip in clips])

    def of(chosen: Sequence[int]) -> dict[str, float | None]:
        means, hits = (np.concatenate([part[i] for i in chosen]) for part in (said, found))
        return _average_precision(means, hits, int(counts[chosen].sum()))

    calm = [i for i, is_normal in enumerate(normal) if is_normal]
    per_class = {label: of([*own, *calm]) for label, own in classes.items()}
    rows = [row for row in per_class.values() if row["mean"] is not None]
    keys = [*map(str, OVERLAPS), "mean"]
    return {
        "ap": of(list(range(len(clips)))),
        "map": {key: float(np.mean([row[key] for row in rows])) if rows else None for key in keys},
        "per_class": per_class,
    }


def _proposals(
    scores: NDArray[np.float32], levels: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return (segments,) scores, the highest first, and (segments, 2) first snippet, last + 1."""
    edges = np.unique(np.concatenate([stretches_above(scores, x) for x in levels]), axis=0)
    # summed more finely than kept, or equal scores would have unequal means
    means = np.array([scores[a:b].mean(dtype=np.float64) for a, b in edges], np.float32)
    left = np.argsort(-means, kind="stable")
    kept = []
    while len(left):
        kept.append(left[0])
        left = left[_overlaps(edges[left[0]], edges[left]) < 0.5]
    return means[kept], edges[kept]


def _found(segments: NDArray[np.floating], real: Sequence[Interval]) -> NDArray[np.bool_]:
    """Return (segments, `OVERLAPS`), whether each of (segments, 2) finds one of the anomalies."""
    found = np.zeros((len(segments), len(OVERLAPS)), bool)
    if not real:
        return found
    shares = np.array([_overlaps(segment, np.array(real)) for segment in segments])
    for column, overlap in enumerate(OVERLAPS):
        left = shares.copy()
        for row in range(len(segments)):
            best = left[row].argmax()
            if left[row, best] >= overlap - 1e-9:
                found[row, column] = True
                left[:, best] = -1
    return found


def _average_precision(
    scores: NDArray[np.float32], found: NDArray[np.bool_], count: int
) -> dict[str, float | None]:
    """Return the figures of some clips' segments, which have so many anomalies; see `_found`."""
    from sklearn.metrics import average_precision_score

    if not count:
        return {**{str(overlap): None for overlap in OVERLAPS}, "mean": None}
    # scikit-learn's recall is of the anomalies that are found at all
    values = [
        float(average_precision_score(hit, scores)) * float(hit.sum()) / count if hit.any() else 0.0
        for hit in found.T
    ]
    return {
        **{str(overlap): value for overlap, value in zip(OVERLAPS, values, strict=True)},
        "mean": float(np.mean(values)),
    }


def false_alarms(
    clips: Sequence[Clip],
    scores: Sequence[NDArray[np.float32]],
    snippet_seconds: float,
    recall: float = RECALL,
) -> dict[str, float | None]:
    """Return how many false alarms an hour it costs to notice a share of the anomalies.

    An alarm is raised where a score reaches a threshold, lasts while the scores stay there, but at
    most `ALARM_SECONDS`, and is then raised again: without that, one alarm from a clip's beginning
    to its end would be a right one wherever there is an anomaly, and a single false one in an hour
    without. An anomaly is noticed if an alarm overlaps it, however little; an alarm that overlaps
    none is false. So are seizure detectors judged, which have to say too how often they call in
    vain (any overlap, long events cut: SzCORE, Dan et al., Epilepsia 2024). Hours are those without
    anomaly, in which alone an alarm can be false, so that a test set with many anomalies does not
    flatter. The threshold is the highest that notices a share of `recall`, over 0 and at most 1; it
    is read off these very clips, as a point of a curve is.

    Returns:
        ``asked``, `recall`; ``recall``, the share that is noticed, which is more where anomalies
        are few or scores tied; ``threshold``; ``per_hour``; ``hours``, of footage without anomaly.
        ``recall``, ``threshold`` and ``per_hour`` are None where nothing is annotated, the last
        also where all is anomalous.
    """
    peaks = []
    touched = [np.zeros(len(own), bool) for own in scores]
    for clip, own, anomalous in zip(clips, scores, touched, strict=True):
        for start, end in clip.intervals or ():
            first = min(int(start / snippet_seconds + 1e-9), len(own) - 1)
            last = max(first + 1, int(np.ceil(end / snippet_seconds - 1e-9)))
            peaks.append(float(own[first:last].max()))
            anomalous[first:last] = True
    hours = float(sum((~anomalous).sum() for anomalous in touched)) * snippet_seconds / 3600
    result: dict[str, float | None] = {"asked": recall, "hours": hours}
    if not peaks:
        return {**result, "recall": None, "threshold": None, "per_hour": None}
    peaks.sort(reverse=True)
    threshold = peaks[max(1, int(np.ceil(recall * len(peaks) - 1e-9))) - 1]
    longest = max(1, int(ALARM_SECONDS / snippet_seconds + 1e-9))
    wrong = 0
    for own, anomalous in zip(scores, touched, strict=True):
        for first, last in stretches_above(own, threshold):
            alarms = np.arange(first, last, longest)
            wrong += int((~np.logical_or.reduceat(anomalous[:last], alarms)).sum())
    return {
        **result,
        "recall": sum(peak >= threshold for peak in peaks) / len(peaks),
        "threshold": threshold,
        "per_hour": wrong / hours if hours else None,
    }


def _overlaps(
    segment: NDArray[np.floating | np.integer], others: NDArray[np.floating | np.integer]
) -> NDArray[np.float64]:
    """Return intersection over union of a segment (2,) with each of the others (n, 2)."""
    both = np.minimum(segment[1], others[:, 1]) - np.maximum(segment[0], others[:, 0])
    lengths = segment[1] - segment[0] + others[:, 1] - others[:, 0]
    shared = np.maximum(both, 0)
    shares: NDArray[np.float64] = shared / (lengths - shared)
    return shares
