"""Ctrl-C and a batch system's SIGTERM: at the first one, a job finishes the clips in progress."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FINISHING = "finishing the clips in work; press again to stop"
ENDING = "the system ends this job: finishing the clips in work"


class StopRequest:
    """Whether the job is to end early.

    Attributes:
        requested: set when it is.
        by: the signal.
        on_stop: called once then.
    """

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.by = signal.SIGINT
        self.on_stop: Callable[[], object] | None = None

    def is_set(self) -> bool:
        return self.requested.is_set()


@contextmanager
def first_interrupt(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Yield a request that is set at the first Ctrl-C or SIGTERM; a Ctrl-C after that is as usual.

    An exception at any point could lose the report of a batch that has just come back, and lets
    Dask print tracebacks while a cluster starts. A SIGTERM after that does nothing: batch systems
    send it twice, and after their grace time one that cannot be caught.

    Args:
        say: called with a sentence on what happens now.
    """
    stopping, over = StopRequest(), threading.Event()

    def on_signal(number: int, _: Any) -> None:
        if signal.SIGINT in before:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        if not stopping.is_set():
            stopping.by = signal.Signals(number)
            stopping.requested.set()

    def wait_for_signal() -> None:
        stopping.requested.wait()
        if not over.is_set():  # what takes time a signal's handler must not do
            say(FINISHING if stopping.by == signal.SIGINT else ENDING)
            if stopping.on_stop:
                stopping.on_stop()

    if threading.current_thread() is not threading.main_thread():  # gets no signals
        yield stopping
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # a shell lets what it runs in the background ignore Ctrl-C
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, on_signal)
    waiting = threading.Thread(target=wait_for_signal, daemon=True)
    waiting.start()
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if not stopping.is_set():
            over.set()
            stopping.requested.set()
        waiting.join(10)
