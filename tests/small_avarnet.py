"""Small networks of the default kind and what they read, for tests of models and training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from features import Features
from train.config import Config
from train.models.network import AVARNet

SIZES = {"video": 5, "audio": 3}


def network(**settings: Any) -> AVARNet:
    torch.manual_seed(0)
    options = {"stages": 3, "layers": 4, "channels": 8, **settings}
    model = AVARNet(SIZES, 4, Config(**options)).eval()
    model.temperature.fill_(1.7)  # as if it were fitted, and the linear term
    if model.linear_term is not None:
        for values in model.linear_term.state_dict().values():
            values.normal_()
    return model


def inputs(
    length: int, seed: int = 0
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    streams = {n: torch.randn(1, length, d, generator=generator) for n, d in SIZES.items()}
    valid = {n: torch.rand(1, length, generator=generator) < 0.7 for n in SIZES}
    return streams, valid, torch.ones(1, length, dtype=torch.bool)


def some_clip(rng: np.random.Generator, length: int) -> Features:
    return Features(
        {name: rng.normal(size=(length, d)).astype(np.float16) for name, d in SIZES.items()},
        {name: np.ones(length, bool) for name in SIZES},
        0.25,
        length / 4,
    )
