"""The commands together, and how errors are shown."""

from __future__ import annotations

import os
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

import features
import manifests
from avarnet.commands import (
    demo,
    doctor,
    evaluate,
    extract,
    manifest,
    predict,
    search,
    train,
    watch,
)
from avarnet.commands import features as feature_commands
from avarnet.console import fail, one_line, out

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Audio-visual anomaly recognition: features are extracted once, models train in seconds.",
)
app.add_typer(manifest.app, name="manifest")
app.add_typer(extract.app)
app.add_typer(feature_commands.app, name="features")
for part in (train, evaluate, predict, search, watch, demo, doctor):
    app.add_typer(part.app)
debugging = False


def main() -> None:
    """Run the command line; an error is one message, with a traceback only under --debug."""
    # processes that a command starts do not search the current folder for modules either
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        app(prog_name="avarnet")
    except Exception as error:
        if debugging:
            raise
        if isinstance(error, OSError) and isinstance(error.filename, str | Path):
            fail(f"{error.filename}: {manifests.reason(error)}")
        if isinstance(error, manifests.AvarnetError | features.FeatureError | OSError):
            fail(str(error))
        again = f"avarnet --debug {shlex.join(sys.argv[1:])}"
        fail(
            f"{one_line(error)}. This is unexpected: 'avarnet doctor' may find the cause. If not, "
            f"send its output and that of '{again}' to avarnet's maintainers"
        )


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
