"""Several transfers at once, and the count of what they moved."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from features.recipe import FeatureError

AT_ONCE = 4  # transfers
SILENCE = 60.0  # seconds in which no byte moves, after which a transfer ends
T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


class Meter:
    """Counts what travels, over several threads; fsspec's callbacks have neither lock nor stop.

    Args:
        total: bytes in all.
        progress: called with (bytes done, bytes in all).

    Attributes:
        moved: bytes that travelled, without those that an earlier try had moved.
    """

    def __init__(self, total: int, progress: Progress) -> None:
        self.moved = 0
        self._done, self._total, self._progress = 0, total, progress
        self._lock = threading.Lock()
        self._stopped = False
        progress(0, total)

    def stop(self) -> None:
        """Make every transfer end at its next block."""
        self._stopped = True

    def grow(self, nbytes: int) -> None:
        """Add to the bytes in all."""
        self._total += nbytes
        self._progress(self._done, self._total)

    def skip(self, nbytes: int) -> None:
        """Count what an earlier try moved."""
        if self._stopped:
            raise FeatureError("interrupted")
        with self._lock:
            self._done += nbytes
            self._progress(self._done, self._total)

    def add(self, nbytes: int) -> None:
        """Count what has travelled."""
        with self._lock:
            self.moved += nbytes
        self.skip(nbytes)


def at_once(work: Callable[[T], R], items: Iterable[T], meter: Meter | None = None) -> list[R]:
    """Do several transfers at once; the first error is raised when the others have ended.

    Args:
        work: called with each item, in several threads.
        items: what to transfer.
        meter: stopped when the user interrupts, so that running transfers end.

    Returns:
        What `work` returned, in the order of the items.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            wait(futures)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            if meter:
                meter.stop()
            raise
    return [future.result() for future in futures]
