"""What people see: messages, numbers, progress bars."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

DONE, FAILED, SOME_FAILED, ANOMALY = 0, 1, 3, 4  # exit codes; 2, wrong usage, is Typer's own
LINE_SECONDS = 60.0  # from one line to the next, where there is no bar
out = Console()
err = Console(stderr=True)


def fail(message: str) -> NoReturn:
    """Print an error and exit with 1."""
    err.print(f"[red]error:[/] {plain(message)}", highlight=False, soft_wrap=True)
    sys.exit(FAILED)


def named(error: Exception) -> str:
    """Return kind and message of an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": .")


@contextmanager
def footage_bar(
    what: str, failed: Callable[[], int] = lambda: 0
) -> Iterator[Callable[[float, float], None]]:
    """Yield a callback that draws footage done, speed as a multiple of real time, time left.

    Where the bar would go into a file or a pipe, the same is a line a minute, whether or not
    anything has happened.

    Args:
        what: is done.
        failed: how many clips have failed so far.
    """
    if not err.is_terminal:
        with _footage_lines(what, failed) as show:
            yield show
        return
    columns = (
        TextColumn(what),
        BarColumn(),
        TextColumn("{task.fields[done]} of {task.fields[all]} of video"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=None, done="0:00:00", all="0:00:00", speed="")

        def show(done: float, total: float) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            speed = f"{done / elapsed:.1f} x real time" if done and elapsed else ""
            bar.update(
                task,
                completed=done,
                total=total,
                done=clock(done),
                all=clock(total),
                speed=speed,
            )

        yield show


@contextmanager
def _footage_lines(
    what: str, failed: Callable[[], int]
) -> Iterator[Callable[[float, float], None]]:
    seen, over, began = [0.0, 0.0], threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(LINE_SECONDS):
            done, total = seen
            rate = done / max(1e-3, time.monotonic() - began)
            line = f"{what}: {clock(done)}"
            if total:
                line += f" of {clock(total)}"
            line += f" of video, {rate:.1f} x real time"
            if total and rate:
                line += f", about {clock((total - done) / rate)} left"
            err.print(f"{line}, {failed()} failed", highlight=False, soft_wrap=True)

    def show(done: float, total: float) -> None:
        seen[:] = done, total

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield show
    finally:
        over.set()
        thread.join()


@contextmanager
def ended_by_ctrl_c(message: str) -> Iterator[None]:
    """End the process with an error at Ctrl-C, where nothing is at work that needs an end in order.

    Libraries that are just being imported make other errors of a `KeyboardInterrupt`.
    """

    def end(*_: object) -> None:
        os.write(2, f"\nerror: {message}\n".encode())  # what prints may be at work below this
        os._exit(FAILED)

    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # in the background of a shell
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def bytes_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that draws bytes done, their rate and the time left."""
    columns = (
        TextColumn(what),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as bar:
        task = bar.add_task("", total=None)
        try:
            yield lambda done, total: bar.update(task, completed=done, total=total)
        except KeyboardInterrupt:
            fail("interrupted; run the same command again to go on")


@contextmanager
def clips_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that draws clips done and the time left."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def counted(number: int, noun: str) -> str:
    """Return "1 clip" or "2 clips"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def first_of(names: Sequence[str]) -> str:
    """Return the first names of a list that may be long, for a message."""
    return plain(", ".join(names[:3]) + (", ..." if len(names) > 3 else ""))


def print_json(document: Any) -> None:
    """Print what --json asks for, to standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def plain(text: str) -> str:
    """Keep a name that looks like Rich's markup from being taken for it."""
    return text.replace("[", r"\[")


def clock(seconds: float, digits: int = 0) -> str:
    """Return a time as 1:02:03, with so many digits of its fraction."""
    whole = int(seconds)
    rest = f"{seconds % 1:.{digits}f}"[1:] if digits else ""
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}{rest}"
