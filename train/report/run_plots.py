"""The plots of a run's report: metrics of either task, the map of clips, the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from train.evaluation.evaluate import Evaluation
from train.evaluation.figures import DetectionMetrics, RecognitionMetrics
from train.inference import ClipPrediction
from train.report.html import COLOURS, INK, categories, plain, plot
from train.run import Run

MAPPED = 1000  # clips on the map at most: t-SNE of more takes longer than training
FEW_EPOCHS = 10  # up to which each has its tick; Plotly would put some between them
COMPONENTS = 50  # of the features that t-SNE reads, as its authors advise
PERPLEXITY = 30.0
FEWEST_MAPPED = 4  # clips: t-SNE cannot place fewer
LEAST_SPREAD = 0.5  # of a standardised column, which has 1 unless all its values are equal
MODEL, LINEAR = COLOURS[1], COLOURS[0]
# from grey to blue, of one lightness: readable in black on light pages and on dark ones
CELLS = [[0, "rgb(150, 160, 170)"], [1, "rgb(80, 170, 245)"]]
SYMBOLS = ("circle", "square", "diamond", "triangle-up")  # that a map's classes take in turns


def run_plots(run: Run, evaluation: Evaluation) -> dict[str, go.Figure]:
    """Return the plots of a run's report by name, as Plotly's figures.

    In recognition ``classes``, ``confusion`` and ``calibration``; in detection ``precision_recall``
    and ``roc``; in both ``training`` and ``map``. `Run.plot_scores` has the scores of a clip.

    Args:
        run: the run.
        evaluation: of it, from `judge_run`.
    """
    metrics = evaluation.metrics
    if metrics["task"] == "detection":
        plots = _detection_plots(run, metrics)
    else:
        plots = _recognition_plots(run, metrics)
    return {**plots, "training": _training_curves(run), "map": _clip_map(run, evaluation)}


def _recognition_plots(run: Run, metrics: RecognitionMetrics) -> dict[str, go.Figure]:
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
        z=np.where(counts > 0, share, np.nan),
        text=np.where(counts > 0, counts.astype(str), ""),
        texttemplate="%{text}",
        textfont={"color": "black"},
        zmin=0,
        zmax=1,
        colorscale=CELLS,
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
            go.Scatter(
                x=x,
                y=y,
                mode="lines+markers",
                name=name,
                line={"color": colour},
                cliponaxis=False,  # or half of a marker at 1 is cut off
            )
        )
    return {
        "classes": plot(
            bars, xaxis=categories(run.classes), yaxis={"range": [0, 1]}, barmode="group"
        ),
        "confusion": plot(
            [confusion],
            height=180 + 40 * len(names),
            xaxis={"title": "recognised as", **categories(run.classes)},
            yaxis={"title": "is", **categories(run.classes), "autorange": "reversed"},
        ),
        "calibration": plot(
            reliability,
            xaxis={"title": "confidence", "range": [0, 1]},
            yaxis={"title": "share that is right", "range": [0, 1]},
        ),
    }


def _detection_plots(run: Run, metrics: DetectionMetrics) -> dict[str, go.Figure]:
    model, linear = metrics["model"], metrics["linear"]
    of = {"precision_recall": ("recall", "precision"), "roc": ("false alarms", "recall")}
    curves = {}
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
        curves[name] = plot(lines, xaxis=x_axis, yaxis=y_axis)
    return curves


def _clip_map(run: Run, evaluation: Evaluation) -> go.Figure:
    """Return the held-out clips by their features; or why they cannot be shown so."""
    clips, data = evaluation.clips, evaluation.data
    if len(clips) > MAPPED:
        chosen = np.random.default_rng(run.config.seed).permutation(len(clips))[:MAPPED]
        clips = [clips[n] for n in sorted(chosen)]
    if len(clips) < FEWEST_MAPPED:
        return _no_map(f"there are {len(clips)} clips, and it needs {FEWEST_MAPPED}")
    where = {clip_id: index for index, clip_id in enumerate(data.ids)}
    table = data.averages(np.array([where[clip.id] for clip in clips]))
    rows = StandardScaler().fit_transform(table)
    if rows.std(0).max() < LEAST_SPREAD:  # t-SNE would divide by zero, and crash
        return _no_map("all clips are alike in the streams that the model reads")
    rows = PCA(min(COMPONENTS, *rows.shape), random_state=run.config.seed).fit_transform(rows)
    perplexity = min(PERPLEXITY, (len(clips) - 1) / 3)
    seed = run.config.seed
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows)
    labels = [_shown_label(run, clip) for clip in clips]
    traces = []
    for label, look in _looks(labels).items():
        # those that are right first: the legend shows the first one's symbol
        own = sorted(
            (clips[n].predicted != clips[n].label, n) for n, x in enumerate(labels) if x == label
        )
        where_own = [n for _, n in own]
        traces.append(
            go.Scatter(
                x=points[where_own, 0],
                y=points[where_own, 1],
                mode="markers",
                name=plain(label),
                text=[plain(clips[n].id) for n in where_own],
                marker={
                    "size": 10,
                    "color": look["color"],
                    "symbol": [look["symbol"] + "-open" * wrong for wrong, _ in own],
                    "line": {"width": [2 * wrong for wrong, _ in own]},
                },
                hovertemplate="%{text}<extra>%{fullData.name}</extra>",
            )
        )
    hidden = {"showticklabels": False, "showgrid": False, "zeroline": False, "ticks": ""}
    return plot(traces, height=520, xaxis=hidden, yaxis=hidden, hovermode="closest")


def _no_map(why: str) -> go.Figure:
    words = {"text": f"No map: {why}.", "showarrow": False}
    return plot([], 120, annotations=[words], xaxis={"visible": False}, yaxis={"visible": False})


def _looks(labels: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return a colour and a symbol for each label; neighbours in hue differ in all else, too."""
    names = sorted(set(labels))
    return {
        name: {
            "color": f"hsl({360 * n // len(names)}, 70%, {(42, 62)[n % 2]}%)",
            "symbol": SYMBOLS[n % len(SYMBOLS)],
        }
        for n, name in enumerate(names)
    }


def _shown_label(run: Run, clip: ClipPrediction) -> str:
    return run.truth[clip.id].label if clip.id in run.truth else clip.label


def _training_curves(run: Run) -> go.Figure:
    """Return the plot of losses and accuracy over the epochs of all models, each start a curve."""
    rows = run.epochs()
    starts: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
    for row in rows:
        starts.setdefault((row["seed"], row["fold"], row.get("start", 0)), []).append(row)
    traces: list[go.Scatter] = []
    for own in starts.values():
        first = not traces
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
                    line={"color": colour, "width": 2 if len(starts) == 1 else 1},
                )
            )
    longest = max((row["epoch"] for row in rows), default=0)
    return plot(
        traces,
        xaxis={"title": "epoch", **({"dtick": 1} if longest <= FEW_EPOCHS else {})},
        yaxis={"title": "loss", "rangemode": "tozero"},
        yaxis2={
            "title": "accuracy",
            "range": [0, 1.02],
            "overlaying": "y",
            "side": "right",
            # those of the other axis lie at accuracies of .206 and .412
            "tickmode": "linear",
            "dtick": 0.2,
            "showgrid": False,
        },
        margin={"l": 60, "r": 60, "t": 40, "b": 50},
    )
