"""Recognition metrics with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from train.evaluation.bootstrap import BOOTSTRAPS, drawn_anew, interval
from train.evaluation.figures import (
    Calibration,
    CalibrationBin,
    Estimate,
    RecognitionFigures,
    Spread,
)

BINS = 15  # of the calibration error, as its authors take


def recognition(
    truth: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    classes: list[str],
    groups: NDArray[np.int64],
    seed: int = 0,
) -> RecognitionFigures:
    """Return accuracy, macro precision, recall and F1 with intervals, per class, and calibration.

    Args:
        truth: (clips,) class indices.
        probabilities: (clips, classes); the likeliest class is predicted.
        classes: class names; every one of them counts in the macro averages if it occurs in
            `truth` or among the predictions.
        groups: (clips,) number of each clip's recording, see `group_numbers`.
        seed: of the bootstrap over recordings (intervals of 95 %).

    Returns:
        Plain data, ready for JSON: ``accuracy``, ``precision``, ``recall``, ``f1`` each as
        ``{"value", "low", "high"}``; ``per_class``; ``confusion`` (rows truth, columns predicted);
        ``calibration`` (see there).
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    predicted = probabilities.argmax(1)
    rng = np.random.default_rng(seed)
    drawn = (np.repeat(np.arange(len(truth)), n) for n in drawn_anew(groups, BOOTSTRAPS, rng))
    draws = np.array([_summary(truth[chosen], predicted[chosen]) for chosen in drawn])
    values = _summary(truth, predicted)
    ends = interval(np.array(values), draws, groups).clip(0, 1)
    accuracy, precision, recall, f1 = (
        Estimate(value=value, low=float(low), high=float(high))
        for value, low, high in zip(values, *ends, strict=True)
    )
    labels = np.arange(len(classes))
    per_class = precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    return {
        "accuracy": accuracy,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "per_class": {
            name: {
                "precision": float(per_class[0][i]),
                "recall": float(per_class[1][i]),
                "f1": float(per_class[2][i]),
                "clips": int(per_class[3][i]),
            }
            for i, name in enumerate(classes)
        },
        "confusion": confusion_matrix(truth, predicted, labels=labels).tolist(),
        "calibration": calibration(truth, probabilities),
        "clips": len(truth),
    }


def calibration(truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> Calibration:
    """Return how far the confidence of the predictions is from how often they are right.

    Returns:
        ``ece``, the expected calibration error (Guo et al., ICML 2017): the mean distance of
        confidence and accuracy over `BINS` bins of equal width, weighed by their clips; and
        ``bins``, the points of the reliability diagram, those that have clips.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins: list[CalibrationBin] = [
        {
            "confidence": float(confidence[number == n].mean()),
            "accuracy": float(right[number == n].mean()),
            "clips": int((number == n).sum()),
        }
        for n in np.unique(number)
    ]
    gaps = sum(b["clips"] * abs(b["confidence"] - b["accuracy"]) for b in bins)
    return {"ece": gaps / len(truth), "bins": bins}


def spread(values: Sequence[float | None]) -> Spread:
    """Return ``mean`` and ``std``, the standard deviation of the sample; None of a single value.

    Where a value is None, so is all.
    """
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return {"mean": None, "std": None}
    std = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
    return {"mean": float(np.mean(numbers)), "std": std}


def accuracy_and_f1(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> tuple[float, float]:
    """Return accuracy and macro F1 of (clips,) class indices."""
    accuracy, _, _, f1 = _summary(truth, predicted)
    return accuracy, f1


def _summary(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> list[float]:
    """Return accuracy and macro precision, recall, F1, as scikit-learn does, but fast."""
    labels, both = np.unique(np.concatenate([truth, predicted]), return_inverse=True)
    real, guess = both[: len(truth)], both[len(truth) :]
    count = len(labels)
    hits = np.bincount(real[real == guess], minlength=count)
    precision = hits / np.maximum(np.bincount(guess, minlength=count), 1)
    recall = hits / np.maximum(np.bincount(real, minlength=count), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return [
        float((truth == predicted).mean()),
        float(precision.mean()),
        float(recall.mean()),
        float(f1.mean()),
    ]
