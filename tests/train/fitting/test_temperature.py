"""A network's temperature against the one that a minimiser finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp
from scipy.stats import sem
from small_avarnet import SIZES, network, some_clip

from train.data import Clips
from train.fitting.temperature import TEMPERATURES, fit_temperature
from train.fitting.trainer import TrainingSet

CPU = torch.device("cpu")


@pytest.mark.parametrize("pooling", ["mean", "logsumexp"])
@pytest.mark.parametrize(("sharper", "wrong"), [(20.0, 0.3), (10.0, 0.4), (0.5, 0.1)])
def test_it_is_the_highest_of_those_that_are_as_good(
    pooling: str, sharper: float, wrong: float
) -> None:
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

    def losses(temperature: float) -> np.ndarray:
        return -of_clips(temperature)[np.arange(60), targets]

    best = minimize_scalar(
        lambda x: losses(x).mean(), bounds=(1, TEMPERATURES[-1]), method="bounded"
    ).x

    def as_good(temperature: float) -> bool:
        more = losses(temperature) - losses(best)
        beside_it = 1e-3  # the best may lie between two of the temperatures
        return bool(more.mean() <= 0.5 * sem(more) + beside_it)

    data = TrainingSet(clips, targets, 4, np.arange(60))
    found = fit_temperature(model, data, np.arange(60), CPU, pooling)
    chosen = float(model.temperature)
    assert found == pytest.approx(losses(chosen).mean(), abs=1e-5)
    assert as_good(chosen)
    assert not as_good(chosen * 2**0.5)
    assert (chosen == 1) == (sharper < 1)
