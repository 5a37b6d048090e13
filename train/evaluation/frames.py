"""Weakly supervised detection judged per frame: each frame has the score of its snippet.

Protocols: XD-Violence (Wu et al., "Not only Look, but also Listen", ECCV 2020): average precision
over all frames of the 800 test videos; UCF-Crime (Sultani et al., CVPR 2018): area under the ROC
curve over all frames of the 290. Each frame has the score of its snippet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from manifests import Clip
from train.evaluation.alarms import RECALL, false_alarms
from train.evaluation.bootstrap import BOOTSTRAPS, drawn_anew, interval
from train.evaluation.curves import AREAS, Ranking
from train.evaluation.figures import DetectionFigures, FrameFigures
from train.evaluation.segments import segment_figures

CURVE_POINTS = 300
DEFAULT_FPS = 25.0  # where a manifest tells no rate: it only sets how finely time is cut


def frame_truth(clip: Clip, snippets: int, snippet_seconds: float) -> NDArray[np.uint8]:
    """Return 0 or 1 for each frame of a clip, (frames,).

    The frames are those of the clip's duration, or of its snippets where no duration is known: as
    XD-Violence's baseline has 16 frames for each snippet.

    Raises:
        ManifestError: the clip has no annotation in time.
    """
    fps = clip.fps or DEFAULT_FPS
    seconds = clip.duration or snippets * snippet_seconds
    return clip.frame_labels(max(1, round(seconds * fps)), fps)


def frame_scores(
    scores: NDArray[np.float32], snippet_seconds: float, frames: int, fps: float
) -> NDArray[np.float32]:
    """Hold each snippet's score for its frames: (T,) to (frames,); the last one lasts.

    >>> frame_scores(np.array([0.0, 1.0], np.float32), 0.5, 6, 4.0).tolist()
    [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    """
    snippet = np.floor(np.arange(frames) / fps / snippet_seconds + 1e-6).astype(np.int64)
    return scores[np.minimum(snippet, len(scores) - 1)]


def frame_metrics(
    truth: Iterable[NDArray[np.uint8]], scores: Iterable[NDArray[np.float32]]
) -> FrameFigures:
    """Return what the frames of some clips give, put one after the other.

    Returns:
        ``ap``: area under the precision-recall curve by trapezoids, XD-Violence's own figure;
        ``average_precision``: the same in steps; ``roc_auc``; all None where the frames are of one
        kind; ``frames`` and ``anomalous``, their number.
    """
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

    score, real = np.concatenate(list(scores)), np.concatenate(list(truth))
    figures: FrameFigures = {
        "ap": None,
        "average_precision": None,
        "roc_auc": None,
        "frames": len(real),
        "anomalous": int(real.sum()),
    }
    if 0 < figures["anomalous"] < len(real):
        precision, recall, _ = precision_recall_curve(real, score)
        figures["ap"] = float(auc(recall, precision))
        figures["average_precision"] = float(average_precision_score(real, score))
        figures["roc_auc"] = float(roc_auc_score(real, score))
    return figures


def frame_figures(
    clips: Sequence[Clip], scores: Sequence[NDArray[np.float32]], snippet_seconds: float
) -> FrameFigures:
    """Return the `frame_metrics` of the snippets' scores (T,) of some clips."""
    return frame_metrics(*frames(clips, scores, snippet_seconds))


def frames(
    clips: Sequence[Clip], scores: Sequence[NDArray[np.float32]], snippet_seconds: float
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.float32]]]:
    """Return truth and score of each clip's frames, of snippets' scores (T,)."""
    truth = [
        frame_truth(clip, len(s), snippet_seconds) for clip, s in zip(clips, scores, strict=True)
    ]
    per_frame = [
        frame_scores(s, snippet_seconds, len(real), clip.fps or DEFAULT_FPS)
        for clip, s, real in zip(clips, scores, truth, strict=True)
    ]
    return truth, per_frame


def detection(
    clips: Sequence[Clip],
    scores: Sequence[NDArray[np.float32]],
    snippet_seconds: float,
    normal: Sequence[bool],
    groups: NDArray[np.int64],
    seed: int = 0,
    recall: float = RECALL,
) -> DetectionFigures:
    """Judge the snippets' scores of some clips, frame by frame.

    Args:
        clips: with annotations in time and the labels of their data set.
        scores: (T,) of each.
        snippet_seconds: length of a snippet.
        normal: which of them have no anomaly.
        groups: (clips,) number of each clip's recording, see `group_numbers`.
        seed: of the bootstrap over recordings (intervals of 95 %).
        recall: share of the anomalies to be noticed, at which false alarms are counted.

    Returns:
        `frame_metrics` of ``all`` clips, of the ``abnormal`` ones alone, and ``per_class``: of the
        abnormal clips alone among whose labels it is; ``intervals`` of ``ap`` and ``roc_auc`` of
        all clips, as ``[low, high]``; ``segments`` (`segment_figures`) and ``false_alarms``;
        ``curves``, points of the precision-recall and ROC curves.
    """
    truth, per_frame = frames(clips, scores, snippet_seconds)

    def of(chosen: list[int]) -> FrameFigures:
        return frame_metrics((truth[i] for i in chosen), (per_frame[i] for i in chosen))

    abnormal = [i for i, is_normal in enumerate(normal) if not is_normal]
    labels = sorted({label for i in abnormal for label in clips[i].labels})
    per_class = {label: [i for i in abnormal if label in clips[i].labels] for label in labels}
    return {
        "all": of(list(range(len(clips)))),
        "intervals": _intervals(truth, per_frame, groups, seed),
        "segments": segment_figures(clips, scores, snippet_seconds, per_class, normal),
        "false_alarms": false_alarms(clips, scores, snippet_seconds, recall),
        "curves": _curves(np.concatenate(truth), np.concatenate(per_frame)),
        "abnormal": of(abnormal) if abnormal else None,
        "per_class": {
            label: {**of(chosen), "clips": len(chosen)} for label, chosen in per_class.items()
        },
        "clips": len(clips),
    }


def _intervals(
    truth: Sequence[NDArray[np.uint8]],
    scores: Sequence[NDArray[np.float32]],
    groups: NDArray[np.int64],
    seed: int,
) -> dict[str, list[float]]:
    """Return 95 % intervals of AP and ROC-AUC, from recordings drawn anew."""
    ranking = Ranking(truth, scores)
    draws = ranking.all_areas(drawn_anew(groups, BOOTSTRAPS, np.random.default_rng(seed)))
    draws = draws[~np.isnan(draws[:, 0])]
    if not len(draws):
        return {}
    value = ranking.areas(np.ones(len(groups), np.int64))
    ends = interval(value, draws, groups).clip(0, 1)
    return dict(zip(AREAS, ends.T.tolist(), strict=True))


def _curves(truth: NDArray[np.uint8], scores: NDArray[np.float32]) -> dict[str, list[list[float]]]:
    """Return some points (x, y) of the precision-recall and the ROC curve."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    if not 0 < truth.sum() < len(truth):
        return {}
    precision, recall, _ = precision_recall_curve(truth, scores)
    alarms, hits, _ = roc_curve(truth, scores)
    result = {}
    for name, x, y in (("precision_recall", recall, precision), ("roc", alarms, hits)):
        some = np.unique(np.linspace(0, len(x) - 1, CURVE_POINTS).astype(int))
        result[name] = np.stack([x[some], y[some]], axis=1).round(5).tolist()
    return result
