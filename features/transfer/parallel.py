"""Several transfers at once, and the count of what they moved."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from features.recipe import FeatureError
from features.transfer.stall_timeout import TRANSFER

AT_ONCE = 4  # transfers
JOIN = 5.0  # seconds to wait for what is under way, at an interruption
T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


class Meter:
    """Counts bytes transferred by several threads; fsspec's callbacks have neither lock nor stop.

    Args:
        total: bytes in all.
        progress: called with (bytes done, bytes in all).

    Attributes:
        moved: bytes transferred, without those that an earlier try had moved.
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
        """Count what was transferred."""
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
    todo: queue.SimpleQueue[tuple[int, T]] = queue.SimpleQueue()
    count = 0
    for numbered in enumerate(items):
        todo.put(numbered)
        count += 1
    done: dict[int, R] = {}
    errors: dict[int, BaseException] = {}

    def run() -> None:
        with suppress(queue.Empty):
            while True:
                number, item = todo.get_nowait()
                try:
                    done[number] = work(item)
                except BaseException as error:
                    errors[number] = error

    # no pool of the standard library: the interpreter waits for their threads without a limit
    threads = [
        threading.Thread(target=run, name=TRANSFER, daemon=True) for _ in range(min(AT_ONCE, count))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # a step of a transfer has its own limit, see `stall_timeout`
                thread.join(1.0)
    except KeyboardInterrupt:
        with suppress(queue.Empty):
            while True:
                todo.get_nowait()
        if meter:
            meter.stop()
        until = time.monotonic() + JOIN
        for thread in filter(threading.Thread.is_alive, threads):
            thread.join(max(0.0, until - time.monotonic()))
        raise
    if errors:
        raise errors[min(errors)]
    return [done[number] for number in range(count)]
