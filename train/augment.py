"""Changes to training batches that keep what a clip is: warps, crops, blanks and mixtures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from train.config import Config
from train.data import Batch
from train.models.random_numbers import seeds, uniform

STRETCHES = 6  # of a clip that is warped, each at a speed of its own


def augment(batch: Batch, config: Config) -> Batch:
    """Warp and crop clips in time, blank stretches and single snippets, as the settings say."""
    if config.time_warp > 1:
        batch = time_warp(batch, config.time_warp)
    if config.time_crop < 1:
        batch = time_crop(batch, config.time_crop)
    if config.time_mask:
        batch = _blanked(batch, _stretch(batch.mask, config.time_mask))
    if config.snippet_dropout:
        batch = _blanked(batch, uniform(*batch.mask.shape) < config.snippet_dropout)
    return batch


def time_warp(batch: Batch, most: float) -> Batch:
    """Play stretches of each clip at random speeds: snippets are repeated or left out.

    Their order stays, and the clip's length; where in it something happens, for how long, and how
    far from something else, changes. Of few clips these would be learned by heart.

    Args:
        batch: the clips.
        most: how many times faster or slower than on average a stretch may be.
    """
    length = batch.mask.sum(1, keepdim=True)
    speeds = most ** (2 * uniform(len(length), STRETCHES) - 1)
    at = torch.arange(batch.mask.shape[1])
    number = (at * STRETCHES // length).clamp(max=STRETCHES - 1)  # of each snippet's stretch
    speed = speeds.gather(1, number) * batch.mask
    end = speed.cumsum(1)
    middle = (end - speed / 2) / end[:, -1:]
    index = torch.minimum((middle * length).long(), length - 1)
    return _taken(batch, index, batch.mask)


def time_crop(batch: Batch, least: float) -> Batch:
    """Cut each clip to a random stretch of a share between `least` and all of it."""
    length = batch.mask.sum(1)
    share = least + (1 - least) * uniform(len(length))
    kept = (length * share).ceil().long()
    first = (uniform(len(length)) * (length - kept + 1)).long()
    longest = int(kept.max())
    at = torch.arange(longest)[None]
    mask = at < kept[:, None]
    return _taken(batch, torch.where(mask, first[:, None] + at, 0), mask)


def mixup(batch: Batch, targets: Tensor, alpha: float) -> tuple[Batch, Tensor]:
    """Mix each clip with another one of the batch (Zhang et al., ICLR 2018).

    The other clip is repeated or cut to the clip's length. A stream is mixed where both have it.

    Args:
        batch: the clips.
        targets: (clips, classes), soft targets.
        alpha: of the Beta distribution of the shares.
    """
    clips = len(targets)
    other = uniform(clips).argsort()
    share = torch.from_numpy(np.asarray(_beta(alpha, clips), np.float32))
    share = torch.maximum(share, 1 - share)  # the clip itself is always the larger part
    length = batch.mask.sum(1)
    index = torch.arange(batch.mask.shape[1])[None] % length[other][:, None]
    row = other[:, None]
    streams = {}
    for name, rows in batch.streams.items():
        own, theirs = batch.valid[name], batch.valid[name][row, index]
        part = torch.where(own & theirs, share[:, None], 1.0)[..., None]
        streams[name] = part * rows + (1 - part) * rows[row, index]
    mixed = share[:, None] * targets + (1 - share[:, None]) * targets[other]
    return replace(batch, streams=streams), mixed


def _beta(alpha: float, count: int) -> np.ndarray:
    rng = np.random.default_rng(seeds(1)[0])  # all random numbers come from torch's
    return rng.beta(alpha, alpha, count)


def _stretch(mask: Tensor, most: float) -> Tensor:
    """Return (clips, time), true in a random stretch of each clip, of at most a share of it."""
    length = mask.sum(1)
    span = (uniform(len(length)) * most * length).long()
    first = (uniform(len(length)) * (length - span + 1)).long()
    at = torch.arange(mask.shape[1])[None]
    return (at >= first[:, None]) & (at < (first + span)[:, None])


def _taken(batch: Batch, index: Tensor, mask: Tensor) -> Batch:
    """Return the snippets (clips, time) of these numbers, where `mask` is true."""
    row = torch.arange(len(index))[:, None]
    return Batch(
        {name: rows[row, index] for name, rows in batch.streams.items()},
        {name: valid[row, index] & mask for name, valid in batch.valid.items()},
        mask,
    )


def _blanked(batch: Batch, where: Tensor) -> Batch:
    return replace(batch, valid={name: v & ~where for name, v in batch.valid.items()})
