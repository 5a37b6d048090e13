"""Fits the linear term of a trained network, and chooses how much it counts."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from train.baselines.logistic import logistic
from train.fitting.trainer import SplitIndices, TrainingSet
from train.models.linear_term import LinearTerm

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

FOLDS = 5
FACTORS = np.r_[0, 2.0 ** np.arange(-3, 3.5, 0.5)]  # of the regression's logits


def fit_linear_term(
    term: LinearTerm, data: TrainingSet, split: SplitIndices, loss: float, balanced: bool
) -> None:
    """Make the term the logistic baseline's logits, times what `choose_factor` finds.

    Network and term are each fitted by themselves: on what the term leaves over, a network learns
    few clips by heart (benchmarks/CHOICES.md). So what both know is counted twice; where the
    network knows more, the term counts less, in proportion to their losses.

    Args:
        term: of a network, zero as it was made.
        data: the clips.
        split: those that train, and those that choose.
        loss: of the network's predictions of the latter.
        balanced: weigh classes by the inverse of how often they occur.
    """
    averages, targets = data.clips.averages(split.train, np.nan), data.targets[split.train]
    groups = data.groups[split.train]
    factor = choose_factor(averages, targets, groups, data.num_classes, balanced)
    if factor == 0:
        return
    model = logistic(averages, targets, balanced)
    logits = _logits(model, data.clips.averages(split.val, np.nan))
    own_loss = float(_losses(factor * logits, data.targets[split.val]).mean())
    factor *= min(1.0, loss / own_loss)
    scaler, _, regression = model
    weight, bias = regression.coef_, regression.intercept_
    if data.num_classes == 2:  # of which the second one's is given
        weight, bias = (np.concatenate([np.zeros_like(x), x]) for x in (weight, bias))
    # of a value that no training clip has there is no mean
    mean, scale = np.nan_to_num(scaler.mean_), np.nan_to_num(scaler.scale_, nan=1)
    fitted = (mean, factor * weight / scale, factor * bias)
    with torch.no_grad():
        for empty, values in zip((term.mean, term.weight, term.bias), fitted, strict=True):
            empty.copy_(torch.from_numpy(values).float())


def choose_factor(
    averages: NDArray[np.float32],
    targets: NDArray[np.int64],
    groups: NDArray[np.int64],
    num_classes: int,
    balanced: bool,
) -> float:
    """Return by what the logits of a logistic regression are to be multiplied.

    Chosen on clips that a regression was not fitted on, whole groups at a time: the least factor
    whose loss is within a standard error of the best one's (Breiman et al. 1984). It is zero where
    averages tell nothing.

    Args:
        averages: (clips, values), NaN where a clip lacks something.
        targets: (clips,) class of each.
        groups: (clips,) number of the recording of each.
        num_classes: number of classes.
        balanced: weigh classes by the inverse of how often they occur.
    """
    logits = _held_out_logits(averages, targets, groups, num_classes, balanced)
    judged = np.flatnonzero(~np.isnan(logits).any(1))
    if len(set(targets[judged])) < num_classes:
        return 0.0
    real, groups = targets[judged], groups[judged]
    losses = _losses(FACTORS[:, None, None] * logits[judged], real)  # (factors, clips)
    weights = (1 / np.bincount(real))[real] if balanced else np.ones(len(real))
    weights /= weights.sum()
    best = (losses @ weights).argmin()
    more = (grouped_mean(difference, weights, groups) for difference in losses - losses[best])
    as_good = [mean <= error for mean, error in more]
    return float(FACTORS[as_good.index(True)])


def _held_out_logits(
    averages: NDArray[np.float32],
    targets: NDArray[np.int64],
    groups: NDArray[np.int64],
    num_classes: int,
    balanced: bool,
) -> NDArray[np.float64]:
    """Return (clips, classes) logits; NaN where a fold cannot learn every class."""
    from sklearn.model_selection import StratifiedGroupKFold

    logits = np.full((len(targets), num_classes), np.nan)
    folds = min(FOLDS, len(set(groups)), int(np.bincount(targets).max()))
    if folds < 2:
        return logits
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # of these few are judged
        splits = list(StratifiedGroupKFold(folds).split(averages, targets, groups))
    for known, held_out in splits:
        if len(held_out) and len(set(targets[known])) == num_classes:
            model = logistic(averages[known], targets[known], balanced)
            logits[held_out] = _logits(model, averages[held_out])
    return logits


def _logits(model: Pipeline, averages: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (clips, classes) logits of a logistic regression."""
    found: NDArray[np.float64] = model.decision_function(averages)
    return found if found.ndim == 2 else np.stack([np.zeros_like(found), found], 1)


def _losses(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the cross-entropy (..., clips) of logits (..., clips, classes)."""
    from scipy.special import log_softmax

    own = np.expand_dims(targets, (*range(logits.ndim - 2), -1))
    found: NDArray[np.float64] = -np.take_along_axis(log_softmax(logits, -1), own, -1)[..., 0]
    return found


def grouped_mean(
    values: NDArray[np.floating], weights: NDArray[np.float64], groups: NDArray[np.int64]
) -> tuple[float, float]:
    """Return the weighted mean of clips and its standard error, where groups are independent.

    Args:
        values: (clips,).
        weights: (clips,), whose sum is one.
        groups: (clips,) number of the recording of each.
    """
    mean = float(weights @ values)
    _, numbers = np.unique(groups, return_inverse=True)
    deviations = np.bincount(numbers, weights * (values - mean))
    count = len(deviations)
    return mean, math.sqrt(float(deviations @ deviations) * count / max(count - 1, 1))
