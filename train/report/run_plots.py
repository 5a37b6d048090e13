"""The plots of a run's report: figures of either task, the map of clips, the training."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from train.evaluation.alarms import ALARM_SECONDS
from train.evaluation.evaluate import Evaluation
from train.evaluation.figures import DetectionMetrics, FrameFigures, RecognitionMetrics
from train.inference import ClipPrediction
from train.report.html import COLOURS, INK, plain, plot
from train.run import Run

MAPPED = 1000  # clips on the map at most: t-SNE of more takes longer than training
COMPONENTS = 50  # of the features that t-SNE reads, as its authors advise
PERPLEXITY = 30.0
FEWEST_MAPPED = 4  # clips: t-SNE cannot place fewer
LEAST_SPREAD = 0.5  # of a standardised column, which has 1 unless all its values are equal
MODEL, LINEAR = COLOURS[1], COLOURS[0]


def recognition_plots(run: Run, metrics: RecognitionMetrics) -> dict[str, Any]:
    """Return what the template of recognition shows besides."""
    model = metrics["model"]
    names = [plain(name) for name in run.classes]
    rows = [model["per_class"][name] for name in run.classes]
    scores = {
        "precision": [row["precision"] for row in rows],
        "recall": [row["recall"] for row in rows],
        "F1": [row["f1"] for row in rows],
    }
    counts = np.array(model["confusion"])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    bars = [go.Bar(x=names, y=values, name=name) for name, values in scores.items()]
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
    both = (run.config.model, model, MODEL), ("logistic baseline", metrics["linear"], LINEAR)
    for name, figures, colour in both:
        bins = figures["calibration"]["bins"]
        x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
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


def detection_plots(run: Run, metrics: DetectionMetrics) -> dict[str, Any]:
    """Return what the template of detection shows besides."""
    model, linear = metrics["model"], metrics["linear"]
    rows: list[tuple[str, int | str, FrameFigures, FrameFigures]] = [
        ("all", model["clips"], model["all"], linear["all"])
    ]
    if model["abnormal"] and linear["abnormal"]:
        rows.append(("abnormal clips", "", model["abnormal"], linear["abnormal"]))
    for name, row in model["per_class"].items():
        rows.append((name, row.get("clips", ""), row, linear["per_class"][name]))
    of = {"precision_recall": ("recall", "precision"), "roc": ("false alarms", "recall")}
    curves = []
    for name in model["curves"]:
        lines = []
        for label, who, colour in (
            (run.config.model, model, MODEL),
            ("logistic baseline", linear, LINEAR),
        ):
            x, y = np.array(who["curves"][name]).T
            lines.append(go.Scatter(x=x, y=y, mode="lines", name=label, line={"color": colour}))
        across, up = of[name]
        x_axis = {"title": across, "range": [0, 1]}
        y_axis = {"title": up, "range": [0, 1.02]}
        curves.append(plot(lines, xaxis=x_axis, yaxis=y_axis))
    return {"rows": rows, "curves": curves, "alarm_seconds": f"{ALARM_SECONDS:g}"}


class ClipMap(NamedTuple):
    """A plot of clips by their features, how many are on it, and why there is none, if so."""

    plot: str
    clips: int
    why_none: str = ""


def clip_map(run: Run, evaluation: Evaluation) -> ClipMap:
    """Return the plot of the held-out clips by their features."""
    clips, data = evaluation.clips, evaluation.data
    if len(clips) > MAPPED:
        chosen = np.random.default_rng(run.config.seed).permutation(len(clips))[:MAPPED]
        clips = [clips[n] for n in sorted(chosen)]
    if len(clips) < FEWEST_MAPPED:
        return ClipMap("", 0, f"there are {len(clips)} clips, and it needs {FEWEST_MAPPED}")
    where = {clip_id: index for index, clip_id in enumerate(data.ids)}
    table = data.averages(np.array([where[clip.id] for clip in clips]))
    rows = StandardScaler().fit_transform(table)
    if rows.std(0).max() < LEAST_SPREAD:  # t-SNE would divide by zero, and crash
        return ClipMap("", 0, "all clips are alike in the streams that the model reads")
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
    drawn = plot(traces, height=520, xaxis=hidden, yaxis=hidden, hovermode="closest")
    return ClipMap(drawn, len(clips))


def _shown_label(run: Run, clip: ClipPrediction) -> str:
    return run.truth[clip.id].label if clip.id in run.truth else clip.label


def training_curves(run: Run) -> str:
    """Return the plot of losses and accuracy over the epochs of all models."""
    rows = run.epochs()
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
