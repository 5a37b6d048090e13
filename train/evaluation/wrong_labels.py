"""Held-out clips whose label may be wrong, by confident learning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from train.evaluation.figures import WrongLabel
from train.inference import ClipPrediction


def likely_wrong_labels(
    clips: Sequence[ClipPrediction], classes: Sequence[str]
) -> list[WrongLabel]:
    """Return the clips that are confidently predicted to be of another class, the surest first.

    Confident learning (Northcutt, Jiang and Chuang, Journal of Artificial Intelligence Research,
    2021): a clip counts as one of class j if its probability of j is at least the mean of that
    probability over the clips with label j; of several such classes, as the likeliest. So a class
    that models are seldom sure of needs less. As in its authors' program, clips whose label is the
    likeliest class of all are not listed.

    Args:
        clips: with predictions of models that did not learn from them.
        classes: names, in the order of the probabilities.
    """
    if not clips:
        return []
    p = np.stack([clip.probabilities for clip in clips]).astype(np.float64)
    given = np.array([classes.index(clip.label) for clip in clips])
    thresholds = np.full(len(classes), np.inf)  # of a class without clips nothing is known
    for k in set(given):
        thresholds[k] = p[given == k, k].mean()
    likely = np.where(p >= thresholds, p, -1).argmax(1)
    every = np.arange(len(clips))
    margin = p[every, likely] - p[every, given]
    wrong = (p[every, likely] >= thresholds[likely]) & (p.argmax(1) != given) & (likely != given)
    return [
        WrongLabel(
            clip=clips[i].id,
            label=clips[i].label,
            likely=classes[likely[i]],
            p_label=float(p[i, given[i]]),
            p_likely=float(p[i, likely[i]]),
        )
        for i in sorted(np.flatnonzero(wrong).tolist(), key=lambda i: -margin[i])
    ]
