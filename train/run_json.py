"""What the JSON of a run's folder may hold, in this version and former ones; read and checked."""

from __future__ import annotations

import json
import math
import os
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NotRequired,
    TypedDict,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from manifests import listed, reason
from train.config import GROUPS, TrainError, package_of
from train.labels import CLASSES
from train.run_files import CALIBRATION_FILE, EPOCHS_FILE, RUN_FILE, WAY_OUT, read_run_file

if TYPE_CHECKING:
    from train.run import Run

VERSION = 9
# what the settings that runs of these versions do not know were then
VERSION_8: dict[str, Any] = {}  # its models have no temperature
VERSION_7: dict[str, Any] = {**VERSION_8, "linear_term": False}
VERSION_6: dict[str, Any] = {**VERSION_7, "scaled_context": False}
VERSION_5: dict[str, Any] = {**VERSION_6, "time_warp": 1.0}
VERSION_4: dict[str, Any] = {**VERSION_5, "outlier_limit": 0.0}
VERSION_3: dict[str, Any] = {
    **VERSION_4,
    "centred": False,
    "scene_dropout": 0.0,
    "offset_noise": 0.0,
    "context_dropout": 0.0,
    "starts": 1,
}
FORMER = {3: VERSION_3, 4: VERSION_4, 5: VERSION_5, 6: VERSION_6, 7: VERSION_7, 8: VERSION_8}
EVALUATION_FORMAT = 2  # of evaluation.json; one more whenever its figures change
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


def read_run_json(folder: Path) -> RunJson:
    """Return what ``run.json`` holds, with every setting that former versions do not have.

    Raises:
        TrainError: the folder is no finished run, or of another version; its file is damaged; or
            its model comes with a package that is not installed.
    """
    file = folder / RUN_FILE
    try:
        content = read_run_file(file)
    except OSError as error:
        raise TrainError(
            f"{folder} is no finished run: it has no readable {RUN_FILE}; train one with "
            "'avarnet train MANIFEST STORE RUN'"
        ) from error
    version = parse_json(content, RunVersion, str(file))["version"]
    if version not in (*FORMER, VERSION):
        raise TrainError(
            f"{folder} is a run of version {version}, this program reads {VERSION}; "
            "update avarnet or train again"
        )
    whole: RunJson = parse_json(content, RunJson, str(file))
    settings = {**FORMER.get(version, {}), **whole["config"]}
    if version == 3:
        top = settings.get("task") == "detection"
        settings = {"pooling": "top" if top else "mean", **settings}
    for kind, package in whole.get("packages", {}).items():
        name = str(settings.get(kind))
        if kind in GROUPS and package_of(kind, name) is None:
            raise TrainError(
                f"{folder}: its {kind} {name} comes with another package, {package}, "
                "which is not installed here; install it (pip install), and run the same "
                "command again"
            )
    return {**whole, "config": settings}


def read_calibration(folder: Path) -> Calibration | None:
    """Return what ``calibration.json`` holds; None if there is none.

    Raises:
        TrainError: it cannot be read, or is damaged.
    """
    file = folder / CALIBRATION_FILE
    try:
        content = read_run_file(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrainError(f"{file}: {reason(error)}; delete it, or calibrate again") from error
    calibration: Calibration = parse_json(content, Calibration, str(file))
    return calibration


def read_epochs(folder: Path, folds: int) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl``, one for each epoch of each model.

    Args:
        folder: of the run.
        folds: that it has.

    Raises:
        TrainError: it cannot be read, or is damaged.
    """
    file = folder / EPOCHS_FILE
    try:
        lines = read_run_file(file).splitlines()
    except OSError as error:
        raise TrainError(f"{file}: {reason(error)}; {WAY_OUT}") from error
    rows = [parse_json(line, EpochJson, str(file)) for line in lines]
    if not all(0 <= row["fold"] < folds for row in rows):
        raise TrainError(f"{file} is damaged (a fold that the run does not have); {WAY_OUT}")
    known = get_type_hints(EpochJson)
    # what was no number when older versions wrote it is read as None
    return [
        {name: math.nan if row[name] is None else row[name] for name in known if name in row}
        for row in rows
    ]


def check_run(run: Run) -> None:
    """Refuse what no run can have, before anything relies on it.

    Raises:
        ValueError: it has that.
    """
    streams = run.config.streams
    expected = {
        name: settings["features"] // settings.get("crops", 1)
        for name, settings in run.recipe.streams.items()
        if name in streams
    }
    if run.sizes != expected or list(run.sizes) != list(streams):
        raise ValueError(f"sizes {run.sizes}, where the recipe has {expected}")
    if len(set(run.classes)) < max(2, len(run.classes)):
        raise ValueError("its classes are not two or more different ones")
    "".join(run.classes).encode()  # or it is no text
    if run.config.task == "detection" and run.classes != CLASSES:
        raise ValueError(f"detection of {listed(run.classes)}")
    if not set(run.labels.values()) <= set(run.classes):
        raise ValueError("a label that is no class")
    split_ids = [i for split in run.splits for i in (*split.train, *split.val, *split.test)]
    if not run.splits or not run.labels.keys() >= {*split_ids, *run.truth}:
        raise ValueError("its splits are not of its clips")
    held_out = {clip_id for split in run.splits for clip_id in split.test}
    if run.config.task == "detection" and held_out - run.truth.keys():
        raise ValueError("held-out clips without their truth")
    count = len(run.splits) * run.config.seeds
    if run.weights and len(run.weights) != count:
        raise ValueError(f"{len(run.weights)} digests of {count} models")


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
