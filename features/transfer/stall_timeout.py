"""How long a transfer is waited for: as long as something moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import TypeVar

SILENCE = 60.0  # seconds in which nothing moves, after which a transfer ends
PROGRESS = 2**16  # bytes; fewer than that in `SILENCE` are none
SLOWEST = 2**14  # bytes a second, where what moves cannot be counted
POLL_SECONDS = 0.5  # between two looks at the bytes
TRANSFER = "transfer"  # name of threads that an interruption may leave behind

T = TypeVar("T")


class StalledError(OSError):
    """Nothing moved for too long."""


class Moved:
    """Counts the bytes of one step of a transfer; another thread looks at it.

    Attributes:
        count: bytes so far.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, nbytes: int) -> None:
        self.count += nbytes


def in_a_thread(call: Callable[[], T]) -> Future[T]:
    """Begin a call in a thread of its own, which may be left behind and is never joined."""
    future: Future[T] = Future()

    def run() -> None:
        # of a call that is waited for no longer, nobody wants the outcome
        with suppress(Exception):
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

    threading.Thread(target=run, name=TRANSFER, daemon=True).start()
    return future


def result_of(future: Future[T], moved: Moved | None = None, nbytes: int = 0) -> T:
    """Return what a call returns, which is given up when nothing moves.

    Args:
        future: of the call.
        moved: counts its bytes.
        nbytes: that it moves, if they are not counted.

    Raises:
        StalledError: nothing has moved for `SILENCE`.
    """
    seen, since = 0, time.monotonic()
    allowed = SILENCE + nbytes / SLOWEST
    while not wait([future], min(POLL_SECONDS, allowed / 4)).done:
        now = time.monotonic()
        if moved and moved.count - seen >= PROGRESS:
            seen, since = moved.count, now
        elif now - since > allowed:
            future.cancel()
            raise StalledError(f"nothing moved for {allowed:.0f} s")
    return future.result()
