"""The MTCN against the paper's equations, and what must not change its answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import Config
from train.fit import layers_to_cover
from train.fusion import Streams
from train.loss import mtcn_loss, pool
from train.mtcn import MTCN, Dropout
from train.network import AVARNet

SIZES = {"video": 5, "audio": 3}


def network(**settings: Any) -> AVARNet:
    torch.manual_seed(0)
    options = {"stages": 3, "layers": 4, "channels": 8, **settings}
    return AVARNet(SIZES, 4, Config(**options)).eval()


def by_the_paper(model: MTCN, x: np.ndarray) -> list[np.ndarray]:
    """MS-TCN for one clip (features, time), by its equations, in plain numpy."""

    def convolve(layer: torch.nn.Linear, h: np.ndarray, dilation: int) -> np.ndarray:
        weight = layer.weight.detach().double().numpy()  # (out, taps x in)
        taps = weight.reshape(len(weight), -1, len(h)).transpose(1, 0, 2)
        bias = layer.bias.detach().double().numpy()
        out = np.repeat(bias[:, None], h.shape[1], axis=1)
        reach = len(taps) // 2
        for t in range(h.shape[1]):
            for k, tap in enumerate(taps):
                at = t + (k - reach) * dilation
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


def test_the_loss_follows_the_papers_equations() -> None:
    torch.manual_seed(2)
    logits = 3 * torch.randn(2, 3, 4, 9)
    mask = torch.arange(9)[None] < torch.tensor([9, 5, 1])[:, None]
    targets = torch.tensor([0, 3, 1])
    expected = 0.0
    for stage in logits.double().numpy():
        log_p = stage - np.log(np.exp(stage).sum(1, keepdims=True))
        cross_entropy, smoothing, count = 0.0, 0.0, 0
        for clip, length in enumerate((9, 5, 1)):
            whole = stage[clip, :, :length].mean(1)
            cross_entropy -= whole[targets[clip]] - math.log(np.exp(whole).sum())
            change = np.abs(np.diff(log_p[clip, :, :length], axis=1))
            smoothing += (np.minimum(change, 4.0) ** 2).sum()
            count += change.size
        expected += cross_entropy / 3 + 0.15 * smoothing / count
    assert float(mtcn_loss(logits, mask, targets)) == pytest.approx(expected, rel=1e-4)


def inputs(
    length: int, seed: int = 0
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    streams = {n: torch.randn(1, length, d, generator=generator) for n, d in SIZES.items()}
    valid = {n: torch.rand(1, length, generator=generator) < 0.7 for n in SIZES}
    return streams, valid, torch.ones(1, length, dtype=torch.bool)


@given(st.integers(1, 40), st.integers(0, 30), st.booleans())
@settings(max_examples=30, deadline=None)
def test_padding_never_changes_a_clip(length: int, padding: int, causal: bool) -> None:
    model = network(causal=causal)
    streams, valid, mask = inputs(length)
    rubbish = {n: torch.full((1, padding, d), 1e3) for n, d in SIZES.items()}
    padded = {n: torch.cat([streams[n], rubbish[n]], 1) for n in SIZES}
    more = {n: torch.cat([valid[n], torch.ones(1, padding, dtype=torch.bool)], 1) for n in SIZES}
    longer = torch.cat([mask, torch.zeros(1, padding, dtype=torch.bool)], 1)
    with torch.no_grad():
        alone = model(streams, valid, mask)
        together = model(padded, more, longer)
        assert torch.allclose(alone, together[..., :length], atol=1e-4)
        assert torch.allclose(pool(alone[-1], mask), pool(together[-1], longer), atol=1e-4)


def test_a_causal_model_sees_no_future() -> None:
    model = network(causal=True)
    streams, valid, mask = inputs(30)
    changed = {n: rows.clone() for n, rows in streams.items()}
    for rows in changed.values():
        rows[:, 17:] += 5
    with torch.no_grad():
        one, other = model(streams, valid, mask), model(changed, valid, mask)
    assert torch.allclose(one[..., :17], other[..., :17], atol=1e-6)
    assert not torch.allclose(one[..., 17], other[..., 17], atol=1e-3)
    with torch.no_grad():
        one, other = network()(streams, valid, mask), network()(changed, valid, mask)
    assert not torch.allclose(one[..., 16], other[..., 16], atol=1e-3)


def test_missing_sound_is_not_silence() -> None:
    model = network()
    streams, _, mask = inputs(10)
    there = {n: torch.ones(1, 10, dtype=torch.bool) for n in SIZES}
    missing = {**there, "audio": torch.zeros(1, 10, dtype=torch.bool)}
    zeros = {**streams, "audio": torch.zeros(1, 10, 3)}
    with torch.no_grad():
        silence = model(zeros, there, mask)
        absent = model(zeros, missing, mask)
        whatever = model(streams, missing, mask)  # what stands in invalid rows has no influence
    assert not torch.allclose(silence, absent, atol=1e-3)
    assert torch.equal(absent, whatever)


def test_hidden_streams_leave_at_least_one() -> None:
    streams = Streams(SIZES, stream_dropout=0.9).train()
    torch.manual_seed(0)
    hidden = streams._hidden(torch.ones(500, 1, dtype=torch.bool))
    assert hidden is not None
    assert not hidden.all(1).any()
    assert 0.4 < hidden.float().mean() < 0.5
    assert streams.eval()._hidden(torch.ones(5, 1, dtype=torch.bool)) is None


def test_standardised_streams_have_mean_0_and_deviation_1() -> None:
    ready = Streams({"video": 4}).eval()
    rows = 100 + 5 * torch.randn(50, 4)
    changes = (rows[1:] - rows[:-1]).abs()
    ready.standardise("video", rows, changes)
    (out,) = ready({"video": rows[None]}, {"video": torch.ones(1, 50, dtype=torch.bool)})
    values, changes, absent = out[0].split([4, 4, 1], dim=1)
    assert torch.allclose(values.mean(0), torch.zeros(4), atol=1e-4)
    assert torch.allclose(values.std(0, unbiased=False), torch.ones(4), atol=1e-3)
    assert torch.allclose(changes[1:].mean(0), torch.zeros(4), atol=1e-4)
    assert not changes[0].any()
    assert not absent.any()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    dropout, x = Dropout(rate), torch.ones(1000, 1001)
    out = dropout(x)
    assert float((out == 0).float().mean()) == pytest.approx(rate, abs=0.005)
    assert float(out.mean()) == pytest.approx(1, abs=0.02)
    both_dropped = (out[:, 1:] == 0) & (out[:, :-1] == 0)  # neighbours share one drawn number
    assert float(both_dropped.float().mean()) == pytest.approx(dropout.rate**2, abs=0.005)
    assert not torch.equal(out, dropout(x))
    assert dropout.eval()(x) is x


@given(st.integers(1, 2000))
def test_layers_cover_the_clips(length: int) -> None:
    layers = layers_to_cover(np.array([length]))
    assert layers == 10 or 2 ** (layers + 1) - 1 >= length
    assert layers == 1 or 2**layers - 1 < length
