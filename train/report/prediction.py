"""The page of a prediction: the video beside the timeline of its scores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
import plotly.graph_objects as go

from features import Features
from train.predict import Prediction
from train.report.html import INK, plain, plot, share_plotly, span, write_page
from train.run import Run

CURVES_HEIGHT, CLASS_HEIGHT = 260, 22  # pixels; of the curves, and of each class below them


def write_prediction_page(
    file: Path,
    video: Path,
    clip: Features,
    run: Run,
    prediction: Prediction,
    without: Mapping[str, Prediction],
    single_file: bool = True,
) -> None:
    """Write the page of one video.

    The page is whole but for the video itself, which it plays from where it lies: by a path
    relative to the page, so that both may move together, or from where it lies now.

    Args:
        file: the HTML file.
        video: that was scored.
        clip: its features.
        run: that scored it.
        prediction: what it predicts.
        without: stream -> what it predicts without that stream.
        single_file: put Plotly's program, 5 MB, into the page; else it is a file beside it, which
            all pages of a folder share.
    """
    column = run.classes.index(prediction.label)
    curves = {
        name: own.scores[:, column] if own.anomaly is None else own.anomaly
        for name, own in (
            ("all streams", prediction),
            *((f"without {n}", w) for n, w in without.items()),
        )
    }
    measure = prediction.label if prediction.anomaly is None else "anomaly"
    notes = [
        f"This clip has no {n}: it was scored without."
        for n in clip.valid
        if not clip.valid[n].any()
    ]
    if run.recipe.random_streams:
        notes.append(
            "Random backbones: the networks behind this prediction have learned nothing. It shows "
            "the way, not the method."
        )
    if prediction.novelty is not None and prediction.novelty > 1:
        notes.append(
            f"This clip is unlike anything in training ({prediction.novelty:.1f} times as far from "
            "it as is usual): trust its prediction less."
        )
    write_page(
        file,
        "prediction.html",
        plotly=None if single_file else share_plotly(file.parent),
        title=video.name,
        # not by where links lead: a folder of links may move, too
        sources=[
            quote(os.path.relpath(video.absolute(), file.absolute().parent)),
            video.resolve().as_uri(),
        ],
        notes=notes,
        prediction=prediction,
        normal=run.normal,
        scores=[round(float(score), 4) for score in curves["all streams"]],
        step=clip.snippet_seconds,
        duration=clip.duration,
        measure=measure,
        height=CURVES_HEIGHT + 60 + CLASS_HEIGHT * len(run.classes),
        timeline=_timeline(curves, clip, run, prediction, measure),
        explanation=_explanation(run, list(without)),
    )


def _timeline(
    curves: Mapping[str, np.ndarray], clip: Features, run: Run, prediction: Prediction, measure: str
) -> str:
    middles = {"x0": clip.snippet_seconds / 2, "dx": clip.snippet_seconds}
    lines = [
        go.Scatter(
            **middles,
            y=scores,
            name=name,
            mode="lines",
            line={"width": 2.5 if number == 0 else 1.2, "dash": "solid" if number == 0 else "dot"},
            hovertemplate="%{y:.2f}",
        )
        for number, (name, scores) in enumerate(curves.items())
    ]
    classes = go.Heatmap(
        **middles,
        y=[plain(name) for name in run.classes],
        z=prediction.scores.T,
        zmin=0,
        zmax=1,
        colorscale=[[0, "rgba(217, 95, 2, 0)"], [1, "rgba(217, 95, 2, 1)"]],
        showscale=False,
        yaxis="y2",
        hovertemplate="%{y} %{z:.2f}<extra></extra>",
    )
    below = CLASS_HEIGHT * len(run.classes)
    share = below / (below + CURVES_HEIGHT)
    cursor = span(0, 0, "paper") | {"line": {"color": INK, "width": 2}}
    found = [span(start, end, "paper", "217, 95, 2") for start, end, *_ in prediction.intervals]
    if prediction.anomaly is not None:
        high = run.interval_settings.high
        level = {"y0": high, "y1": high, "xref": "paper", "yref": "y"}
        dashed = {"color": INK, "width": 1, "dash": "dash"}
        found.append({"type": "line", "x0": 0, "x1": 1, **level, "line": dashed})
    return plot(
        [*lines, classes],
        height=CURVES_HEIGHT + 60 + below,
        hovermode="x",
        shapes=[cursor, *found],  # the page moves the first one
        xaxis={
            "title": "seconds",
            "range": [0, clip.duration],
            "anchor": "y2",
            "automargin": False,  # with that of the other axis, a narrow page goes round in circles
        },
        yaxis={"title": plain(measure), "range": [0, 1.02], "domain": [share + 0.03, 1]},
        yaxis2={"domain": [0, share], "showgrid": False},
    )


def _explanation(run: Run, taken: list[str]) -> str:
    settings = run.hysteresis
    text = "Below the curves, the probability of each class."
    if taken:
        text = (
            "Dotted: the scores of the same models with one stream taken away. Where a curve falls "
            "without a stream, that stream is what speaks for it. " + text
        )
    if run.normal is not None and (chosen := run.calibration) is not None:
        text += (
            f" An interval is where the score is {chosen['threshold']:.2f} or more (dashed), "
            f"chosen for {chosen['asked']:g} false alarms an hour on {chosen['hours']:.1f} hours "
            "of footage (avarnet calibrate)."
        )
    elif run.normal is not None:
        text += (
            f" An interval begins where the score reaches {settings.high:.2f} (dashed), lasts "
            f"while it is {settings.low:.2f} or more, and counts from {settings.shortest:g} s on"
        )
        right = run.chosen.get("balanced_accuracy")
        text += (
            f"; chosen on {run.chosen['clips']} validation clips, of which it tells the anomalous "
            f"from the normal with a balanced accuracy of {right:.2f}."
            if right is not None
            else "; there was no validation clip of each kind to choose these by."
        )
    return text
