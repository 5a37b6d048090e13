"""A run's report: one HTML file that says how good it is, where it fails, and what was left out."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from train.config import TrainError
from train.evaluation.compare import compare_runs
from train.evaluation.evaluate import Evaluation
from train.evaluation.segments import ALARM_SECONDS
from train.inference import Judged
from train.report.html import COLOURS, INK, figure, plain, plot, span, write_page
from train.run import Run

EXAMPLES = 12  # clips that are shown under each heading
MAPPED = 1000  # clips on the map at most: t-SNE of more takes longer than training
COMPONENTS = 50  # of the features that t-SNE reads, as its authors advise
PERPLEXITY = 30.0
MODEL, LINEAR = COLOURS[1], COLOURS[0]


class Look(NamedTuple):
    """What a clip looks and sounds like.

    Attributes:
        picture: some of its frames side by side, a JPEG.
        loudness: (n,) the loudest samples of n stretches of equal length, 0 to 1; none if silent.
    """

    picture: bytes
    loudness: NDArray[np.float32]


class Example(NamedTuple):
    """A clip that the report shows, as the template takes it."""

    id: str
    says: str
    picture: str
    timeline: str


def write_report(
    run: Run,
    evaluation: Evaluation,
    file: Path,
    look: Callable[[str], Look | None] = lambda clip_id: None,
    no_pictures: str = "",
    reasons: Mapping[str, str] | None = None,
) -> None:
    """Write the report of an evaluated run.

    Args:
        run: the run.
        evaluation: from `judge_run`.
        file: the HTML file.
        look: gives pictures and sound of a clip, None where there are none.
        no_pictures: why `look` gives none, if it does.
        reasons: clip id -> why its features are not in the store, as far as that is known.
    """
    metrics = evaluation.metrics
    detection = metrics["task"] == "detection"
    write = _detection if detection else _recognition
    points, mapped = _map(run, evaluation)
    examples = [
        (heading, text, [_example(run, clip, says, look) for clip, says in clips])
        for heading, text, clips in (_failures if detection else _mistakes)(run, evaluation)
    ]
    left_out = [(clip, (reasons or {}).get(clip, "not in the store")) for clip in run.left_out]
    write_page(
        file,
        "detection.html" if detection else "recognition.html",
        title=f"{run.path.resolve().name}: AVAR-Net report",
        run=run,
        metrics=metrics,
        notes=_notes(run, metrics),
        measure="AP of frames" if detection else "accuracy",
        value=metrics["model"]["all"]["ap"] if detection else metrics["model"]["accuracy"]["value"],
        training=_training(run),
        map=points,
        mapped=mapped,
        examples=examples,
        pictures=any(example.picture for _, _, clips in examples for example in clips),
        no_pictures=no_pictures or "none could be read",
        left_out=left_out,
        **write(run, metrics),
    )


def _recognition(run: Run, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what the template of recognition takes more."""
    model = metrics["model"]
    names = [plain(name) for name in run.classes]
    rows = [model["per_class"][name] for name in run.classes]
    counts = np.array(model["confusion"])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    bars = [
        go.Bar(x=names, y=[row[key] for row in rows], name=name)
        for key, name in (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
    ]
    confusion = go.Heatmap(
        x=names,
        y=names,
        z=share,
        text=np.where(counts > 0, counts.astype(str), ""),
        texttemplate="%{text}",
        zmin=0,
        zmax=1,
        colorscale=[[0, "rgba(31, 120, 180, 0.05)"], [1, "rgba(31, 120, 180, 1)"]],
        showscale=False,
        xgap=2,
        ygap=2,
        hovertemplate="%{y} taken for %{x}: %{text}<extra></extra>",
    )
    reliability = [
        go.Scatter(
            x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": INK}, showlegend=False
        )
    ]
    for name, who, colour in ((run.config.model, "model", MODEL), ("linear", "linear", LINEAR)):
        bins = metrics[who]["calibration"]["bins"]
        x, y = ([b[key] for b in bins] for key in ("confidence", "accuracy"))
        reliability.append(
            go.Scatter(x=x, y=y, mode="lines+markers", name=name, line={"color": colour})
        )
    clips = [row["clips"] for row in rows]
    return {
        "chance": max(clips) / sum(clips),
        "bars": plot(bars, yaxis={"range": [0, 1]}, barmode="group"),
        "confusion": plot(
            [confusion],
            height=180 + 40 * len(names),
            xaxis={"title": "recognised as", "type": "category"},
            yaxis={"title": "is", "type": "category", "autorange": "reversed"},
        ),
        "reliability": plot(
            reliability,
            xaxis={"title": "confidence", "range": [0, 1]},
            yaxis={"title": "share that is right", "range": [0, 1]},
        ),
    }


def _detection(run: Run, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what the template of detection takes more."""
    model, linear = metrics["model"], metrics["linear"]
    rows = [("all", model["clips"], model["all"], linear["all"])]
    if model["abnormal"]:
        rows.append(("abnormal clips", "", model["abnormal"], linear["abnormal"]))
    for name, row in model["per_class"].items():
        rows.append((name, row["clips"], row, linear["per_class"][name]))
    of = {"precision_recall": ("recall", "precision"), "roc": ("false alarms", "recall")}
    curves = []
    for name in model["curves"]:
        lines = []
        for label, who, colour in ((run.config.model, model, MODEL), ("linear", linear, LINEAR)):
            x, y = np.array(who["curves"][name]).T
            lines.append(go.Scatter(x=x, y=y, mode="lines", name=label, line={"color": colour}))
        across, up = of[name]
        x_axis = {"title": across, "range": [0, 1]}
        y_axis = {"title": up, "range": [0, 1.02]}
        curves.append(plot(lines, xaxis=x_axis, yaxis=y_axis))
    return {"rows": rows, "curves": curves, "alarm_seconds": f"{ALARM_SECONDS:g}"}


def _mistakes(run: Run, evaluation: Evaluation) -> list[tuple[str, str, list[tuple[Judged, str]]]]:
    """Return the most confident mistakes of recognition, each with what is said of it."""
    wrong = [c for c in evaluation.clips if c.predicted != c.label]
    wrong.sort(key=lambda clip: -clip.probabilities.max())
    shown = []
    for clip in wrong[:EXAMPLES]:
        says = f"is {clip.label}, taken for {clip.predicted} ({clip.probabilities.max():.2f})"
        shown.append((clip, says))
    return [
        ("Mistakes", f"{len(wrong)} of {len(evaluation.clips)}; the most confident first.", shown)
    ]


def _failures(run: Run, evaluation: Evaluation) -> list[tuple[str, str, list[tuple[Judged, str]]]]:
    """Return the loudest false alarms and the anomalies that detection notices the least."""
    ranked = sorted(evaluation.clips, key=lambda clip: -clip.snippets[:, 1].max())
    normal = [clip for clip in ranked if not run.truth[clip.id].intervals]
    anomalous = [clip for clip in reversed(ranked) if run.truth[clip.id].intervals]
    return [
        (
            heading,
            text,
            [
                (clip, f"{run.truth[clip.id].label}: at most {clip.snippets[:, 1].max():.2f}")
                for clip in clips[:EXAMPLES]
            ],
        )
        for heading, text, clips in (
            ("False alarms", "Normal clips by their highest score.", normal),
            ("Overlooked", "Anomalous clips by their highest score, the lowest first.", anomalous),
        )
    ]


def _example(run: Run, clip: Judged, says: str, look: Callable[[str], Look | None]) -> Example:
    step = run.recipe.snippet_seconds
    seconds = len(clip.snippets) * step
    middles = (np.arange(len(clip.snippets)) + 0.5) * step
    shown = {clip.predicted: LINEAR, clip.label: MODEL}
    if clip.id in run.truth:
        shown = {run.classes[1]: LINEAR}
    traces: list[Any] = [
        go.Scatter(
            x=middles,
            y=clip.snippets[:, run.classes.index(name)],
            mode="lines",
            name=plain(name),
            line={"color": colour},
        )
        for name, colour in shown.items()
    ]
    seen = look(clip.id)
    if seen is not None and len(seen.loudness):
        x = (np.arange(len(seen.loudness)) + 0.5) * seconds / len(seen.loudness)
        both = np.concatenate([seen.loudness, -seen.loudness[::-1]])
        traces.append(
            go.Scatter(
                x=np.concatenate([x, x[::-1]]),
                y=both,
                yaxis="y2",
                fill="toself",
                mode="none",
                fillcolor=INK,
                hoverinfo="skip",
                showlegend=False,
            )
        )
    truth = run.truth[clip.id].intervals if clip.id in run.truth else None
    timeline = plot(
        traces,
        height=230,
        margin={"l": 30, "r": 5, "t": 30, "b": 30},
        showlegend=len(shown) > 1,
        xaxis={"range": [0, seconds], "anchor": "y2", "ticksuffix": " s"},
        yaxis={"range": [0, 1.02], "domain": [0.35, 1]},
        yaxis2={"range": [-1, 1], "domain": [0, 0.3], "showticklabels": False},
        shapes=[span(*interval, "y domain", "27, 158, 119") for interval in truth or ()],
    )
    picture = ""
    if seen is not None:
        picture = "data:image/jpeg;base64," + base64.b64encode(seen.picture).decode()
    return Example(clip.id, says, picture, timeline)


def _map(run: Run, evaluation: Evaluation) -> tuple[str, int]:
    """Return the plot of the held-out clips by their features, and how many are on it."""
    clips, data = evaluation.clips, evaluation.data
    if len(clips) > MAPPED:
        chosen = np.random.default_rng(run.config.seed).permutation(len(clips))[:MAPPED]
        clips = [clips[n] for n in sorted(chosen)]
    if len(clips) < 4:
        return "", len(clips)
    where = {clip_id: index for index, clip_id in enumerate(data.ids)}
    table = data.averages(np.array([where[clip.id] for clip in clips]))
    rows = StandardScaler().fit_transform(table)
    rows = PCA(min(COMPONENTS, *rows.shape), random_state=run.config.seed).fit_transform(rows)
    perplexity = min(PERPLEXITY, (len(clips) - 1) / 3)
    seed = run.config.seed
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows)
    labels = np.array([_shown_label(run, clip) for clip in clips])
    right = np.array([clip.predicted == clip.label for clip in clips])
    traces = [
        go.Scatter(
            x=points[labels == label, 0],
            y=points[labels == label, 1],
            mode="markers",
            name=plain(label),
            text=[plain(clip.id) for clip, own in zip(clips, labels, strict=True) if own == label],
            marker={
                "size": 9,
                "symbol": np.where(right[labels == label], "circle", "x").tolist(),
            },
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )
        for label in dict.fromkeys(labels.tolist())
    ]
    hidden = {"showticklabels": False, "zeroline": False}
    return plot(traces, height=520, xaxis=hidden, yaxis=hidden, hovermode="closest"), len(clips)


def _shown_label(run: Run, clip: Judged) -> str:
    return run.truth[clip.id].label if clip.id in run.truth else clip.label


def _training(run: Run) -> str:
    rows = run.history()
    models = list(dict.fromkeys((row["seed"], row["fold"]) for row in rows))
    traces = []
    for model in models:
        own = [row for row in rows if (row["seed"], row["fold"]) == model]
        first = model == models[0]
        for key, name, colour, axis in (
            ("train_loss", "training loss", INK, "y"),
            ("val_loss", "validation loss", LINEAR, "y"),
            ("val_accuracy", "validation accuracy", MODEL, "y2"),
        ):
            traces.append(
                go.Scatter(
                    x=[row["epoch"] for row in own],
                    y=[row[key] for row in own],
                    mode="lines",
                    name=name,
                    legendgroup=name,
                    showlegend=first,
                    yaxis=axis,
                    line={"color": colour, "width": 2 if len(models) == 1 else 1},
                )
            )
    return plot(
        traces,
        xaxis={"title": "epoch"},
        yaxis={"title": "loss", "rangemode": "tozero"},
        yaxis2={"title": "accuracy", "range": [0, 1], "overlaying": "y", "side": "right"},
        margin={"l": 60, "r": 60, "t": 40, "b": 50},
    )


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
    return notes + run.doubts()


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
    names = [run.path.resolve().name for run in runs]
    said: list[tuple[str, list[str]]] = [
        ("streams", [" + ".join(run.config.streams) for run in runs]),
        ("fusion", [run.config.fusion for run in runs]),
        ("model", [run.config.model for run in runs]),
        ("held-out clips", [str(one["model"]["clips"]) for one in metrics]),
    ]
    pairs: list[tuple[str, str, dict[str, Any]]] = []
    if tasks == {"recognition"}:
        for key in ("accuracy", "precision", "recall", "f1"):
            cells = [one["model"][key] for one in metrics]
            shown = [f"{c['value']:.3f} ({c['low']:.3f} to {c['high']:.3f})" for c in cells]
            said.append((key if key == "accuracy" else f"macro {key}", shown))
        said.append(("ECE", [figure(one["model"]["calibration"]["ece"]) for one in metrics]))
        measures = {"accuracy": "accuracy"}
        classes = list(dict.fromkeys(name for run in runs for name in run.classes))
        heights = [
            {n: row["f1"] for n, row in one["model"]["per_class"].items()} for one in metrics
        ]
        title = "F1"
    else:
        measures = {"ap": "AP of frames", "roc_auc": "ROC-AUC of frames"}
        for key, name in measures.items():
            said.append((name, [figure(one["model"]["all"][key], 4) for one in metrics]))
        segments = [figure(one["model"]["segments"]["map"]["mean"]) for one in metrics]
        said.append(("mAP of segments", segments))
        alarms = [one["model"]["false_alarms"] for one in metrics]
        said.append(("anomalies to be noticed", [f"{100 * one['asked']:g} %" for one in alarms]))
        said.append(("false alarms an hour", [figure(one["per_hour"], 1) for one in alarms]))
        heights = [
            {n: row["ap"] for n, row in one["model"]["per_class"].items()} for one in metrics
        ]
        classes = list(dict.fromkeys(name for height in heights for name in height))
        title = "AP"
    for name, run in zip(names[1:], runs[1:], strict=True):
        found = compare_runs(runs[0].path, run.path)
        pairs += [(name, shown, {**found, **found[key]}) for key, shown in measures.items()]
    bars = [
        go.Bar(
            x=[plain(label) for label in classes],
            y=[height.get(label) for label in classes],
            name=plain(name),
        )
        for name, height in zip(names, heights, strict=True)
    ]
    write_page(
        file,
        "compare.html",
        title=" and ".join(names),
        names=names,
        notes=[note for run, one in zip(runs, metrics, strict=True) for note in _notes(run, one)][
            :1
        ],
        rows=said,
        bars=plot(bars, yaxis={"title": title, "range": [0, 1]}, barmode="group"),
        pairs=pairs,
    )
