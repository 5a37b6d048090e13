"""The clips that a run's report shows: what went wrong, with pictures and the course of scores."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from train.evaluation.evaluate import Evaluation
from train.inference import ClipPrediction
from train.report.html import INK, SHARES, TRUTH, places, plain, plot, stretches
from train.report.run_plots import LINEAR, MODEL
from train.run import Run

EXAMPLES = 12  # clips that are shown under each heading


class Preview(NamedTuple):
    """What a clip looks and sounds like.

    Attributes:
        picture: some of its frames side by side, a JPEG; empty if there are none.
        loudness: (n,) the loudest samples of n stretches of equal length, 0 to 1; none if silent.
        video: where it is played from; None if it cannot be.
        audio: the file that has its sound, if it is not in the video.
    """

    picture: bytes
    loudness: NDArray[np.float32]
    video: Path | None = None
    audio: Path | None = None


class Example(NamedTuple):
    """A clip that the report shows, as the template takes it.

    Attributes:
        id, caption, timeline: what is shown of it.
        picture: a URL; empty if there is none.
        moment: of the mistake, in seconds.
        seconds: it lasts.
        video, audio: URLs to play it from, the likeliest first.
    """

    id: str
    caption: str
    timeline: go.Figure
    picture: str
    moment: float
    seconds: float
    video: list[str]
    audio: list[str]


class Shown(NamedTuple):
    """A clip, its caption, and the snippet at which it is played first."""

    clip: ClipPrediction
    caption: str
    snippet: int


class Examples(NamedTuple):
    """Clips under one heading."""

    heading: str
    text: str
    clips: list[Shown]


def examples(
    run: Run, evaluation: Evaluation, preview: Callable[[str], Preview | None], page: Path
) -> list[tuple[str, str, list[Example]]]:
    """Return (heading, text, clips) for each kind of mistake.

    Args:
        run: the run.
        evaluation: of it.
        preview: gives pictures and sound of a clip, None where there are none.
        page: that shows them.
    """
    kinds = _failures if run.config.task == "detection" else _mistakes
    return [
        (
            kind.heading,
            kind.text,
            [_example(run, shown, preview(shown.clip.id), page) for shown in kind.clips],
        )
        for kind in kinds(run, evaluation)
    ]


def _mistakes(run: Run, evaluation: Evaluation) -> list[Examples]:
    """Return the most confident mistakes of recognition, each with its caption."""
    wrong = [c for c in evaluation.clips if c.predicted != c.label]
    wrong.sort(key=lambda clip: -clip.probabilities.max())
    shown = []
    for clip in wrong[:EXAMPLES]:
        caption = f"is {clip.label}, taken for {clip.predicted} ({clip.probabilities.max():.2f})"
        highest = clip.snippets[:, run.classes.index(clip.predicted)].argmax()
        shown.append(Shown(clip, caption, int(highest)))
    return [
        Examples(
            "Mistakes", f"{len(wrong)} of {len(evaluation.clips)}; the most confident first.", shown
        )
    ]


def _failures(run: Run, evaluation: Evaluation) -> list[Examples]:
    """Return the normal clips with the highest scores, and the anomalous ones with the lowest."""
    ranked = sorted(evaluation.clips, key=lambda clip: -clip.snippets[:, 1].max())
    normal = [clip for clip in ranked if not run.truth[clip.id].intervals]
    anomalous = [clip for clip in reversed(ranked) if run.truth[clip.id].intervals]
    return [
        Examples(
            heading,
            text,
            [
                Shown(
                    clip,
                    f"{run.truth[clip.id].label}: highest score {clip.snippets[:, 1].max():.2f}",
                    int(clip.snippets[:, 1].argmax()),
                )
                for clip in clips[:EXAMPLES]
            ],
        )
        for heading, text, clips in (
            ("Normal clips with the highest scores", "Where false alarms come from.", normal),
            ("Anomalous clips with the lowest scores", "By their highest score.", anomalous),
        )
    ]


def _example(run: Run, example: Shown, seen: Preview | None, page: Path) -> Example:
    clip, step = example.clip, run.recipe.snippet_seconds
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
    truth = run.truth[clip.id].intervals if clip.id in run.truth else None
    if truth:
        traces.append(stretches(truth, "annotated", TRUTH))
    heard = seen is not None and len(seen.loudness) > 0
    if seen is not None and heard:
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
    timeline = plot(
        traces,
        height=230,
        margin={"l": 30, "r": 5, "t": 30, "b": 30},
        showlegend=len(traces) > 1 + heard,
        xaxis={"range": [0, seconds], "anchor": "y2" if heard else "y", "ticksuffix": " s"},
        yaxis={**SHARES, "domain": [0.35 * heard, 1]},
        yaxis2={"range": [-1, 1], "domain": [0, 0.3], "showticklabels": False},
    )
    picture, video, audio = "", [], []
    if seen is not None:
        if seen.picture:
            picture = "data:image/jpeg;base64," + base64.b64encode(seen.picture).decode()
        video = places(seen.video, page) if seen.video else []
        audio = places(seen.audio, page) if seen.audio else []
    moment = truth[0].start if truth else example.snippet * step
    return Example(clip.id, example.caption, timeline, picture, moment, seconds, video, audio)
