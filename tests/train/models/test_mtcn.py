"""The MTCN against the equations of MS-TCN, and its training kernel against plain layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call

from train.models.mtcn import MTCN, Stage
from train.models.random_numbers import drawing_from


def by_the_paper(model: MTCN, x: np.ndarray) -> list[np.ndarray]:
    """MS-TCN for one clip (features, time), by its equations, in plain numpy."""

    def convolve(layer: torch.nn.Linear, h: np.ndarray, dilation: int) -> np.ndarray:
        weight = layer.weight.detach().double().numpy()  # (out, taps x in)
        taps = weight.reshape(len(weight), -1, len(h)).transpose(1, 0, 2)
        bias = layer.bias.detach().double().numpy()
        out = np.repeat(bias[:, None], h.shape[1], axis=1)
        centre = len(taps) // 2
        for t in range(h.shape[1]):
            for k, tap in enumerate(taps):
                at = t + (k - centre) * dilation
                if 0 <= at < h.shape[1]:
                    out[:, t] += tap @ h[:, at]
        return out

    outputs, stage_input = [], x.astype(np.float64)
    for stage in model.stages:
        h = convolve(stage.enter, stage_input, 1)
        for level, layer in enumerate(stage.layers):
            h = h + convolve(layer.mix, np.maximum(convolve(layer.dilated, h, 2**level), 0), 1)
        y = convolve(stage.leave, h, 1)
        outputs.append(y)
        stage_input = np.exp(y - y.max(0)) / np.exp(y - y.max(0)).sum(0)
    return outputs


def test_the_model_follows_the_papers_equations() -> None:
    torch.manual_seed(1)
    model = MTCN(6, 3, stages=3, layers=4, channels=7).eval()
    x = torch.randn(2, 6, 20)
    with torch.no_grad():
        ours = model(x, torch.ones(2, 20, dtype=torch.bool)).numpy()
    assert ours.shape == (3, 2, 3, 20)
    for clip in range(2):
        for stage, expected in enumerate(by_the_paper(model, x[clip].numpy())):
            assert np.allclose(ours[stage, clip], expected, atol=1e-4)


def test_the_papers_defaults() -> None:
    model = MTCN(10, 5)
    assert len(model.stages) == 4
    layers = model.stages[0].layers
    assert [layer.dilation for layer in layers] == [2**level for level in range(10)]
    assert model.stages[0].enter.out_features == 64


def test_a_stage_takes_the_nearest_rate_that_can_be_drawn() -> None:
    rates = [Stage(2, 2, 1, 2, causal=False, dropout=rate).dropout for rate in (0, 0.3, 0.999)]
    assert rates == [0, 38 / 128, 127 / 128]


@pytest.mark.parametrize("causal", [False, True])
def test_training_gradients_are_those_of_the_plain_layers(causal: bool) -> None:
    torch.manual_seed(0)
    stage = Stage(5, 4, layers=4, channels=6, dropout=0.0, causal=causal).double()
    x = torch.randn(3, 11, 5, dtype=torch.double, requires_grad=True)  # the last taps see nothing
    mask = (torch.arange(11)[:, None] < torch.tensor([11, 4, 9])[:, None, None]).double()
    target = torch.randn(3, 11, 4) * mask
    found = []
    for fast in (True, False):
        stage.fast = fast
        y = stage(x, mask) * mask
        gradients = torch.autograd.grad((y * target).sum(), [x, *stage.parameters()])
        found.append([y, *gradients])
    for ours, plain in zip(*found, strict=True):
        assert torch.allclose(ours, plain, atol=1e-10)


def test_gradients_with_dropout_are_those_of_small_differences() -> None:
    torch.manual_seed(0)
    stage = Stage(5, 4, layers=3, channels=6, dropout=0.5, causal=False).double().train()
    mask = (torch.arange(9)[:, None] < torch.tensor([9, 4])[:, None, None]).double()

    def answer(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        named = dict(zip(dict(stage.named_parameters()), weights, strict=True))
        with drawing_from(1):  # drops the same ones each time
            return functional_call(stage, named, (x, mask)) * mask

    x = torch.randn(2, 9, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(answer, (x, *stage.parameters()), check_undefined_grad=False)


def test_a_dropped_value_is_zero_and_a_kept_one_counts_more() -> None:
    torch.manual_seed(0)
    stage = Stage(6, 6, layers=1, channels=6, dropout=0.5, causal=False).train()
    for linear in (stage.enter, stage.leave):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    x = torch.randn(1, 400, 6)
    y = stage(x, torch.ones(1, 400, 1))
    gone = y == x
    assert 0.4 < gone.float().mean() < 0.6
    (bias,) = torch.autograd.grad(y.sum(), [stage.layers[0].mix.bias])
    assert torch.allclose(bias, 2.0 * (~gone).sum((0, 1)))  # what is kept counts twice


def test_prediction_is_what_training_with_context_dropout_gives_on_average() -> None:
    torch.manual_seed(0)
    model = MTCN(5, 2, stages=1, layers=3, channels=6, dropout=0.0, context_dropout=0.75)
    x, mask = torch.randn(1, 5, 9), torch.ones(1, 9, dtype=torch.bool)
    with torch.no_grad():
        drawn = {tuple(model(x, mask).flatten().tolist()) for _ in range(100)}
        predicted = model.eval()(x, mask).flatten().numpy()
    alone = model.stages[0].leave(model.stages[0].enter(x.mT)).mT.flatten().detach().numpy()
    assert len(drawn) == 2  # all layers, or none
    (full,) = (np.array(row) for row in drawn if not np.allclose(row, alone, atol=1e-6))
    assert np.allclose(predicted, 0.25 * full + 0.75 * alone, atol=1e-6)
