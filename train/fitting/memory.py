"""Memory and threads of a training: what PyTorch and the C library do by default costs time."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch

FEW_SNIPPETS = 2000  # in one step: fewer do not pay for a second thread


@contextmanager
def threads_for(snippets: float) -> Iterator[None]:
    """Keep PyTorch in this thread to one of its own where so few snippets do not pay for more.

    Threads then mostly wait for each other; where another program keeps a core busy, two took
    thirty times as long as one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if snippets < FEW_SNIPPETS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def keep_memory() -> None:
    """Let glibc keep what a step frees for the next one.

    It would return each large array to the kernel, and take it back page by page: a third of the
    time of steps over long clips. All threads share the first arena, as others hold nothing over
    64 MB.
    """
    with suppress(OSError, AttributeError):  # another C library
        c = ctypes.CDLL("libc.so.6")
        for parameter, value in ((-1, 2**30), (-3, 2**30), (-8, 1)):
            c.mallopt(parameter, value)  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX
