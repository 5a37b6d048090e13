"""The files of a run's folder, and how they are read and written: it may come from a stranger.

::

    run.json          classes, labels, parts, settings, recipe of the features; written last
    config.toml       the settings, as `--config` takes them
    model-0.safetensors, ...   the weights: all folds of the first seed, of the next, ...
    known_clips.safetensors   the means of the clips it learned from
    metrics.jsonl     one line an epoch
    calibration.json  written by `calibrate`: at which scores `predict` and `watch` raise alarms
    evaluation.json, predictions.csv, report.html    written by `evaluate`
    stress.json       written by `stress`

While it is trained there are also ``unfinished.json``, what ``run.json`` will be, and checkpoints.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TextIO

from features import FeatureError
from features.store_files import CLOSED, open_regular, read_file, replace_file, size_of
from manifests import reason
from manifests.jsonl import is_irregular
from train.config import TrainError

RUN_FILE = "run.json"
UNFINISHED = "unfinished.json"
KNOWN_CLIPS_FILE = "known_clips.safetensors"
EPOCHS_FILE = "metrics.jsonl"
PREDICTIONS_FILE = "predictions.csv"
CALIBRATION_FILE = "calibration.json"
EVALUATION_FILE = "evaluation.json"
STRESS_FILE = "stress.json"
LOCK = ".lock"  # in a folder where a process trains
MOST_JSON = 2**26  # bytes of a file of JSON
MOST_HEADER = 2**20  # bytes of a file of weights that are none of the weights
WAY_OUT = "take it again from whoever made it, or train again"


def read_run_file(file: Path, most: int = MOST_JSON) -> bytes:
    """Return what is in a file of a run; links are not followed.

    Args:
        file: of the run's folder.
        most: bytes that it may have.

    Raises:
        TrainError: it is longer, not a regular file, or closed to this user.
        OSError: there is none, or it cannot be read.
    """
    try:
        return read_file(file, min(most, size_of(file)))  # for so much room is taken at once
    except FeatureError as error:
        raise TrainError(str(error)) from error
    except PermissionError as error:
        raise TrainError(f"{file}: {CLOSED}") from error


def write_run_file(file: Path, content: str | bytes) -> None:
    """Put a file into a run's folder, whole or not at all, in place of the one of its name.

    Args:
        file: of the run's folder, or where a user wants one.
        content: of it; text is written in UTF-8.

    Raises:
        TrainError: it is a folder, a pipe or a device, or cannot be written.
    """
    check_file(file)
    try:
        content = content.encode() if isinstance(content, str) else content
        replace_file(file, content)
    except OSError as error:
        raise TrainError(
            f"{file}: cannot be written ({reason(error)}); what was there is as it was. Make room, "
            "or give another folder"
        ) from error


def check_file(file: Path) -> None:
    """Refuse what a file cannot be put in place of, before the work that it is to show.

    Raises:
        TrainError: it is a folder, or standard output, a pipe or a device.
    """
    if file.is_dir():
        raise TrainError(f"{file} is a folder; give a file")
    if is_irregular(file):
        raise TrainError(f"{file} is no regular file; give a name for one")


def check_writable(folder: Path) -> None:
    """Refuse a run that others share for reading, before work that ends in its folder.

    Raises:
        TrainError: it cannot be written.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise TrainError(
            f"{folder}: cannot be written, and the figures go there; copy it, and give the copy"
        )


def open_run_text(file: Path) -> TextIO:
    """Open a file of a run to write it line by line; links are not followed.

    Raises:
        TrainError: it is not a regular file.
        OSError: it cannot be written.
    """
    return os.fdopen(_opened(file, os.O_WRONLY | os.O_TRUNC), "w", encoding="utf-8")


def _opened(file: Path, flags: int) -> int:
    try:
        return open_regular(file, flags | os.O_CREAT)
    except FeatureError as error:
        raise TrainError(str(error)) from error


@contextmanager
def run_text(file: Path) -> Iterator[StringIO]:
    """Yield what takes the text of a file, which is written at the end; see `write_run_file`."""
    text = StringIO(newline="")
    yield text
    write_run_file(file, text.getvalue())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and keep its lock, for one process alone to write there.

    Raises:
        TrainError: another process has the lock, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _opened(folder / LOCK, os.O_RDWR)
    except OSError as error:
        raise TrainError(
            f"{folder}: cannot be written ({reason(error)}); give another folder"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise TrainError(
            f"{folder}: another process is training there; wait for it, or give another folder"
        ) from error
    except OSError:
        pass  # some network file systems have no locks
    try:
        yield
    finally:
        os.close(lock)
