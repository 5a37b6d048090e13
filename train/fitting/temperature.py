"""Chooses the temperature of a trained network: how sure its probabilities are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

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
    """Give a network the temperature whose validation loss is the least; return that loss.

    The epoch that is kept is the last of those that are about as good, and by then a network that
    learns few clips is surer than it is right (Guo et al., ICML 2017).

    Args:
        model: trained, on the device, without a linear term yet.
        data: the clips.
        val: indices of the validation clips.
        device: where to compute.
        pooling: from snippets to clips, see `train.config.Config`.
    """
    targets = data.targets[val]
    losses = []
    for temperature in TEMPERATURES:
        model.temperature.fill_(temperature)
        log_p = score(model, data.clips, val, device, POOLING[pooling]).log_probabilities
        losses.append(float(-log_p[np.arange(len(val)), targets].mean()))
    best = int(np.argmin(losses))
    model.temperature.fill_(TEMPERATURES[best])
    return losses[best]
