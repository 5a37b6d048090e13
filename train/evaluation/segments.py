"""Detection judged by segments: how well stretches of high scores overlap the anomalies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from manifests import Clip, Interval
from train.evaluation.figures import Overlaps, SegmentFigures

OVERLAPS = (0.1, 0.2, 0.3, 0.4, 0.5)  # intersection over union at which a segment is a hit
LEVELS = 20  # thresholds at which scores are cut into segments


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
) -> SegmentFigures:
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
    means, found = [], []
    for clip, own in zip(clips, scores, strict=True):
        own_means, edges = _proposals(own, levels)
        means.append(own_means)
        found.append(_found(edges * snippet_seconds, clip.intervals or ()))
    counts = np.array([len(clip.intervals or ()) for clip in clips])

    def of(chosen: Sequence[int]) -> Overlaps:
        score, hits = (np.concatenate([part[i] for i in chosen]) for part in (means, found))
        return _average_precision(score, hits, int(counts[chosen].sum()))

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
) -> Overlaps:
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


def _overlaps(
    segment: NDArray[np.floating | np.integer], others: NDArray[np.floating | np.integer]
) -> NDArray[np.float64]:
    """Return intersection over union of a segment (2,) with each of the others (n, 2)."""
    both = np.minimum(segment[1], others[:, 1]) - np.maximum(segment[0], others[:, 0])
    lengths = segment[1] - segment[0] + others[:, 1] - others[:, 0]
    shared = np.maximum(both, 0)
    shares: NDArray[np.float64] = shared / (lengths - shared)
    return shares
