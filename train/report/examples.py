"""The clips that a run's report shows: what went wrong, with pictures and the course of scores."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from train.evaluation.evaluate import Evaluation
from train.inference import ClipPrediction
from train.report.html import INK, plain, plot, span
from train.report.run_plots import LINEAR, MODEL
from train.run import Run

EXAMPLES = 12  # clips that are shown under each heading


class Preview(NamedTuple):
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
    caption: str
    picture: str
    timeline: str


class Examples(NamedTuple):
    """Clips under one heading, each with its caption."""

    heading: str
    text: str
    clips: list[tuple[ClipPrediction, str]]


def examples(
    run: Run, evaluation: Evaluation, preview: Callable[[str], Preview | None]
) -> list[tuple[str, str, list[Example]]]:
    """Return (heading, text, clips) for each kind of mistake.

    Args:
        run: the run.
        evaluation: of it.
        preview: gives pictures and sound of a clip, None where there are none.
    """
    kinds = _failures if run.config.task == "detection" else _mistakes
    return [
        (
            kind.heading,
            kind.text,
            [_example(run, clip, caption, preview) for clip, caption in kind.clips],
        )
        for kind in kinds(run, evaluation)
    ]


def _mistakes(run: Run, evaluation: Evaluation) -> list[Examples]:
    """Return the most confident mistakes of recognition, each with what is said of it."""
    wrong = [c for c in evaluation.clips if c.predicted != c.label]
    wrong.sort(key=lambda clip: -clip.probabilities.max())
    shown = []
    for clip in wrong[:EXAMPLES]:
        caption = f"is {clip.label}, taken for {clip.predicted} ({clip.probabilities.max():.2f})"
        shown.append((clip, caption))
    return [
        Examples(
            "Mistakes", f"{len(wrong)} of {len(evaluation.clips)}; the most confident first.", shown
        )
    ]


def _failures(run: Run, evaluation: Evaluation) -> list[Examples]:
    """Return the loudest false alarms and the anomalies that detection notices the least."""
    ranked = sorted(evaluation.clips, key=lambda clip: -clip.snippets[:, 1].max())
    normal = [clip for clip in ranked if not run.truth[clip.id].intervals]
    anomalous = [clip for clip in reversed(ranked) if run.truth[clip.id].intervals]
    return [
        Examples(
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


def _example(
    run: Run, clip: ClipPrediction, caption: str, preview: Callable[[str], Preview | None]
) -> Example:
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
    seen = preview(clip.id)
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
    return Example(clip.id, caption, picture, timeline)
