"""What must not change what a network predicts: padding, the future, what is absent."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_avarnet import SIZES, inputs, network

from train.config import FUSIONS, MODELS, Config, TrainError
from train.losses import pool


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
    valid = {n: torch.ones(1, 10, dtype=torch.bool) for n in SIZES}
    missing = {**valid, "audio": torch.zeros(1, 10, dtype=torch.bool)}
    zeros = {**streams, "audio": torch.zeros(1, 10, 3)}
    with torch.no_grad():
        silence = model(zeros, valid, mask)
        absent = model(zeros, missing, mask)
        whatever = model(streams, missing, mask)  # what stands in invalid rows has no influence
    assert not torch.allclose(silence, absent, atol=1e-3)
    assert torch.equal(absent, whatever)


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
def test_the_receptive_field_is_how_far_a_snippet_is_seen(
    model: str, fusion: str, causal: bool
) -> None:
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
    assert last == (19 if network_.receptive_field is None else network_.receptive_field)


def test_bottlenecks_have_no_causal_form() -> None:
    with pytest.raises(TrainError, match="bottleneck fusion sees the whole clip"):
        Config(fusion="bottleneck", causal=True)


def test_context_counts_in_prediction_as_often_as_training_had_it() -> None:
    def predicted(context_dropout: float, scaled_context: bool) -> torch.Tensor:
        settings = {"context_dropout": context_dropout, "scaled_context": scaled_context}
        return network(**settings)(*inputs(9))

    full = predicted(0.75, scaled_context=False)  # as runs before version 7
    assert torch.equal(full, predicted(0.0, scaled_context=True))
    assert not torch.allclose(full, predicted(0.75, scaled_context=True), atol=1e-3)
