"""The commands together, and how errors are shown."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import features
import manifests
from avarnet.commands import (
    calibrate,
    demo,
    doctor,
    evaluate,
    extract,
    manifest,
    predict,
    reshape,
    search,
    stress,
    train,
    watch,
)
from avarnet.commands import features as feature_commands
from avarnet.console import FAILED, INTERRUPTED, err, fail, one_line, out, plain
from features.garbage import collect_seldom
from features.transfer.stall_timeout import TRANSFER

ELSEWHERE = "; see who may read and write it, or give another place"
NO_ROOM = "; make room, or give another place; then run the same command again"
WAYS_OUT = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), ELSEWHERE),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), NO_ROOM),
}


class _Commands(TyperGroup):
    """The commands; what users typed is shown by `visible` in errors of usage too."""

    def make_context(self, *args: Any, **settings: Any) -> Any:
        with _typed_text_visible():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: Any) -> Any:
        with _typed_text_visible():
            return super().invoke(ctx)


@contextmanager
def _typed_text_visible() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "message"):  # one of usage
            error.message = features.visible(error.message)
        raise


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Audio-visual anomaly recognition: features are extracted once, models train in seconds.",
)
app.add_typer(manifest.app, name="manifest")
app.add_typer(extract.app)
feature_commands.app.add_typer(reshape.app)
app.add_typer(feature_commands.app, name="features")
for part in (train, evaluate, stress, predict, calibrate, search, watch, demo, doctor):
    app.add_typer(part.app)
debugging = False


def main() -> None:
    """Run the command line; an error is one message, with a traceback only under --debug."""
    # processes that a command starts do not search the current folder for modules either
    os.environ["PYTHONSAFEPATH"] = "1"
    collect_seldom()
    try:
        with _unreadable_shards_named():
            app(prog_name="avarnet")
    except SystemExit as end:
        if end.code == INTERRUPTED:  # as Typer ends at Ctrl-C
            _end_interrupted()
        raise
    except Exception as error:
        if _by_ctrl_c(error):
            _end_interrupted()
        if debugging:
            text = traceback.format_exc()
            for word in sys.argv[1:]:
                text = features.redacted(text, word)
            sys.stderr.write(features.visible(text))
            sys.exit(FAILED)
        if isinstance(error, OSError):
            name = f"{error.filename}: " if isinstance(error.filename, str | Path) else ""
            fail(f"{name}{manifests.reason(error)}{WAYS_OUT.get(error.errno or 0, '')}")
        if isinstance(error, manifests.AvarnetError | features.FeatureError):
            fail(str(error))
        again = f"avarnet --debug {shlex.join(sys.argv[1:])}"
        fail(
            f"{one_line(error)}. This is unexpected: 'avarnet doctor' may find the cause. If not, "
            f"send its output and that of '{again}' to avarnet's maintainers"
        )


def _by_ctrl_c(error: BaseException | None) -> bool:
    """Return whether it is what became of a Ctrl-C in a module that was being imported."""
    seen: set[int] = set()  # libraries raise errors that are each other's cause
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _end_interrupted() -> NoReturn:
    """Say how to go on, and end.

    A thread that is left behind in a transfer may hold a lock for which the interpreter would wait
    at its end, so then it ends at once.
    """
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    more = " with --resume" if command == "train" else ""
    err.print(f"[red]error:[/] interrupted; run the same command again{more}", soft_wrap=True)
    if any(thread.name == TRANSFER for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    sys.exit(INTERRUPTED)


@contextmanager
def _unreadable_shards_named() -> Iterator[None]:
    """Print each shard that a command opens a store without, once."""
    named: set[str] = set()
    show_others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> None:
        if not issubclass(category, features.UnreadableShard):
            show_others(message, category, *place, **line)
        elif str(message) not in named:
            named.add(str(message))
            err.print(f"[yellow]left out:[/] {plain(str(message))}", soft_wrap=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", features.UnreadableShard)
        warnings.showwarning = show
        yield


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(version("avarnet"), highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    show: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback.")] = False,
) -> None:
    global debugging
    debugging = debug
