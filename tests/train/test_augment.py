"""Augmented batches: what is cut, blanked and mixed is what was there."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.augment import augment, mixup, time_crop, time_warp
from train.config import Config
from train.data import Batch


def numbered(lengths: list[int]) -> Batch:
    """Clips whose rows tell clip and snippet: 100 n + t."""
    longest = max(lengths)
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    rows = 100.0 * torch.arange(len(lengths))[:, None] + torch.arange(longest)[None]
    return Batch({"video": (rows * mask)[..., None]}, {"video": mask.clone()}, mask)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(0.1, 0.9), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_crop_is_a_stretch_of_the_clip(lengths: list[int], least: float, seed: int) -> None:
    torch.manual_seed(seed)
    batch = time_crop(numbered(lengths), least)
    for n, length in enumerate(lengths):
        kept = int(batch.mask[n].sum())
        assert least * length - 1e-3 <= kept <= length
        rows = batch.streams["video"][n, :kept, 0] - 100 * n
        assert torch.equal(rows, rows[0] + torch.arange(kept))
        assert rows[0] >= 0
        assert rows[-1] < length
        assert batch.valid["video"][n].sum() == kept


@given(st.lists(st.integers(1, 80), min_size=1, max_size=6), st.floats(1.0, 5.0), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_warped_clip_keeps_length_and_order(lengths: list[int], most: float, seed: int) -> None:
    torch.manual_seed(seed)
    whole = numbered(lengths)
    whole.valid["video"][:, ::3] = False
    warped = time_warp(whole, most)
    assert torch.equal(warped.mask, whole.mask)
    for n, length in enumerate(lengths):
        index = warped.streams["video"][n, :length, 0].long() - 100 * n
        assert (index.diff() >= 0).all()
        assert index[0] >= 0
        assert index[-1] < length
        assert torch.equal(warped.valid["video"][n, :length], whole.valid["video"][n, index])
        assert not warped.valid["video"][n, length:].any()


def test_stretches_of_a_warped_clip_have_speeds_of_their_own() -> None:
    torch.manual_seed(0)
    index = time_warp(numbered([600] * 50), 3.0).streams["video"][..., 0]
    index = index - 100 * torch.arange(50)[:, None]
    pace = index.diff(dim=1).unfold(1, 50, 50).mean(2)  # snippets of the clip per snippet
    spread = pace.amax(1) / pace.amin(1)
    assert 1.5 < float(spread.median()) < 9.5
    assert float(spread.max()) < 10  # three times slower here and three times faster there
    assert torch.equal(
        time_warp(numbered([600]), 1.0).streams["video"][0, :, 0], torch.arange(600.0)
    )


def test_blanks_leave_the_rest_as_it_was() -> None:
    torch.manual_seed(0)
    whole = numbered([40] * 200)
    stretch = augment(whole, Config(time_mask=0.5, snippet_dropout=0)).valid["video"]
    blank = (~stretch).sum(1)
    assert 0 < blank.float().mean() < 20
    assert blank.max() <= 20
    edges = (stretch[:, 1:] != stretch[:, :-1]).sum(1)
    assert edges.max() <= 2  # one stretch
    single = augment(whole, Config(snippet_dropout=0.3)).valid["video"]
    assert 0.25 < (~single).float().mean() < 0.35
    assert torch.equal(whole.valid["video"], whole.mask)


def test_mixed_clips_are_between_two_of_the_batch() -> None:
    torch.manual_seed(0)
    batch = numbered([6, 9, 4, 9, 5, 9])
    shares = torch.eye(6)
    mixed, targets = mixup(batch, shares, alpha=1.0)
    assert torch.allclose(targets.sum(1), torch.ones(6))
    changed = 0
    for n in range(6):
        share = float(targets[n, n])
        assert share >= 0.5
        other = int(targets[n].masked_fill(torch.arange(6) == n, -1).argmax())
        length, theirs = int(batch.mask[n].sum()), int(batch.mask[other].sum())
        own = batch.streams["video"][n, :length, 0]
        partner = batch.streams["video"][other, :theirs, 0][np.arange(length) % theirs]
        expected = share * own + (1 - share) * partner if share < 1 else own
        assert torch.allclose(mixed.streams["video"][n, :length, 0], expected, atol=1e-3)
        changed += share < 1
    assert changed >= 3
