"""What is printed: messages, numbers, progress bars."""

from __future__ import annotations

import csv
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from functools import partial
from textwrap import wrap
from typing import Any, NoReturn

from rich.console import Console, ConsoleDimensions
from rich.errors import MarkupError
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from avarnet.notebook import in_notebook, notebook_bar
from features import escaped, json_text, visible
from manifests import listed

DONE, FAILED, SOME_FAILED, ANOMALY = 0, 1, 3, 4  # exit codes; Typer takes 2 for wrong usage
INTERRUPTED = 130  # by Ctrl-C, as shells have it
PIPE_WIDTH = 100_000  # characters; a pipe or a file has no width at which lines are cut
SENTENCE_WIDTH = 80  # characters; names longer than that stay whole
# a bracket, and whether Rich would take it for the beginning of a tag
BRACKET = re.compile(r"(\\*)\[(?=([a-z#/@][^\[\]]*\])?)")


class _Console(Console):
    """A console that truncates nothing: a terminal folds long lines, a pipe has no width.

    COLUMNS is ignored for pipes: readline sets it for all that an interactive Python starts.
    """

    through: Console | None = None  # another one, which draws a bar at the same terminal

    @property
    def size(self) -> ConsoleDimensions:
        size = super().size
        return size if self.is_terminal else ConsoleDimensions(PIPE_WIDTH, size.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def render_str(self, text: str, **settings: Any) -> Text:
        """Make text of a string, of every one that is printed, also in a table.

        What `plain` was forgotten for neither controls the terminal nor ends in an error.
        """
        try:
            return super().render_str(escaped(text), **settings)
        except MarkupError:
            return super().render_str(escaped(text), **{**settings, "markup": False})

    def print(self, *objects: Any, **settings: Any) -> None:
        for table in objects:
            if isinstance(table, Table):
                for column in table.columns:
                    column.overflow = "fold"
        if self.through is not None:
            self.through.print(*objects, **settings)
        else:
            super().print(*objects, **settings)

    def print_sentences(self, text: str) -> None:
        """Print what people read: in lines of whole words, in a pipe of `SENTENCE_WIDTH`."""
        if self.is_terminal:
            self.print(text)
            return
        words = self.render_str(text).plain
        for line in wrap(words, SENTENCE_WIDTH, break_long_words=False, break_on_hyphens=False):
            self.print(Text(line), soft_wrap=True)


# no emoji: it would replace a part of names such as 1:car:2.mp4
out = _Console(emoji=False)
err = _Console(stderr=True, emoji=False)
IPYKERNEL = {"TERM": "xterm-color", "GIT_PAGER": "cat"}  # which it sets for what "!" starts
LINE_SECONDS = 60.0  # from one line to the next, where there is no bar
NOTEBOOK_SECONDS = 0.5  # from one picture of a notebook's bar to the next


def fail(message: str) -> NoReturn:
    """Print an error and exit with 1."""
    err.print(f"[red]error:[/] {plain(message)}", highlight=False, soft_wrap=True)
    sys.exit(FAILED)


def one_line(error: Exception) -> str:
    """Return class and message of an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": .")


def draws_bars() -> bool:
    """Return whether standard error is a terminal that draws progress bars.

    What a notebook starts by "!" has a terminal too, but the page keeps all that was drawn there.
    """
    below = "JPY_PARENT_PID" in os.environ or IPYKERNEL.items() <= os.environ.items()
    return err.file.isatty() and not err.is_dumb_terminal and not below


@contextmanager
def progress_bar(
    *columns: ProgressColumn,
    line: Callable[[Progress], str],
    quiet: bool = False,
    transient: bool = False,
) -> Iterator[Progress]:
    """Yield a bar at the terminal; all that is printed meanwhile goes above it.

    A notebook has one of its own. Where there is neither, a line a minute is printed instead,
    whether or not anything has happened.

    Args:
        columns: of the bar; Rich's own by default.
        line: returns the line; an empty one is not printed.
        quiet: neither draw nor print.
        transient: erase the bar in the end.
    """
    drawn = not quiet and draws_bars()
    bar = Progress(*columns, console=err, transient=transient, disable=not drawn)

    def known(bar: Progress) -> str:
        return line(bar) if bar.tasks else ""  # the first line is due before there is a task

    def print_line() -> None:
        if text := known(bar):
            err.print(plain(text), highlight=False, soft_wrap=True)

    show, seconds = print_line, LINE_SECONDS
    if kept := in_notebook() and not quiet:
        show, seconds = notebook_bar(bar, known), NOTEBOOK_SECONDS
    # versions of Rich print an empty line at the end of a bar that is disabled
    drawing = bar if drawn else nullcontext()
    with drawing, nullcontext() if quiet or drawn else _repeated(show, seconds, last=kept):
        out.through = err if drawn and out.file.isatty() else None
        try:
            yield bar
        finally:
            out.through = None


@contextmanager
def _repeated(show: Callable[[], None], seconds: float, last: bool = False) -> Iterator[None]:
    """Call a function every so many seconds; with `last`, in the end, too."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            show()

    # in the context of a notebook's cell, to which what is shown belongs
    thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LINE_SECONDS)
        if last:
            show()


@contextmanager
def footage_bar(
    what: str, failed: Callable[[], int] = lambda: 0
) -> Iterator[Callable[[float, float], None]]:
    """Yield a callback that draws footage done, speed as a multiple of real time, time left.

    Args:
        what: the step, such as "extracting".
        failed: returns how many clips have failed so far.
    """
    columns = (
        TextColumn(what),
        BarColumn(),
        TextColumn("{task.fields[done]} of {task.fields[all]} of video"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )

    def line(bar: Progress) -> str:
        done, total = bar.tasks[0].completed, bar.tasks[0].total
        rate = done / max(1e-3, bar.tasks[0].elapsed or 0.0)
        of_all = f" of {clock(total)}" if total else ""
        left = f", about {clock((total - done) / rate)} left" if total and rate else ""
        return (
            f"{what}: {clock(done)}{of_all} of video, {rate:.1f} x real time{left}, "
            f"{failed()} failed"
        )

    with progress_bar(*columns, line=line) as bar:
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
def ended_by_ctrl_c(message: str) -> Iterator[None]:
    """End the process with an error at Ctrl-C; only where nothing must be shut down in order.

    Libraries that are being imported turn a `KeyboardInterrupt` into other errors.
    """

    def end(*_: object) -> None:
        os.write(2, f"\nerror: {message}\n".encode())  # the console may be in the middle of a print
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
    """Yield a callback that draws bytes done, their rate and the time left.

    Args:
        what: the step, such as "importing".
        quiet: draw nothing.
    """
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    line = partial(_done_of_all, what, decimal)
    with progress_bar(TextColumn(what), *columns, line=line, quiet=quiet) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def clips_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that draws clips done and the time left.

    Args:
        what: the step, such as "importing".
        quiet: draw nothing.
    """
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with progress_bar(*columns, line=partial(_done_of_all, what, str), quiet=quiet) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _done_of_all(what: str, unit: Callable[[int], str], bar: Progress) -> str:
    done, total = bar.tasks[0].completed, bar.tasks[0].total
    return f"{what}: {unit(round(done))}" + (f" of {unit(round(total))}" if total else "")


def counted(number: int, noun: str, several: str = "") -> str:
    """Return "1 clip" or "2 clips".

    Args:
        number: how many.
        noun: of one.
        several: of many; with an s at the end if not given.
    """
    return f"{number} {noun if number == 1 else several or f'{noun}s'}"


def first_few(names: Sequence[str]) -> str:
    """Return the first names of a list that may be long, for a message."""
    return plain(listed(names[:3]) + (", ..." if len(names) > 3 else ""))


def print_json(document: Any) -> None:
    """Print the document of --json to standard output."""
    print_literally(json_text(document, indent=2))


def print_json_line(document: Any) -> None:
    """Print a document as one line of JSON, at once."""
    print_literally(json_text(document))
    sys.stdout.flush()


def print_csv(rows: Iterable[Sequence[str]]) -> None:
    """Print rows as CSV to standard output."""
    csv.writer(sys.stdout).writerows([escaped(cell) for cell in row] for row in rows)


def print_literally(text: str) -> None:
    """Print text for other programs to standard output: no markup, no colours, whole lines."""
    print(escaped(text))


def plain(text: str) -> str:
    r"""Return text that Rich prints literally: `visible`, and no markup.

    >>> Text.from_markup(plain("[red]a\x1b[1m")).plain
    '[red]a\\x1b[1m'
    """
    text = visible(text)
    text = BRACKET.sub(lambda found: found[1] * (1 + bool(found[2])) + r"\[", text)
    last = len(text) - len(text.rstrip("\\"))  # they would make a tag that follows plain text
    return text + "\\" * last + "[none][/none]" if last else text


def shown(name: str | os.PathLike[str]) -> str:
    """Return a file's name like `plain`, in one line whatever is in it."""
    return plain(os.fspath(name).replace("\n", "\\n").replace("\t", "\\t"))


def clock(seconds: float, digits: int = 0) -> str:
    """Return a time as 1:02:03.

    Args:
        seconds: the time.
        digits: of its fraction.
    """
    whole = int(seconds)
    rest = f"{seconds % 1:.{digits}f}"[1:] if digits else ""
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}{rest}"
