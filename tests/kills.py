"""Kills (-9) at random moments."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# forks processes that have the slow imports already
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["features", "small_stores", "train"])


def _run(act: Callable[..., object], args: tuple[Any, ...], begun: Connection) -> None:
    begun.send(None)
    act(*args)


def run_and_kill(act: Callable[..., object], args: tuple[Any, ...], seconds: float) -> bool:
    """Return whether it was killed before it ended."""
    receiving, sending = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=_run, args=(act, args, sending))
    process.start()
    sending.close()
    receiving.recv()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0
