"""Weakly supervised detection: clip labels in training, a score per snippet, judged per frame.

Protocols: XD-Violence (Wu et al., "Not only Look, but also Listen", ECCV 2020): average precision
over all frames of the 800 test videos; UCF-Crime (Sultani et al., CVPR 2018): area under the ROC
curve over all frames of the 290. Each frame has the score of its snippet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from manifests import Clip
from train.config import TrainError
from train.model import mtcn_loss

CLASSES = ["normal", "anomaly"]
NORMAL_LABELS = ("A", "Normal", "normal")  # of XD-Violence; of UCF-Crime and VAAR
SNIPPETS_PER_TOP = 16  # one snippet in 16, and one more, speaks for its clip
DEFAULT_FPS = 25.0  # where a manifest tells no rate: it only sets how finely time is cut


def top_pool(logits: Tensor, mask: Tensor) -> Tensor:
    """Average each clip's most anomalous snippets to (batch, 2).

    Args:
        logits: (batch, 2, time), normal and anomalous.
        mask: (batch, time), true inside the clip.
    """
    return _mean(logits, top_snippets(logits, mask))


def top_snippets(logits: Tensor, mask: Tensor) -> Tensor:
    """Return (batch, time), true at the k = floor(T / 16) + 1 highest snippets of each clip.

    So many as XD-Violence's baseline takes.
    """
    margin = (logits[:, 1] - logits[:, 0]).masked_fill(~mask, -float("inf"))
    rank = margin.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return mask & (rank < (mask.sum(1) // SNIPPETS_PER_TOP + 1)[:, None])


def weak_loss(
    logits: Tensor,
    mask: Tensor,
    targets: Tensor,
    smoothing_weight: float = 0.15,
    smoothing_limit: float = 4.0,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the loss of all stages where only the clips' labels are known.

    Each stage has `mtcn_loss` with the snippets that the first stage finds the most anomalous for
    those of its clip. The later stages also learn the first one's answer to every snippet: they see
    so far that the clip's label alone would teach them whether, but not when.

    Args: as those of `mtcn_loss`.
    """
    top = top_snippets(logits[0].detach(), mask)
    total = mtcn_loss(
        logits,
        mask,
        targets,
        smoothing_weight,
        smoothing_limit,
        class_weights,
        label_smoothing,
        lambda stage, _: _mean(stage, top),
    )
    first = F.softmax(logits[0].detach(), dim=1)
    for stage in logits[1:]:
        apart = F.cross_entropy(stage, first, reduction="none")
        total = total + (apart * mask).sum() / mask.sum()
    return total


def _mean(logits: Tensor, chosen: Tensor) -> Tensor:
    weight = chosen[:, None].to(logits.dtype)
    return (logits * weight).sum(2) / weight.sum(2)


def weak_labels(clips: Sequence[Clip], normal: str) -> list[Clip]:
    """Return the clips with one label of `CLASSES` each.

    Args:
        clips: with the labels of their data set.
        normal: the label of clips without anomaly; one of `NORMAL_LABELS` if empty.

    Raises:
        TrainError: no clip has that label.
    """
    labels = {clip.label for clip in clips}
    found = {normal} & labels if normal else labels & set(NORMAL_LABELS)
    if not found:
        raise TrainError(
            f"detection needs normal clips too, and none is labelled {normal or NORMAL_LABELS}; "
            f"name their label with --normal (there are {', '.join(sorted(labels))})"
        )
    return [replace(clip, labels=(CLASSES[clip.label not in found],)) for clip in clips]


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
) -> dict[str, float | int | None]:
    """Return what the frames of some clips give, put one after the other.

    Returns:
        ``ap``: area under the precision-recall curve by trapezoids, XD-Violence's own figure;
        ``average_precision``: the same in steps; ``roc_auc``; all None where the frames are of one
        kind; ``frames`` and ``anomalous``, their number.
    """
    said, real = np.concatenate(list(scores)), np.concatenate(list(truth))
    counts = {"frames": len(real), "anomalous": int(real.sum())}
    if not 0 < counts["anomalous"] < len(real):
        return {"ap": None, "average_precision": None, "roc_auc": None, **counts}
    precision, recall, _ = precision_recall_curve(real, said)
    return {
        "ap": float(auc(recall, precision)),
        "average_precision": float(average_precision_score(real, said)),
        "roc_auc": float(roc_auc_score(real, said)),
        **counts,
    }


def detection(
    clips: Sequence[Clip],
    scores: Sequence[NDArray[np.float32]],
    snippet_seconds: float,
    normal: Sequence[bool],
) -> dict[str, Any]:
    """Judge the snippets' scores of some clips, frame by frame.

    Args:
        clips: with annotations in time and the labels of their data set.
        scores: (T,) of each.
        snippet_seconds: length of a snippet.
        normal: which of them have no anomaly.

    Returns:
        `frame_metrics` of ``all`` clips, of the ``abnormal`` ones alone, and ``per_class``: of the
        abnormal clips with that label, among whose labels it is.
    """
    truth = [
        frame_truth(clip, len(s), snippet_seconds) for clip, s in zip(clips, scores, strict=True)
    ]
    held = [
        frame_scores(s, snippet_seconds, len(real), clip.fps or DEFAULT_FPS)
        for clip, s, real in zip(clips, scores, truth, strict=True)
    ]

    def of(chosen: list[int]) -> dict[str, float | int | None]:
        return frame_metrics((truth[i] for i in chosen), (held[i] for i in chosen))

    abnormal = [i for i, is_normal in enumerate(normal) if not is_normal]
    labels = sorted({label for i in abnormal for label in clips[i].labels})
    return {
        "all": of(list(range(len(clips)))),
        "abnormal": of(abnormal) if abnormal else None,
        "per_class": {
            label: {**of(chosen), "clips": len(chosen)}
            for label in labels
            if (chosen := [i for i in abnormal if label in clips[i].labels])
        },
        "clips": len(clips),
    }
