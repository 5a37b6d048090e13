"""The MTCN against the paper's equations, and what must not change its answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from features import Features
from train.config import FUSIONS, MODELS, Config, TrainError
from train.data import Clips
from train.fitting.trainer import Sides, _Training, fit, layers_to_cover
from train.losses import mtcn_loss, pool
from train.models.fusion import Streams
from train.models.mtcn import MTCN, Stage
from train.models.network import AVARNet
from train.models.random_numbers import drawing_from, kept

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
    moments = {
        part: (x.mean(0), x.std(0, unbiased=False))
        for part, x in (("value", rows), ("change", changes))
    }
    ready.standardise("video", moments)
    (out,) = ready({"video": rows[None]}, {"video": torch.ones(1, 50, dtype=torch.bool)})
    values, changes, absent = out.split([4, 4, 1], dim=1)
    assert torch.allclose(values.mean(0), torch.zeros(4), atol=1e-4)
    assert torch.allclose(values.std(0, unbiased=False), torch.ones(4), atol=1e-3)
    assert torch.allclose(changes[1:].mean(0), torch.zeros(4), atol=1e-4)
    assert not changes[0].any()
    assert not absent.any()


def test_moments_are_those_of_all_valid_rows_together() -> None:
    rng = np.random.default_rng(0)
    clips = {f"c{n}": some_clip(rng, 1 + 3 * n) for n in range(6)}
    for n, clip in enumerate(clips.values()):
        clip.streams["video"][:] += np.float16(5 * n)
        clip.valid["video"][::3] = n == 4
        clip.valid["audio"][:] = False
    data = Clips(clips, list(clips), list(SIZES), {})
    chosen = np.array([1, 2, 4, 5])
    rows = [(clips[f"c{n}"].video.astype(float), clips[f"c{n}"].video_valid) for n in chosen]
    values = np.concatenate([x[valid] for x, valid in rows])
    changes = np.concatenate([np.abs(np.diff(x, axis=0))[v[1:] & v[:-1]] for x, v in rows])
    found = data.moments("video", chosen)
    for part, expected in (("value", values), ("change", changes)):
        assert found[part][0].numpy() == pytest.approx(expected.mean(0), rel=1e-4)
        assert found[part][1].numpy() == pytest.approx(expected.std(0), rel=1e-4)
    assert data.moments("audio", chosen) == {}


@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_averages_are_those_of_the_snippets(length: int) -> None:
    data = Clips({"a": some_clip(np.random.default_rng(0), length)}, ["a"], list(SIZES), {})
    table, (average,) = data.snippets(0), data.averages(np.array([0]))
    assert table.shape == (length, 2 * (5 + 3) + 2)
    assert average[:5] == pytest.approx(table[:, :5].mean(0), abs=1e-5)
    changes = table[1:, 5:10].mean(0) if length > 1 else table[0, 5:10]  # the first one's is twice
    assert average[5:10] == pytest.approx(changes, abs=1e-5)


@pytest.mark.parametrize("rate", [13 / 128, 0.5, 115 / 128])
def test_values_are_kept_at_the_rate_and_each_for_itself(rate: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1001)
    drawn = kept(x, rate)
    assert set(drawn.unique().tolist()) == {0, 1}
    assert float((drawn == 0).float().mean()) == pytest.approx(rate, abs=0.002)
    both_dropped = (drawn[:, 1:] == 0) & (drawn[:, :-1] == 0)  # neighbours share one drawn number
    assert float(both_dropped.float().mean()) == pytest.approx(rate**2, abs=0.002)
    assert not torch.equal(drawn, kept(x, rate))


def test_a_stage_takes_the_nearest_rate_that_can_be_drawn() -> None:
    rates = [Stage(2, 2, 1, 2, rate, causal=False).dropout for rate in (0, 0.3, 0.999)]
    assert rates == [0, 38 / 128, 127 / 128]


@given(st.integers(1, 2000))
def test_layers_cover_the_clips(length: int) -> None:
    layers = layers_to_cover(np.array([length]))
    assert layers == 6 or 2 ** (layers + 1) - 1 >= length
    assert layers == 1 or 2**layers - 1 < length


@pytest.mark.parametrize("causal", [False, True])
def test_training_gradients_are_those_of_the_plain_layers(causal: bool) -> None:
    torch.manual_seed(0)
    stage = Stage(5, 4, layers=4, channels=6, dropout=0.0, causal=causal).double()
    x = torch.randn(11, 3, 5, dtype=torch.double, requires_grad=True)  # the last taps see nothing
    mask = (torch.arange(11)[:, None, None] < torch.tensor([11, 4, 9])[:, None]).double()
    target = torch.randn(11, 3, 4) * mask
    found = []
    for training in (True, False):
        stage.train(training)
        y = stage(x, mask) * mask
        gradients = torch.autograd.grad((y * target).sum(), [x, *stage.parameters()])
        found.append([y, *gradients])
    for ours, plain in zip(*found, strict=True):
        assert torch.allclose(ours, plain, atol=1e-10)


def test_gradients_with_dropout_are_those_of_small_differences() -> None:
    torch.manual_seed(0)
    stage = Stage(5, 4, layers=3, channels=6, dropout=0.5, causal=False).double().train()
    mask = (torch.arange(9)[:, None, None] < torch.tensor([9, 4])[:, None]).double()

    def answer(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        named = dict(zip(dict(stage.named_parameters()), weights, strict=True))
        with drawing_from(1):  # drops the same ones each time
            return functional_call(stage, named, (x, mask)) * mask

    x = torch.randn(9, 2, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(answer, (x, *stage.parameters()), check_undefined_grad=False)


def test_a_dropped_value_is_zero_and_a_kept_one_counts_more() -> None:
    torch.manual_seed(0)
    stage = Stage(6, 6, layers=1, channels=6, dropout=0.5, causal=False).train()
    for linear in (stage.enter, stage.leave):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    x = torch.randn(400, 1, 6)
    y = stage(x, torch.ones(400, 1, 1))
    gone = y == x
    assert 0.4 < gone.float().mean() < 0.6
    (bias,) = torch.autograd.grad(y.sum(), [stage.layers[0].mix.bias])
    assert torch.allclose(bias, 2.0 * (~gone).sum((0, 1)))  # what is kept counts twice


@pytest.mark.parametrize("model", ["mtcn", "tcn", "linear"])
@pytest.mark.parametrize("fusion", ["early", "gated", "late"])
def test_a_stack_trains_each_model_as_if_alone(model: str, fusion: str) -> None:
    """Nothing random here: the stack and its members must agree step by step."""
    rng = np.random.default_rng(0)
    clips = {f"c{n}": some_clip(rng, 5 + n % 3) for n in range(24)}
    data = Clips(clips, list(clips), list(SIZES), {})
    config = Config(
        model=model, fusion=fusion, stages=2, layers=2, channels=8, dropout=0, input_dropout=0,
        stream_dropout=0, scene_dropout=0, offset_noise=0, epochs=3, batch_size=24, starts=1,
    )  # fmt: skip
    targets = np.arange(24) % 3
    sides = [Sides(np.arange(6, 24), np.arange(6)), Sides(np.arange(18), np.arange(18, 24))]
    together = fit(data, targets, 3, sides, 0, config, torch.device("cpu"))
    torch.manual_seed(0)
    first = [fit(data, targets, 3, sides[:1], 0, config, torch.device("cpu"))[0]]
    for (ours, history), (alone, expected) in zip(together[:1], first, strict=True):
        assert [e.train_loss for e in history] == pytest.approx(
            [e.train_loss for e in expected], rel=1e-4
        )
        for name, value in alone.state_dict().items():
            assert torch.allclose(ours.state_dict()[name], value, atol=1e-4), name
    assert together[0][1] != together[1][1]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_model_and_fusion_ignores_padding(model: str, fusion: str) -> None:
    network_ = network(model=model, fusion=fusion)
    streams, valid, mask = inputs(9)
    padded = {
        n: torch.cat([rows, torch.full((1, 4, SIZES[n]), 1e3)], 1) for n, rows in streams.items()
    }
    more = {n: torch.cat([v, torch.ones(1, 4, dtype=torch.bool)], 1) for n, v in valid.items()}
    longer = torch.cat([mask, torch.zeros(1, 4, dtype=torch.bool)], 1)
    with torch.no_grad():
        alone, together = network_(streams, valid, mask), network_(padded, more, longer)
    assert alone.shape[1:] == (1, 4, 9)
    assert torch.allclose(alone, together[..., :9], atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "bottleneck"])
def test_every_causal_model_sees_no_future(model: str, fusion: str) -> None:
    network_ = network(model=model, fusion=fusion, causal=True)
    streams, valid, mask = inputs(20)
    changed = {n: rows.clone() for n, rows in streams.items()}
    for rows in changed.values():
        rows[:, 12:] += 5
    with torch.no_grad():
        one, other = network_(streams, valid, mask), network_(changed, valid, mask)
    assert torch.allclose(one[..., :12], other[..., :12], atol=1e-5)
    assert not torch.allclose(one[..., 12:], other[..., 12:], atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_reach_is_how_far_a_snippet_is_seen(model: str, fusion: str, causal: bool) -> None:
    if fusion == "bottleneck":
        causal = False
    # few layers: what is handed on from far away fades below a float's precision
    network_ = network(model=model, fusion=fusion, causal=causal, stages=2, layers=2)
    streams, valid, mask = inputs(20)
    changed = {n: torch.cat([rows[:, :1] + 5, rows[:, 1:]], 1) for n, rows in streams.items()}
    with torch.no_grad():
        one, other = network_(streams, valid, mask), network_(changed, valid, mask)
    differs = (one != other)[-1, 0].any(0)
    last = int(differs.nonzero().max())
    assert last == (19 if network_.reach is None else network_.reach)


def test_bottlenecks_have_no_causal_form() -> None:
    with pytest.raises(TrainError, match="bottleneck fusion sees the whole clip"):
        Config(fusion="bottleneck", causal=True)


def some_clip(rng: np.random.Generator, length: int) -> Features:
    return Features(
        {name: rng.normal(size=(length, d)).astype(np.float16) for name, d in SIZES.items()},
        {name: np.ones(length, bool) for name in SIZES},
        0.25,
        length / 4,
    )


def test_the_loss_is_torchs_cross_entropy() -> None:
    torch.manual_seed(3)
    logits, mask = torch.randn(1, 6, 4, 5), torch.ones(6, 5, dtype=torch.bool)
    targets, weights = torch.randint(4, (6,)), torch.rand(4)
    for spread in (0.0, 0.2):
        ours = mtcn_loss(logits, mask, targets, 0.0, 4.0, weights, spread)
        theirs = torch.nn.functional.cross_entropy(
            logits[0].mean(2), targets, weights, label_smoothing=spread
        )
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    # clips without snippets fill up batches and count for nothing
    empty = torch.cat([mask, torch.zeros(2, 5, dtype=torch.bool)])
    more = torch.cat([logits, torch.randn(1, 2, 4, 5)], 1)
    filled = mtcn_loss(
        more, empty, torch.cat([targets, torch.tensor([0, 1])]), 0.1, 4.0, weights, 0.2
    )
    assert float(filled) == pytest.approx(
        float(mtcn_loss(logits, mask, targets, 0.1, 4.0, weights, 0.2)), rel=1e-5
    )


def test_the_focal_loss_cares_less_for_what_is_known() -> None:
    logits = torch.tensor([[[[4.0], [0.0]], [[0.5], [0.0]]]])
    mask = torch.ones(2, 1, dtype=torch.bool)
    p = torch.softmax(logits[0, :, :, 0], 1)[:, 0]
    expected = float((-((1 - p) ** 2) * p.log()).mean())
    assert float(mtcn_loss(logits, mask, torch.tensor([0, 0]), focus=2.0)) == pytest.approx(
        expected
    )


@pytest.mark.parametrize("fusion", ["early", "gated", "late"])
def test_a_step_in_two_parts_is_the_whole_step(
    fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing random here: padding, the loss and its gradients must not show where it was cut."""
    config = Config(
        fusion=fusion, stages=2, layers=2, channels=8, dropout=0, input_dropout=0,
        stream_dropout=0, scene_dropout=0, offset_noise=0, batch_size=9,
    )  # fmt: skip
    losses, weights = [], []
    for least in (10**9, 1):
        monkeypatch.setattr("train.fitting.trainer.STACK_SNIPPETS", least)
        training = training_of(config)
        assert len(training.readers) == (1 if least > 1 else 2)
        losses.append([float(training.step(indices)) for indices in np.arange(18).reshape(2, 1, 9)])
        weights.append(training.params)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-5), name


def test_threads_do_not_change_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.fitting.trainer.STACK_SNIPPETS", 1)
    config = Config(stages=2, layers=2, channels=8, stream_dropout=0.3, time_mask=0.3, batch_size=9)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            training = training_of(config)
            assert (training.threads is None) == (threads == 1)
            found.append([training.step(indices) for indices in np.arange(18).reshape(2, 1, 9)])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def training_of(config: Config) -> _Training:
    rng = np.random.default_rng(0)
    clips = {f"c{n}": some_clip(rng, 5 + n % 7) for n in range(24)}
    data = Clips(clips, list(clips), list(SIZES), {})
    sides = Sides(np.arange(6, 24), np.arange(6))
    return _Training(data, np.arange(24) % 3, 3, [sides], 0, config, torch.device("cpu"))
