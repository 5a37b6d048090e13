"""The files of a run's folder, which may come from a stranger: what they may hold, and how much."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import StringIO
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NotRequired,
    TextIO,
    TypedDict,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from features import FeatureError
from features.store_files import open_regular, read_file, replace_file, size_of
from manifests import reason
from train.config import TrainError

LOCK = ".lock"  # in a folder where a process trains
MOST_JSON = 2**26  # bytes of a file of JSON
MOST_HEADER = 2**20  # bytes of a file of weights that are none of the weights
WAY_OUT = "take it again from whoever made it, or train again"
NO_FILES = ("dev", "proc")  # folders of the root whose names are not replaced
LARGEST = 2.0**53  # number; from there on a float does not hold every whole one


class SplitIds(TypedDict):
    """See `train.splits.Split`."""

    train: list[str]
    val: list[str]
    test: list[str]


class HysteresisJson(TypedDict):
    """See `train.evaluation.anomaly_intervals.Hysteresis`."""

    high: float
    low: float
    shortest: float


class Calibration(TypedDict):
    """The threshold of alarms that `train.calibrate` chose, and on what.

    `asked` and the ends of the 95 % interval of the rate, `low` and `high`, are alarms an hour.
    """

    threshold: float
    asked: float
    alarms: int
    hours: float
    low: float
    high: float
    clips: int
    stores: list[str]


class RunVersion(TypedDict):
    """What is read first: all else depends on it."""

    version: int


class Chosen(TypedDict):
    """See `train.evaluation.anomaly_intervals.Hysteresis.choose`."""

    clips: int
    balanced_accuracy: float | None


class RunJson(TypedDict):
    """What ``run.json`` holds; see `train.run.Run`."""

    version: int
    config: dict[str, Any]
    classes: list[str]
    labels: dict[str, str]
    parts: list[SplitIds]
    recipe: dict[str, Any]
    sizes: dict[str, int]
    stores: list[str]
    left_out: list[str]
    truth: NotRequired[list[dict[str, Any]]]
    groups: NotRequired[dict[str, str]]
    manifest: NotRequired[str | None]
    hysteresis: NotRequired[HysteresisJson]
    chosen: NotRequired[Chosen | dict[str, None]]  # the latter: empty
    weights: NotRequired[list[str]]
    known_clips: NotRequired[str]
    packages: NotRequired[dict[str, str]]
    made: NotRequired[dict[str, str]]


class EpochJson(TypedDict):
    """A line of ``metrics.jsonl``; see `train.fitting.history.Epoch`."""

    fold: int
    seed: int
    epoch: int
    train_loss: float | None
    val_loss: float | None
    val_accuracy: float | None
    val_recall: float | None
    val_error: NotRequired[float | None]
    start: NotRequired[int]


def read_run_file(file: Path, most: int = MOST_JSON) -> bytes:
    """Return what is in a file of a run; links are not followed.

    Args:
        file: of the run's folder.
        most: bytes that it may have.

    Raises:
        TrainError: it is longer, or not a regular file.
        OSError: there is none, or it cannot be read.
    """
    try:
        return read_file(file, min(most, size_of(file)))  # for so much room is taken at once
    except FeatureError as error:
        raise TrainError(str(error)) from error


def write_run_file(file: Path, content: str | bytes) -> None:
    """Put a file into a run's folder, whole or not at all, in place of whatever has its name.

    Where a user names what is no file, such as ``/dev/stdout``, that is written to.

    Args:
        file: of the run's folder, or where a user wants one.
        content: of it; text is written in UTF-8.

    Raises:
        TrainError: it cannot be written.
    """
    try:
        content = content.encode() if isinstance(content, str) else content
        if file.absolute().parts[1] in NO_FILES:
            file.write_bytes(content)
        else:
            replace_file(file, content)
    except OSError as error:
        raise TrainError(
            f"{file}: cannot be written ({reason(error)}); what was there is as it was. Make room, "
            "or give another folder"
        ) from error


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


def parse_json(text: str | bytes, kind: Any, where: str) -> Any:
    """Return JSON of a run's file, if it is of the type that it must be.

    Numbers that are none (NaN, which older versions wrote) are read as None.

    Args:
        text: the JSON.
        kind: the type: of plain data, a `TypedDict` for an object whose other keys do not matter.
        where: the file, for messages.

    Raises:
        TrainError: it is not JSON, or not of that type.
    """
    try:
        document = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise TrainError(f"{where} is damaged (it is not JSON); {WAY_OUT}") from error
    if place := misfit(document, kind):
        raise TrainError(f"{where} is damaged (what it has for {place} cannot be); {WAY_OUT}")
    return document


def path_of(text: str) -> Path:
    """Return the path that a text is.

    Raises:
        ValueError: no path can be that.
    """
    if "\0" in text:
        raise ValueError("NUL in a path")
    os.fsencode(text)
    return Path(text)


def misfit(value: Any, kind: Any, place: str = "the whole") -> str:
    """Return where plain data are not of a type; "" if they are.

    >>> misfit([1, "x"], list[int], "sizes")
    'sizes'

    Args:
        value: as `json.loads` gives it.
        kind: the type.
        place: of the value.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is NotRequired:
        return misfit(value, parts[0], place)
    if origin in (Union, UnionType):
        return place if all(misfit(value, part) for part in parts) else ""
    if is_typeddict(kind) and isinstance(value, dict):
        inner = [
            misfit(value[name], hint, name)
            if name in value
            else name * (get_origin(hint) is not NotRequired)
            for name, hint in _hints(kind).items()
        ]
        return next(filter(None, inner), "")
    if origin is dict and isinstance(value, dict):
        return place if any(misfit(inner, parts[1]) for inner in value.values()) else ""
    if origin is list and isinstance(value, list):
        return place if any(misfit(inner, parts[0]) for inner in value) else ""
    if kind is Any:
        return ""
    if origin is Literal:
        good = any(type(value) is type(part) and value == part for part in parts)
    elif kind is float:
        good = type(value) in (int, float) and abs(value) <= LARGEST
    elif kind is int:
        good = type(value) is int and abs(value) <= LARGEST
    else:
        good = kind in (str, NoneType) and isinstance(value, kind)
    return "" if good else place


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)
