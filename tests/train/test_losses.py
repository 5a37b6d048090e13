"""The losses against the equations, and against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from train.losses import mtcn_loss


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
