"""The random numbers of training: where they come from in each thread, and masks for dropout."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# of the eight bytes in a 64-bit number: all their lowest bits, and all but their highest ones
LOWEST, LOWER = 0x0101010101010101, 0x7F7F7F7F7F7F7F7F


class _Source(threading.local):
    generator: torch.Generator | None = None  # torch's own, which all threads share


_source = _Source()


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Let this thread draw from a source of its own, whatever other threads draw meanwhile."""
    _source.generator = torch.Generator().manual_seed(seed)
    try:
        yield
    finally:
        _source.generator = None


def seeds(count: int) -> list[int]:
    """Draw seeds."""
    return torch.randint(2**62, (count,), generator=_source.generator).tolist()


def uniform(*size: int) -> Tensor:
    """Draw numbers between 0 and 1."""
    return torch.rand(*size, generator=_source.generator)


def normal(*size: int) -> Tensor:
    """Draw numbers of mean 0 and deviation 1."""
    return torch.randn(*size, generator=_source.generator)


def drawable(rate: float) -> float:
    """Return the nearest rate that `dropout_mask` can draw: a multiple of 1/128 below 1."""
    return min(round(rate * 128), 127) / 128


def dropout_mask(x: Tensor, rate: float) -> Tensor:
    """Draw which values of x to keep: 0 with probability `rate`, see `drawable`, else 1.

    torch's own dropout draws one float for each value, on a CPU a third of all the time of
    training. Here one 64-bit number serves eight values, and its bytes are compared all at once:
    b - 128 rate does not fall below zero exactly where the highest bit, set before, is still set.
    """
    if x.device.type != "cpu":  # where torch's own is fast
        return (torch.rand_like(x) >= rate).to(torch.uint8)
    # x.new_empty and not torch.empty: under vmap, every model of a stack gets its own
    numbers = x.new_empty((x.numel() + 7) // 8, dtype=torch.int64)
    numbers.random_(-(2**63), None, generator=_source.generator)
    numbers.bitwise_and_(LOWER).bitwise_or_(~LOWER).sub_(round(rate * 128) * LOWEST)
    numbers.bitwise_right_shift_(7).bitwise_and_(LOWEST)
    return _bytes(numbers)[: x.numel()].view(x.shape)


def _bytes(numbers: Tensor) -> Tensor:
    """Return the eight bytes of each 64-bit number, the lowest first, where each byte is 0 or 1."""
    try:
        return numbers.view(torch.uint8)
    except RuntimeError:  # PyTorch 2.10 and older, under vmap
        shifts = torch.arange(0, 64, 8)
        return (numbers[:, None] >> shifts).bitwise_and(1).to(torch.uint8).flatten()
