"""How streams are prepared: standardised, and hidden at random in training."""

from __future__ import annotations

import torch
from small_avarnet import SIZES

from train.models.streams import Streams


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
