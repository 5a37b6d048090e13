"""Two runs on the same held-out clips: is one better, or was it luck?"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from train.config import TrainError
from train.metrics import BOOTSTRAPS, CONFIDENCE
from train.run import Run


def compare_runs(one: Path, other: Path, seed: int = 0) -> dict[str, Any]:
    """Compare what two evaluated recognition runs say of the clips that both were judged by.

    Args:
        one, other: folders of runs.
        seed: of the bootstrap over clips (percentile interval, 95 %).

    Returns:
        Plain data: ``clips``; ``accuracy`` of both; ``difference`` of the accuracies, other minus
        one, as ``{"value", "low", "high"}`` from clips drawn anew in pairs; ``only_one`` and
        ``only_other``, how many clips only one of them has right; ``p``, how likely a difference
        like theirs is between equals (McNemar's exact test, two-sided).

    Raises:
        TrainError: a run is not evaluated, not of recognition, or no clip was held out in both.
    """
    from scipy.stats import binomtest

    said, told = _right(one), _right(other)
    clips = sorted(said.keys() & told.keys())
    if not clips:
        raise TrainError(f"{one} and {other} have no held-out clip in common: nothing to compare")
    a, b = (np.array([right[clip] for clip in clips]) for right in (said, told))
    draws = np.random.default_rng(seed).integers(0, len(clips), (BOOTSTRAPS, len(clips)))
    differences = b[draws].mean(1) - a[draws].mean(1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(differences, [tail, 100 - tail])
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return {
        "clips": len(clips),
        "accuracy": [float(a.mean()), float(b.mean())],
        "difference": {
            "value": float(b.mean() - a.mean()),
            "low": float(low),
            "high": float(high),
        },
        "only_one": only_a,
        "only_other": only_b,
        "p": float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0,
    }


def _right(path: Path) -> dict[str, bool]:
    """Return clip id -> whether the run has it right."""
    run = Run.load(path)
    if run.config.task != "recognition":
        raise TrainError(f"{path} is a run of {run.config.task}; only recognition can be compared")
    try:
        with open(path / "predictions.csv", newline="", encoding="utf-8") as file:
            return {row["clip"]: row["label"] == row["predicted"] for row in csv.DictReader(file)}
    except OSError as error:
        raise TrainError(
            f"{path} has no predictions.csv; judge it first: avarnet evaluate {path}"
        ) from error
    except KeyError as error:
        raise TrainError(f"{path / 'predictions.csv'} has no column {error}") from error
