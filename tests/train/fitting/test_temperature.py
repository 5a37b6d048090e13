"""A network's temperature against the one that a minimiser finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp
from small_avarnet import SIZES, network, some_clip

from train.data import Clips
from train.fitting.temperature import TEMPERATURES, fit_temperature
from train.fitting.trainer import TrainingSet

CPU = torch.device("cpu")


@pytest.mark.parametrize("pooling", ["mean", "logsumexp"])
@pytest.mark.parametrize(("sharper", "wrong"), [(20.0, 0.3), (60.0, 0.5), (0.5, 0.1)])
def test_the_loss_is_the_least(pooling: str, sharper: float, wrong: float) -> None:
    """Of a network that is surer than it is right, and of one that is not sure enough."""
    rng = np.random.default_rng(0)
    features = {f"c{n}": some_clip(rng, 3 + n % 9) for n in range(60)}
    clips, model = Clips(features, list(features), list(SIZES), {}), network(linear_term=False)
    model.temperature.fill_(1)
    batch = clips.batch(np.arange(60))
    with torch.no_grad():
        last = model.sequence_model.models[0].stages[-1].leave
        last.weight *= sharper
        last.bias *= sharper
        logits = model(batch.streams, batch.valid, batch.mask)[-1].double().numpy()
    each = [x[:, : len(features[clip_id])] for clip_id, x in zip(features, logits, strict=True)]

    def of_clips(temperature: float) -> np.ndarray:
        pool = (lambda x: x.mean(1)) if pooling == "mean" else (lambda x: logsumexp(x, 1))
        return log_softmax([pool(x / temperature) for x in each], 1)

    targets = of_clips(1.0).argmax(1)
    other = rng.random(60) < wrong
    targets[other] = rng.integers(0, 4, other.sum())

    def loss(temperature: float) -> float:
        return float(-of_clips(temperature)[np.arange(60), targets].mean())

    best = minimize_scalar(loss, bounds=(1, TEMPERATURES[-1]), method="bounded").x
    data = TrainingSet(clips, targets, 4, np.arange(60))
    found = fit_temperature(model, data, np.arange(60), CPU, pooling)
    assert found == pytest.approx(loss(float(model.temperature)), abs=1e-5)
    assert found <= min(loss(1.0) + 1e-5, loss(best) + 0.02)
    assert (model.temperature == 1) == (sharper < 1)
