"""What the same models reach where a part of what they read is missing."""

from __future__ import annotations

from collections.abc import Sequence

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
        f"{share:.0%} of snippets lost".replace("%", " %"): clips.with_snippets_lost(share, seed)
        for share in LOST_SHARES
    }
    if len(clips.sizes) > 1:
        found |= {f"without {name}": clips.without(name) for name in clips.sizes}
    return found


def robustness(
    run: Run, whole: Sequence[ClipPrediction], less: Sequence[ClipPrediction]
) -> Robustness:
    """Return the accuracy or AP of impaired clips, and how much was lost.

    Args:
        run: whose predictions they are.
        whole: of the clips as they are.
        less: of the same clips, impaired.
    """
    groups = group_numbers([clip.id for clip in whole], run.groups)
    drawn = list(drawn_anew(groups, BOOTSTRAPS, np.random.default_rng(run.config.seed)))
    if run.config.task == "recognition":
        right = [np.array([c.predicted == c.label for c in own]) for own in (whole, less)]
        lost = right[0].astype(float) - right[1]
        draws = np.array([times @ lost / times.sum() for times in drawn])
        return {
            "value": float(right[1].mean()),
            "loss": _estimate(float(lost.mean()), draws, groups),
        }
    truth = [run.truth[clip.id] for clip in whole]
    ap = AREAS.index("ap")
    values, areas = [], []
    for own in (whole, less):
        scores = [clip.snippets[:, 1] for clip in own]
        ranking = Ranking(*frames(truth, scores, run.recipe.snippet_seconds))
        values.append(float(ranking.areas(np.ones(len(groups), np.int64))[ap]))
        areas.append(ranking.all_areas(drawn)[:, ap])
    draws = areas[0] - areas[1]
    draws = draws[~np.isnan(draws)]
    loss = _estimate(values[0] - values[1], draws, groups) if len(draws) else None
    return {"value": values[1], "loss": loss}


def _estimate(value: float, draws: NDArray[np.float64], groups: NDArray[np.int64]) -> Estimate:
    low, high = interval(value, draws, groups).clip(-1, 1)
    return {"value": value, "low": float(low), "high": float(high)}
