"""What Ctrl-C and a batch system's SIGTERM do to a job: the first one lets it end in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FINISHING = "finishing the clips in work; press again to stop"
ENDING = "the system ends this job: finishing the clips in work"


class Stopping:
    """Whether the job has been told to end."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self.by = signal.SIGINT
        self.act: Callable[[], object] | None = None  # done once, when it is told

    def is_set(self) -> bool:
        return self.told.is_set()


@contextmanager
def first_interrupt(say: Callable[[str], None]) -> Iterator[Stopping]:
    """Yield what is set at the first Ctrl-C or SIGTERM; a Ctrl-C after that is as usual.

    An exception at any point could lose the report of a batch that has just come back, and lets
    Dask print tracebacks while a cluster starts. A SIGTERM after that does nothing: batch systems
    send it twice, and after their grace time one that cannot be caught.

    Args:
        say: is told in a sentence what happens now.
    """
    stopping, over = Stopping(), threading.Event()

    def note(number: int, _: Any) -> None:
        if signal.SIGINT in before:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        if not stopping.is_set():
            stopping.by = signal.Signals(number)
            stopping.told.set()

    def wait() -> None:
        stopping.told.wait()
        if not over.is_set():  # what takes time a signal's handler must not do
            say(FINISHING if stopping.by == signal.SIGINT else ENDING)
            if stopping.act:
                stopping.act()

    if threading.current_thread() is not threading.main_thread():  # gets no signals
        yield stopping
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # a shell lets what it runs in the background ignore Ctrl-C
    before = {number: how for number, how in before.items() if how != signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if not stopping.is_set():
            over.set()
            stopping.told.set()
        waiting.join(10)
