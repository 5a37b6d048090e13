"""A run's report: one HTML file with everything in it, plots included."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.run import Run

matplotlib.use("Agg")
matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: small, searchable
INK = "#888888"  # readable on light and on dark pages

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}: AVAR-Net report</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; overflow-x: auto; } svg { max-width: 100%; height: auto; }
.warn { border-left: 4px solid #d80; padding: .5rem 1rem; background: #d801; }
details { margin: 1rem 0; } code, pre { font-size: .9em; overflow-x: auto; }
</style></head><body>
<h1>{{ name }}</h1>
"""
FOOT = """<details><summary>Settings</summary><pre>{{ settings }}</pre></details>
<details><summary>Recipe of the features</summary><pre>{{ recipe }}</pre></details>
</body></html>
"""
TEMPLATE = (
    HEAD
    + """<p>Held-out clips: {{ metrics.model.clips }} ({{ metrics.held_out }}
{%- if metrics.parts > 1 %}, {{ metrics.parts }} folds{% endif %}), {{ classes|length }} classes,
streams {{ config.streams|join(" + ") }}.</p>
{% for note in notes %}<p class="warn">{{ note }}</p>{% endfor %}
<h2>What the sequence model adds</h2>
<table><tr><th></th><th>MTCN</th><th>95 %</th><th>linear</th><th>95 %</th></tr>
{% for key in ("accuracy", "precision", "recall", "f1") %}
<tr><td>{{ "" if key == "accuracy" else "macro " }}{{ key }}</td>
{% for row in (metrics.model[key], metrics.linear[key]) %}
<td>{{ "%.3f"|format(row.value) }}</td>
<td>{{ "%.3f"|format(row.low) }} to {{ "%.3f"|format(row.high) }}</td>
{% endfor %}</tr>{% endfor %}</table>
<p>Linear: logistic regression on the clip-averaged features of the same clips. Chance, always
answering the commonest class: {{ "%.3f"|format(chance) }}.
{% if metrics.models.each|length > 1 %}Single models (folds x seeds): accuracy
{{ "%.3f ± %.3f"|format(metrics.models.accuracy.mean, metrics.models.accuracy.std) }}, macro F1
{{ "%.3f ± %.3f"|format(metrics.models.f1.mean, metrics.models.f1.std) }}.{% endif %}</p>
<h2>Classes</h2>
<table><tr><th>class</th><th>clips</th><th>precision</th><th>recall</th><th>F1</th></tr>
{% for name, row in metrics.model.per_class.items() %}<tr><td>{{ name }}</td>
<td>{{ row.clips }}</td>
<td>{{ "%.3f"|format(row.precision) }}</td><td>{{ "%.3f"|format(row.recall) }}</td>
<td>{{ "%.3f"|format(row.f1) }}</td></tr>{% endfor %}</table>
<figure>{{ confusion|safe }}</figure>
<h2>Is its confidence justified?</h2>
<figure>{{ reliability|safe }}</figure>
<p>Expected calibration error: MTCN {{ "%.3f"|format(metrics.model.calibration.ece) }}, linear
{{ "%.3f"|format(metrics.linear.calibration.ece) }}.</p>
<h2>Training</h2>
<figure>{{ curves|safe }}</figure>
<h2>Mistakes, the most confident first</h2>
<table><tr><th>clip</th><th>is</th><th>taken for</th><th>probability</th></tr>
{% for row in mistakes %}<tr><td>{{ row.clip }}</td><td>{{ row.label }}</td>
<td>{{ row.predicted }}</td><td>{{ "%.2f"|format(row.probability) }}</td></tr>{% endfor %}</table>
"""
    + FOOT
)
DETECTION = (
    HEAD
    + """<p>Held-out clips: {{ metrics.model.clips }}, streams {{ config.streams|join(" + ") }};
learned from which clips are anomalous, judged by when.</p>
{% for note in notes %}<p class="warn">{{ note }}</p>{% endfor %}
<h2>Frames</h2>
<table><tr><th>of</th><th>clips</th><th>anomalous</th><th>AP</th><th>ROC-AUC</th>
<th>linear: AP</th><th>ROC-AUC</th></tr>
{% for name, clips, ours, theirs in rows %}<tr><td>{{ name }}</td><td>{{ clips }}</td>
<td>{{ "%.1f"|format(100 * ours.anomalous / ours.frames) }} %</td>
{% for value in (ours.ap, ours.roc_auc, theirs.ap, theirs.roc_auc) %}
<td>{{ "n/a" if value is none else "%.4f"|format(value) }}</td>{% endfor %}</tr>{% endfor %}</table>
<p>AP: area under the precision-recall curve, as XD-Violence reports it
{%- if metrics.model.intervals %}; of all clips
{{ "%.3f to %.3f"|format(*metrics.model.intervals.ap) }} in 95 of 100 draws of the clips{% endif %}.
</p>
<figure>{{ curves|safe }}</figure>
<h2>Stretches of time</h2>
<table><tr><th></th><th>MTCN</th><th>linear</th></tr>
{% for overlap in metrics.model.segments %}<tr>
<td>{{ "mean AP of segments" if overlap == "mean" else "AP of segments, IoU " ~ overlap }}</td>
{% for who in (metrics.model, metrics.linear) %}
<td>{{ "n/a" if who.segments[overlap] is none else "%.3f"|format(who.segments[overlap]) }}</td>
{% endfor %}</tr>{% endfor %}
<tr><td>false alarms an hour</td>{% for who in (metrics.model, metrics.linear) %}
<td>{{ "n/a" if who.false_alarms.per_hour is none
    else "%.1f"|format(who.false_alarms.per_hour) }}</td>{% endfor %}</tr></table>
{% if metrics.model.false_alarms.recall is not none %}
<p>False alarms: at the threshold that notices
{{ "%.0f"|format(100 * metrics.model.false_alarms.recall) }} % of the annotated anomalies.</p>
{% endif %}
<h2>Training</h2>
<figure>{{ training|safe }}</figure>
"""
    + FOOT
)


def write_report(
    run: Run, metrics: dict[str, Any], predictions: list[dict[str, Any]], path: Path
) -> None:
    """Write the report of an evaluated run.

    Args:
        run: the run.
        metrics: from `evaluate_run`.
        predictions: the rows of ``predictions.csv``.
        path: the HTML file.
    """
    wrong = [
        {**row, "probability": float(row[row["predicted"]])}
        for row in predictions
        if row["label"] != row["predicted"]
    ]
    wrong.sort(key=lambda row: -row["probability"])
    counts = [row["clips"] for row in metrics["model"]["per_class"].values()]
    page = jinja2.Environment(autoescape=True).from_string(TEMPLATE)
    html = page.render(
        name=run.path.resolve().name,
        metrics=metrics,
        classes=run.classes,
        config=run.config,
        notes=_notes(run, metrics),
        chance=max(counts) / sum(counts),
        mistakes=wrong[:20],
        confusion=_svg(lambda axes: _confusion(axes, metrics, run.classes), side(run.classes)),
        reliability=_svg(lambda axes: _reliability(axes, metrics), (4, 3.5)),
        curves=_svg(lambda axes: _curves(axes, run), (7, 3.5)),
        settings=run.config.to_toml(),
        recipe=run.recipe.to_json(),
    )
    path.write_text(html, encoding="utf-8")


def write_detection_report(run: Run, metrics: dict[str, Any], path: Path) -> None:
    """Write the report of an evaluated run of detection; `metrics` are from `evaluate_run`."""
    model, linear = metrics["model"], metrics["linear"]
    rows = [("all", model["clips"], model["all"], linear["all"])]
    if model["abnormal"]:
        rows.append(("abnormal clips", "", model["abnormal"], linear["abnormal"]))
    for name, row in model["per_class"].items():
        rows.append((name, row["clips"], row, linear["per_class"][name]))
    page = jinja2.Environment(autoescape=True).from_string(DETECTION)
    html = page.render(
        name=run.path.resolve().name,
        metrics=metrics,
        config=run.config,
        notes=_notes(run, metrics),
        rows=rows,
        curves="".join(
            _svg(partial(_frame_curve, metrics=metrics, name=name), (4.5, 3.5))
            for name in model["curves"]
        ),
        training=_svg(lambda axes: _curves(axes, run), (7, 3.5)),
        settings=run.config.to_toml(),
        recipe=run.recipe.to_json(),
    )
    path.write_text(html, encoding="utf-8")


def _notes(run: Run, metrics: dict[str, Any]) -> list[str]:
    """Return what a reader must know before any figure."""
    notes = []
    if run.recipe.random_streams:
        notes.append(
            "Random backbones (" + ", ".join(run.recipe.random_streams) + "): the networks behind "
            "these features have learned nothing. The figures test the pipeline, not the method."
        )
    if metrics["held_out"] == "validation":
        notes.append(
            "The manifest has no test clips: these are the validation clips, on which the best "
            "epoch was chosen. The figures are too good."
        )
    for name, count in metrics["missing_streams"].items():
        if count:
            notes.append(f"Held-out clips without {name}: {count}.")
    if run.left_out:
        notes.append(f"Clips of the manifest that were not in the store: {len(run.left_out)}.")
    return notes


def side(classes: list[str]) -> tuple[float, float]:
    """Return the size of a confusion matrix in inches."""
    inches = 2.5 + 0.45 * len(classes)
    return inches, inches


def _confusion(axes: Axes, metrics: dict[str, Any], classes: list[str]) -> None:
    counts = np.array(metrics["model"]["confusion"])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            ink = "white" if share[row, column] > 0.5 else "#333333"
            axes.text(column, row, str(count), ha="center", va="center", color=ink)
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="recognised as", ylabel="is")


def _reliability(axes: Axes, metrics: dict[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color=INK, linestyle=":")
    for name, who, colour in (("MTCN", "model", "#1b9e77"), ("linear", "linear", "#d95f02")):
        bins = metrics[who]["calibration"]["bins"]
        x, y = ([b[key] for b in bins] for key in ("confidence", "accuracy"))
        axes.plot(x, y, "o-", color=colour, label=name, markersize=4)
    axes.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, labelcolor=INK)


def _frame_curve(axes: Axes, metrics: dict[str, Any], name: str) -> None:
    for who, colour in (("model", "#1b9e77"), ("linear", "#d95f02")):
        points = np.array(metrics[who]["curves"][name])
        axes.plot(*points.T, color=colour, label="MTCN" if who == "model" else who)
    of = {"precision_recall": ("recall", "precision"), "roc": ("false alarms", "recall")}
    axes.set(xlabel=of[name][0], ylabel=of[name][1], xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, labelcolor=INK)


def _curves(axes: Axes, run: Run) -> None:
    rows = run.history()
    right = axes.twinx()
    models = list(dict.fromkeys((row["seed"], row["fold"]) for row in rows))
    for model in models:
        own = [row for row in rows if (row["seed"], row["fold"]) == model]
        epochs = [row["epoch"] for row in own]
        first = model == models[0]
        axes.plot(
            epochs,
            [row["val_loss"] for row in own],
            color="#d95f02",
            alpha=0.8,
            label="validation loss" if first else None,
        )
        right.plot(
            epochs,
            [row["val_accuracy"] for row in own],
            color="#1b9e77",
            alpha=0.8,
            label="validation accuracy" if first else None,
        )
    axes.set(xlabel="epoch", ylabel="loss")
    right.set(ylabel="accuracy", ylim=(0, 1))
    axes.figure.legend(loc="upper center", ncols=2, frameon=False, labelcolor=INK)
    _recolour(right)


def _svg(draw: Callable[[Axes], None], size: tuple[float, float]) -> str:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    _recolour(axes)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _recolour(axes: Axes) -> None:
    """Draw the frame in a grey that reads on light and on dark."""
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
