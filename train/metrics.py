"""Recognition metrics with bootstrap intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

BOOTSTRAPS = 1000
CONFIDENCE = 0.95


def recognition(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: list[str], seed: int = 0
) -> dict[str, Any]:
    """Return accuracy, macro precision, recall and F1 with intervals, and the per-class table.

    Args:
        truth: (clips,) class indices.
        predicted: (clips,) class indices.
        classes: class names; every one of them counts in the macro averages if it occurs in
            `truth` or `predicted`.
        seed: of the bootstrap over clips (percentile intervals, 95 %).

    Returns:
        Plain data, ready for JSON: ``accuracy``, ``precision``, ``recall``, ``f1`` each as
        ``{"value", "low", "high"}``; ``per_class``; ``confusion`` (rows truth, columns predicted).
    """
    rng = np.random.default_rng(seed)
    draws = np.array(
        [
            _summary(truth[chosen], predicted[chosen])
            for chosen in rng.integers(0, len(truth), (BOOTSTRAPS, len(truth)))
        ]
    )
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
    names = ("accuracy", "precision", "recall", "f1")
    values = _summary(truth, predicted)
    labels = np.arange(len(classes))
    per_class = precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    return {
        **{
            name: {"value": values[i], "low": float(low[i]), "high": float(high[i])}
            for i, name in enumerate(names)
        },
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
        "clips": len(truth),
    }


def _summary(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> list[float]:
    """Return accuracy and macro precision, recall, F1, as scikit-learn does, but fast."""
    labels, both = np.unique(np.concatenate([truth, predicted]), return_inverse=True)
    real, said = both[: len(truth)], both[len(truth) :]
    count = len(labels)
    hits = np.bincount(real[real == said], minlength=count)
    precision = hits / np.maximum(np.bincount(said, minlength=count), 1)
    recall = hits / np.maximum(np.bincount(real, minlength=count), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return [
        float((truth == predicted).mean()),
        float(precision.mean()),
        float(recall.mean()),
        float(f1.mean()),
    ]
