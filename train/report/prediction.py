"""The page of a prediction: the video beside the timeline of its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from features import Features, Joined, Store, join
from train.config import TrainError
from train.data import store_names
from train.report.html import (
    FOUND,
    INK,
    SHARES,
    TRUTH,
    categories,
    places,
    plain,
    plot,
    share_plotly,
    stretches,
    write_page,
)

if TYPE_CHECKING:
    from train.predict import Prediction
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
    measure, scores = _scores(run, prediction, prediction.label)
    timeline = scores_plot(run, clip, prediction, without)
    cursor = {"x0": 0, "x1": 0, "y0": 0, "y1": 1, "xref": "x", "yref": "paper"}
    cursor |= {"type": "line", "line": {"color": INK, "width": 2}}
    timeline.layout.shapes = [cursor, *timeline.layout.shapes]  # the page moves the first one
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
        sources=places(video, file),
        notes=notes,
        prediction=prediction,
        normal=run.normal,
        scores=[round(float(score), 4) for score in scores],
        step=clip.snippet_seconds,
        duration=clip.duration,
        measure=measure,
        height=timeline.layout.height,
        timeline=timeline,
        explanation=_explanation(run, list(without)),
    )


def _scores(run: Run, prediction: Prediction, label: str) -> tuple[str, NDArray[np.float32]]:
    """Return the name and the course of what a prediction's curve shows."""
    if prediction.anomaly is not None:
        return "anomaly", prediction.anomaly
    return label, prediction.scores[:, run.classes.index(label)]


def clip_plot(run: Run, clip: str | Features, store: Store | Joined | None = None) -> go.Figure:
    """Return `scores_plot` of a clip, by the models that were not trained on it if there are any.

    Args:
        run: a trained run.
        clip: its id, or its features.
        store: has the clip; None opens the one that the run was trained on.

    Raises:
        TrainError: the store does not have the clip.
        FeatureError: the store is not where it was.
    """
    from train.predict import Predictor

    rows, truth, held_out = clip, None, []
    if isinstance(rows, str):
        opened = join(*map(Store, run.stores)) if store is None else store
        if rows not in opened:
            raise TrainError(
                f"{rows} is not in {store_names(opened)}; see 'avarnet features list STORE', "
                "or give the store that has it"
            )
        truth = run.truth[rows].intervals if rows in run.truth else None
        folds = [number for number, split in enumerate(run.splits) if rows in split.test]
        held_out = [number for number, (fold, _) in enumerate(run.models) if fold in folds]
        rows = opened[rows]
    predictor = Predictor(run, [run.model(number) for number in held_out] or None)
    streams = [name for name in run.config.streams if rows.valid[name].any()]
    without = {name: predictor(rows, [name]) for name in streams if len(streams) > 1}
    return scores_plot(run, rows, predictor(rows), without, truth or ())


def scores_plot(
    run: Run,
    clip: Features,
    prediction: Prediction,
    without: Mapping[str, Prediction],
    truth: Sequence[tuple[float, float]] = (),
) -> go.Figure:
    """Return the scores of a clip over time, and of each class below.

    Args:
        run: that scored it.
        clip: its features.
        prediction: what the run predicts.
        without: stream -> what it predicts without that stream.
        truth: when it is anomalous, as far as that is known.
    """
    middles = {"x0": clip.snippet_seconds / 2, "dx": clip.snippet_seconds}
    others = {f"without {name}": own for name, own in without.items()}
    measure = _scores(run, prediction, prediction.label)[0]
    traces: list[Any] = [
        go.Scatter(
            **middles,
            y=_scores(run, own, prediction.label)[1],
            name=name,
            mode="lines",
            line={"width": 2.5 if number == 0 else 1.2, "dash": "solid" if number == 0 else "dot"},
            hovertemplate="%{y:.2f}",
        )
        for number, (name, own) in enumerate({"all streams": prediction, **others}.items())
    ]
    if prediction.intervals:
        found = [(start, end) for start, end, *_ in prediction.intervals]
        traces.append(stretches(found, "predicted interval", FOUND))
    if truth:
        traces.append(stretches(truth, "annotated", TRUTH))
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
    threshold = []
    if prediction.anomaly is not None:
        high = run.interval_settings.high
        level = {"y0": high, "y1": high, "xref": "paper", "yref": "y"}
        dashed = {"color": INK, "width": 1, "dash": "dash"}
        threshold = [{"type": "line", "x0": 0, "x1": 1, **level, "line": dashed}]
    return plot(
        [*traces, classes],
        height=CURVES_HEIGHT + 60 + below,
        hovermode="x",
        shapes=threshold,
        xaxis={
            "title": "seconds",
            "range": [0, clip.duration],
            "anchor": "y2",
            "automargin": False,  # with that of the other axis, a narrow page goes round in circles
        },
        yaxis={"title": plain(measure), **SHARES, "domain": [share + 0.03, 1]},
        yaxis2={**categories(run.classes), "domain": [0, share], "showgrid": False},
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
            f" An interval is where the score is {settings.low:.2f} or more, and once "
            f"{settings.high:.2f} or more (dashed), for {settings.shortest:g} s or longer"
        )
        right = run.chosen.get("balanced_accuracy")
        text += (
            f"; chosen on {run.chosen['clips']} validation clips, of which it tells the anomalous "
            f"from the normal with a balanced accuracy of {right:.2f}."
            if right is not None
            else "; there was no validation clip of each kind to choose these by."
        )
    return text
