"""`avarnet watch`: a run over a live stream."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarnet.console import err, plain, print_json_line
from avarnet.inputs import (
    moved_models,
    need_device,
    need_extract,
    warn_of_other_reading,
    warn_of_random_weights,
)
from avarnet.options import AudioModel, Device, RunPath, VideoModel, VideoWeights

if TYPE_CHECKING:
    from extract import Snippet
    from train import LiveScorer

app = typer.Typer()
BEHIND = 2.0  # seconds by which a line is late, from which on that is reported
DRIFT = 1e-3  # seconds a second by which a camera's clock may be slower than this machine's


@app.command(epilog="Example: `avarnet watch run rtsp://camera.local/stream`")
def watch(
    run: RunPath,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A URL (rtsp://, http://), a growing file, or - (stdin)."
        ),
    ],
    video_model: VideoModel = None,
    video_weights: VideoWeights = None,
    audio_model: AudioModel = None,
    device: Device = "auto",
    retries: Annotated[
        int | None,
        typer.Option(min=0, help="To open a URL, in a row.", show_default="unlimited"),
    ] = None,
) -> None:
    """Score a live stream with a causal run: one line of JSON for each snippet, and each gap."""
    import train as stage2

    loaded = stage2.Run.load(run)
    scorer = stage2.LiveScorer(loaded)
    need_device(device)
    need_extract()
    import extract as stage1

    recipe = moved_models(loaded.recipe, video_model, video_weights, audio_model)
    recipe = recipe.only(loaded.config.streams)
    warn_of_random_weights(recipe)
    warn_of_other_reading(recipe, run)
    if recipe.streams_with_lookahead:
        err.print(
            f"[yellow bold]HEARS DIFFERENTLY[/] "
            f"({plain(', '.join(recipe.streams_with_lookahead))}): {plain(str(run))} was trained "
            "on sound heard in windows around a snippet, of which a live stream has only "
            "the past. The features differ, and the scores may be wrong. The way out: 'avarnet "
            "extract MANIFEST NEW-STORE --live', and a run that is trained on that store.",
            soft_wrap=True,
        )
    delay = _Delay("://" in source)
    with suppress(KeyboardInterrupt):
        for event in stage1.live_snippets(source, recipe, device, retries):
            if isinstance(event, stage1.Snippet):
                line = _scored(event, scorer)
                print_json_line(line)
                delay.report(event, line["latency"])
            elif event.end is None:
                note = f"[yellow]gap[/] from {event.start:.2f} s on: {plain(event.why)}"
                err.print(note, soft_wrap=True)
            else:
                scorer.restart()  # across a gap, nothing is known of what came before
                line = {"start": round(event.start, 3), "end": round(event.end, 3)}
                print_json_line({**line, "gap": event.why})


class _Delay:
    """Reports when lines fall behind the stream, each time by twice as much, and catch up again.

    That is judged by the stream's own time stamps against the machine's clock: by when a snippet
    was decoded alone, a decoder that is too slow would not be seen.

    Args:
        remote: the stream does not wait for its reader, as a file and a pipe do.
    """

    def __init__(self, remote: bool) -> None:
        self._remote = remote
        self._reported = 0.0  # seconds; 0 while nothing is late
        self._zero: float | None = None  # of the stream's clock, by that of the machine
        self._end = 0.0  # of the line before

    def report(self, snippet: Snippet, latency: float) -> None:
        """Report on a line.

        Args:
            snippet: of the line.
            latency: seconds from when it had come to its line.
        """
        from extract.live.stream_receiver import MOST_LATE

        came = snippet.received - snippet.end
        if self._zero is None:
            self._zero = came
        if self._remote:  # the earliest that a snippet has come is in time
            self._zero = min(came, self._zero + DRIFT * (snippet.end - self._end))
        self._end = snippet.end
        behind = came + latency - self._zero
        if not self._remote:  # a recording is read ahead: it is late only if slower than it lasts
            behind = min(latency, behind)
        at = f"at {snippet.end:.2f} s"
        if behind >= max(BEHIND, 2 * self._reported):
            self._reported = behind
            if not self._remote:
                then = "nothing is lost, the file or pipe is read more slowly"
            elif latency < behind / 2:
                then = (
                    "it comes so late, or is decoded too slowly: a smaller picture, or fewer "
                    "frames a second, are decoded faster"
                )
            else:
                then = (
                    f"snippets wait for the networks, and those that wait when it is {MOST_LATE:g} "
                    "s are passed over, which is a gap"
                )
            err.print(f"[yellow]behind[/] by {behind:.1f} s {at}: {then}", soft_wrap=True)
        elif self._reported and behind < BEHIND / 2:
            self._reported = 0.0
            err.print(f"[green]caught up[/] {at}", soft_wrap=True)


def _scored(snippet: Snippet, scorer: LiveScorer) -> dict[str, Any]:
    classes, normal = scorer.run.classes, scorer.run.normal
    probabilities = scorer(snippet.rows, snippet.valid)
    best = int(probabilities.argmax())
    by_class = {name: round(float(p), 4) for name, p in zip(classes, probabilities, strict=True)}
    return {
        "start": round(snippet.start, 3),
        "end": round(snippet.end, 3),
        "label": classes[best],
        "score": round(float(probabilities[best]), 4),
        "probabilities": by_class,
        # as in an interval of `predict`: how likely it is anything but normal
        "anomaly": None if normal is None else round(1 - by_class[normal], 4),
        "alarm": None
        if normal is None or scorer.run.calibration is None
        else float(1 - probabilities[classes.index(normal)]) >= scorer.run.calibration["threshold"],
        "streams": [name for name, valid in snippet.valid.items() if valid],
        "latency": round(time.monotonic() - snippet.received, 4),
    }
