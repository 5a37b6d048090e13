"""Dropout masks are what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import vmap

from train.models.random_numbers import LOWEST, _bytes, dropout_mask


@pytest.mark.parametrize("rate", [13 / 128, 0.5, 115 / 128])
def test_values_are_kept_at_the_rate_and_each_for_itself(rate: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1001)
    drawn = dropout_mask(x, rate)
    assert set(drawn.unique().tolist()) == {0, 1}
    assert float((drawn == 0).float().mean()) == pytest.approx(rate, abs=0.002)
    both_dropped = (drawn[:, 1:] == 0) & (drawn[:, :-1] == 0)  # neighbours share one drawn number
    assert float(both_dropped.float().mean()) == pytest.approx(rate**2, abs=0.002)
    assert not torch.equal(drawn, dropout_mask(x, rate))


@pytest.mark.parametrize("viewable", [True, False])
def test_each_model_of_a_stack_has_its_own_bytes(
    viewable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where PyTorch cannot view numbers as bytes under vmap; numpy's bytes are the oracle."""
    numbers = torch.randint(2**62, (3, 5)) & LOWEST
    expected = numbers.numpy().astype("<i8").view(np.uint8)

    def refused(self: torch.Tensor, *_: object) -> torch.Tensor:
        raise RuntimeError("Batching rule not implemented for aten::view.dtype")

    if not viewable:
        monkeypatch.setattr(torch.Tensor, "view", refused)
    assert (vmap(_bytes)(numbers).numpy() == expected).all()
