"""Chooses the temperature of a trained network: how sure its probabilities are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from train.fitting.history import AS_GOOD
from train.fitting.linear_fit import grouped_mean
from train.fitting.trainer import TrainingSet
from train.inference import score
from train.losses import POOLING
from train.models.network import AVARNet

# one and more: of few clips that are all right, less would make a network sure of everything
TEMPERATURES = 2.0 ** np.arange(0, 3.75, 0.25)


def fit_temperature(
    model: AVARNet,
    data: TrainingSet,
    val: NDArray[np.int64],
    device: torch.device,
    pooling: str,
) -> float:
    """Give a network its temperature; return its validation loss with it.

    The epoch that is kept is the last of those that are about as good, and by then a network that
    learns few clips is surer than it is right (Guo et al., ICML 2017). As it was chosen on the
    same clips, their loss is optimistic: of temperatures within half a standard error of the best,
    the highest is taken.

    Args:
        model: trained, on the device, without a linear term yet.
        data: the clips.
        val: indices of the validation clips.
        device: where to compute.
        pooling: from snippets to clips, see `train.config.Config`.
    """
    targets, even = data.targets[val], np.full(len(val), 1 / len(val))
    losses = np.empty((len(TEMPERATURES), len(val)))
    for own, temperature in zip(losses, TEMPERATURES, strict=True):
        model.temperature.fill_(temperature)
        log_p = score(model, data.clips, val, device, POOLING[pooling]).log_probabilities
        own[:] = -log_p[np.arange(len(val)), targets]
    best = losses[losses.mean(1).argmin()]
    more = (grouped_mean(own - best, even, data.groups[val]) for own in losses)
    chosen = max(np.flatnonzero([mean <= AS_GOOD * error for mean, error in more]))
    model.temperature.fill_(TEMPERATURES[chosen])
    return float(losses[chosen].mean())
