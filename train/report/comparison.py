"""A page with several evaluated runs of one task side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import plotly.graph_objects as go
from markupsafe import Markup

from train.config import TrainError
from train.evaluation.compare import compare_runs
from train.evaluation.figures import DetectionFigures, Estimate, RecognitionFigures
from train.report.html import categories, figure, plain, plot, write_page
from train.report.run import notes
from train.run import Run

MEASURES = {"accuracy": "accuracy", "ap": "AP of frames", "roc_auc": "ROC-AUC of frames"}


class Comparison(NamedTuple):
    """What runs of one task are compared by.

    Attributes:
        rows: of the table: name, and a cell for each run.
        measure: of the bars.
        bars: of each run, class -> value.
    """

    rows: list[tuple[str, list[str]]]
    measure: str
    bars: list[dict[str, float | None]]


def write_comparison(runs: Sequence[Run], file: Path) -> None:
    """Write a page with several evaluated runs of one task side by side.

    Raises:
        TrainError: a run was not evaluated yet, or one cannot be compared with the first; see
            `compare_runs`.
    """
    tasks = {run.config.task for run in runs}
    if len(tasks) > 1:
        raise TrainError("runs of recognition and of detection cannot be compared with each other")
    metrics = [run.evaluation() for run in runs]
    recognised = [one["model"] for one in metrics if one["task"] == "recognition"]
    detected = [one["model"] for one in metrics if one["task"] == "detection"]
    compared = _recognition(recognised) if recognised else _detection(detected)
    names = [run.path.resolve().name for run in runs]
    rows = [
        ("streams", [" + ".join(run.config.streams) for run in runs]),
        ("fusion", [run.config.fusion for run in runs]),
        ("model", [run.config.model for run in runs]),
        ("held-out clips", [str(one["model"]["clips"]) for one in metrics]),
        *compared.rows,
    ]
    pairs = []
    for name, run in zip(names[1:], runs[1:], strict=True):
        found = compare_runs(runs[0].path, run.path)
        pairs += [
            (name, title, {**found, **found[key]})
            for key, title in MEASURES.items()
            if key in found
        ]
    classes = list(dict.fromkeys(label for own in compared.bars for label in own))
    bars = [
        go.Bar(
            x=[plain(label) for label in classes],
            y=[own.get(label) for label in classes],
            name=plain(name),
        )
        for name, own in zip(names, compared.bars, strict=True)
    ]
    write_page(
        file,
        "compare.html",
        title=" and ".join(names),
        names=names,
        notes=_notes([*zip(names, map(notes, runs, metrics), strict=True)]),
        rows=rows,
        bars=plot(
            bars,
            xaxis=categories(classes),
            yaxis={"title": compared.measure, "range": [0, 1]},
            barmode="group",
        ),
        pairs=pairs,
    )


def _notes(of: list[tuple[str, list[str]]]) -> list[str]:
    """Return what a reader must know, each once: of which runs, where it is not all of them."""
    names: dict[str, list[str]] = {}
    for name, own in of:
        for note in own:
            names.setdefault(note, []).append(name)
    return [
        note if len(own) == len(of) else f"{' and '.join(own)}: {note}"
        for note, own in names.items()
    ]


def _recognition(models: Sequence[RecognitionFigures]) -> Comparison:
    estimates = {
        "accuracy": [model["accuracy"] for model in models],
        "macro precision": [model["precision"] for model in models],
        "macro recall": [model["recall"] for model in models],
        "macro F1": [model["f1"] for model in models],
    }
    rows = [(name, [_estimate(one) for one in each]) for name, each in estimates.items()]
    rows.append(("calibration error", [figure(model["calibration"]["ece"]) for model in models]))
    bars: list[dict[str, float | None]] = [
        {n: row["f1"] for n, row in model["per_class"].items()} for model in models
    ]
    return Comparison(rows, "F1", bars)


def _estimate(found: Estimate) -> str:
    interval = f"{figure(found['low'])} to {figure(found['high'])}"
    return Markup("{}<small>{}</small>").format(figure(found["value"]), interval)


def _detection(models: Sequence[DetectionFigures]) -> Comparison:
    alarms = [model["false_alarms"] for model in models]
    rows = [
        (MEASURES["ap"], [figure(model["all"]["ap"], 4) for model in models]),
        (MEASURES["roc_auc"], [figure(model["all"]["roc_auc"], 4) for model in models]),
        ("mAP of segments", [figure(model["segments"]["map"].get("mean")) for model in models]),
        ("anomalies to be noticed", [f"{100 * own['asked']:g} %" for own in alarms]),
        ("false alarms an hour", [figure(own["per_hour"], 1) for own in alarms]),
    ]
    bars = [{n: row["ap"] for n, row in model["per_class"].items()} for model in models]
    return Comparison(rows, "AP", bars)
