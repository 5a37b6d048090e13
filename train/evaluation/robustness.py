"""What the same models reach where a part of what they read is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from train.data import Clips
from train.evaluation.bootstrap import BOOTSTRAPS, drawn_anew, group_numbers, interval
from train.evaluation.curves import AREAS, Ranking
from train.evaluation.figures import Estimate, Robustness
from train.evaluation.frames import frames
from train.inference import ClipPrediction
from train.run import Run

LOST_SHARES = (0.25, 0.5)  # of a clip's snippets


def impaired(clips: Clips, seed: int) -> dict[str, Clips]:
    """Return clips with snippets lost at random, and without each stream if there are several.

    Args:
        clips: as they are.
        seed: chooses the snippets.
    """
    found = {
        f"{100 * share:.0f} % of snippets lost": clips.with_snippets_lost(share, seed)
        for share in LOST_SHARES
    }
    if len(clips.sizes) > 1:
        found |= {f"without {name}": clips.without(name) for name in clips.sizes}
    return found


def robustness(
    run: Run,
    whole: Sequence[ClipPrediction],
    less: Mapping[str, Sequence[ClipPrediction]],
) -> dict[str, Robustness]:
    """Return the accuracy or AP of impaired clips, and how much was lost.

    Args:
        run: whose predictions they are.
        whole: of the clips as they are.
        less: what is missing -> those of the same clips, impaired.
    """
    groups = group_numbers([clip.id for clip in whole], run.groups)
    drawn = list(drawn_anew(groups, BOOTSTRAPS, np.random.default_rng(run.config.seed)))
    figures = _accuracies if run.config.task == "recognition" else _precisions
    before, draws_before = figures(run, whole, drawn)
    found: dict[str, Robustness] = {}
    for name, own in less.items():
        value, draws = figures(run, own, drawn)
        lost = draws_before - draws
        lost = lost[~np.isnan(lost)]
        loss = _estimate(before - value, lost, groups) if len(lost) else None
        found[name] = {"value": None if np.isnan(value) else value, "loss": loss}
    return found


def _accuracies(
    run: Run, clips: Sequence[ClipPrediction], drawn: Sequence[NDArray[np.int64]]
) -> tuple[float, NDArray[np.float64]]:
    """Return the accuracy, and that of each draw."""
    right = np.array([clip.predicted == clip.label for clip in clips], dtype=np.float64)
    return float(right.mean()), np.array([times @ right / times.sum() for times in drawn])


def _precisions(
    run: Run, clips: Sequence[ClipPrediction], drawn: Sequence[NDArray[np.int64]]
) -> tuple[float, NDArray[np.float64]]:
    """Return the AP of frames, and that of each draw: not a number where all are of one kind."""
    truth = [run.truth[clip.id] for clip in clips]
    scores = [clip.snippets[:, 1] for clip in clips]
    ranking = Ranking(*frames(truth, scores, run.recipe.snippet_seconds))
    ap = AREAS.index("ap")
    value = ranking.areas(np.ones(len(clips), np.int64))[ap]
    return float(value), ranking.all_areas(drawn)[:, ap]


def _estimate(value: float, draws: NDArray[np.float64], groups: NDArray[np.int64]) -> Estimate:
    low, high = interval(value, draws, groups).clip(-1, 1)
    return {"value": value, "low": float(low), "high": float(high)}
