"""`avarnet predict`: what a run says of new videos."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import manifests
from avarnet.console import (
    ANOMALY,
    FAILED,
    SOME_FAILED,
    clock,
    err,
    fail,
    footage_bar,
    out,
    plain,
    print_json,
    shown,
)
from avarnet.inputs import (
    lines_of,
    moved_models,
    need_device,
    need_extract,
    say_left_out,
    say_random,
    say_reading,
)
from avarnet.options import AudioModel, Device, Json, RunPath, VideoModel, VideoWeights

if TYPE_CHECKING:
    from features import Features
    from train import Prediction, Predictor

app = typer.Typer()


@app.command(epilog="Example: `avarnet predict run new.mp4 --html pages`")
def predict(
    run: RunPath,
    videos: Annotated[
        list[Path],
        typer.Argument(metavar="VIDEO...", help="Videos, folders of them, or lists (.txt)."),
    ],
    html: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Pages to look at: a folder, or FILE.html of one video."),
    ] = None,
    fail_on_anomaly: Annotated[
        bool, typer.Option("--fail-on-anomaly", help="Exit with 4 if there is one.")
    ] = False,
    video_model: VideoModel = None,
    video_weights: VideoWeights = None,
    audio_model: AudioModel = None,
    device: Device = "auto",
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print a line for each interval and nothing else.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What new videos show: their class, and when something happens in them."""
    import train as stage2

    loaded = stage2.Run.load(run)
    need_device(device)
    if fail_on_anomaly and loaded.normal is None:
        fail(f"{run} knows no normal class; name it in training: avarnet train ... --normal LABEL")
    need_extract()
    import extract as stage1

    recipe = moved_models(loaded.recipe, video_model, video_weights, audio_model)
    files, unreadable = _listed(videos)
    pages = _pages(files, html)
    quiet = as_json or as_csv
    if not quiet:
        say_random(recipe)
        if loaded.normal is None:
            out.print("the run knows no normal class (train --normal LABEL): no intervals")
    say_reading(recipe, run)
    extractor = stage1.Extractor(recipe, device, other_reading=True)
    predictor = stage2.Predictor(loaded)
    answers: list[dict[str, Any]] = [
        {"video": str(folder), "error": why} for folder, why in unreadable.items()
    ]
    with footage_bar("scoring") as bar:
        total = sum(stage1.footage(file) for file in files) if err.is_terminal else 0.0
        clips = (stage1.Files(file, None) for file in files)
        for (video, _), clip in extractor.stream(clips, lambda seconds: bar(seconds, total)):
            if isinstance(clip, stage1.ClipError):
                answers.append({"video": str(video), "error": str(clip)})
                err.print(f"[red]failed:[/] {shown(f'{video}: {clip}')}", soft_wrap=True)
                continue
            answer = predictor(clip)
            answers.append(_answer(video, clip, answer))
            if not quiet:
                print_prediction(video, clip, answer)
            if html is not None:
                write_page(pages[video], video, clip, predictor, answer, quiet)
    if as_json:
        print_json(answers)
    if as_csv:
        _print_intervals(answers)
    failed = sum("error" in answer for answer in answers)
    if fail_on_anomaly and any(answer.get("intervals") for answer in answers):
        raise typer.Exit(ANOMALY)
    if failed:
        raise typer.Exit(FAILED if failed == len(answers) else SOME_FAILED)


def _listed(videos: list[Path]) -> tuple[list[Path], dict[Path, str]]:
    """Return the videos that are given: themselves, by their folder, or in a list of paths.

    And the folders that cannot be read, with the reason.
    """
    found: list[Path] = []
    unreadable: dict[Path, str] = {}
    for path in videos:
        if path.is_dir():
            below = manifests.videos_below(path)
            say_left_out(below, err)
            if not below.videos:
                fail(f"{path}: no videos in this folder")
            found += below.videos
            unreadable |= below.unreadable
        elif path.suffix == ".txt":
            listed = lines_of(path, "of videos")
            if not listed:
                fail(f"{path}: no videos in this list; write a path on each line")
            found += [path.parent / line for line in listed]
        else:
            found.append(path)
    return list(dict.fromkeys(found)), unreadable


def _pages(files: list[Path], html: Path | None) -> dict[Path, Path]:
    """Return the page of each video."""
    if html is None:
        return {}
    if html.suffix == ".html":
        if len(files) > 1:
            fail(f"--html {html}: there are several videos; give a folder for their pages")
        return {files[0]: html}
    names = [file.stem for file in files]
    if len(set(names)) < len(names):  # where names alone are not enough, all have their path
        above = os.path.commonpath([file.resolve().parent for file in files])
        names = [os.path.relpath(file.resolve(), above).replace(os.sep, "-") for file in files]
    if len(set(names)) < len(names):
        fail(f"--html {html}: two videos would have the same page; give folders of their own")
    return {file: html / f"{name}.html" for file, name in zip(files, names, strict=True)}


def write_page(
    page: Path, video: Path, clip: Features, predictor: Predictor, answer: Prediction, quiet: bool
) -> None:
    from train.report.prediction import write_prediction_page

    run = predictor.run
    streams = [name for name in run.config.streams if clip.valid[name].any()]
    without = {name: predictor(clip, [name]) for name in streams if len(streams) > 1}
    page.parent.mkdir(parents=True, exist_ok=True)
    write_prediction_page(page, video, clip, run, answer, without)
    if not quiet:
        out.print(f"page: {shown(page)}", soft_wrap=True)


def _answer(video: Path, clip: Features, answer: Prediction) -> dict[str, Any]:
    return {
        "video": str(video),
        "label": answer.label,
        "confidence": answer.confidence,
        "probabilities": answer.probabilities,
        "duration": clip.duration,
        "intervals": [interval._asdict() for interval in answer.intervals],
        "snippet_seconds": clip.snippet_seconds,
        "streams": {name: int(valid.sum()) for name, valid in clip.valid.items()},
        "scores": {
            name: [round(float(score), 4) for score in answer.scores[:, column]]
            for column, name in enumerate(answer.probabilities)
        },
    }


def print_prediction(video: Path, clip: Features, answer: Prediction) -> None:
    out.print(f"{shown(video)}: [bold]{plain(answer.label)}[/] ({answer.confidence:.2f})")
    for name, valid in clip.valid.items():
        if not valid.any():
            out.print(f"  no {name} in this clip: answered without it")
    if answer.anomaly is None:
        return
    if not answer.intervals:
        out.print(f"  no anomaly; the highest score is {answer.anomaly.max():.2f}")
    else:
        table = Table("from", "to", "class", "anomaly, at most")
        for start, end, label, score in answer.intervals:
            table.add_row(clock(start, 1), clock(end, 1), plain(label), f"{score:.2f}")
        out.print(table)


def _print_intervals(answers: list[dict[str, Any]]) -> None:
    """Print the intervals as CSV; a video without any has a line too, with nothing in its end."""
    table = csv.writer(sys.stdout)
    table.writerow(["video", "label", "confidence", "start", "end", "class", "score"])
    for answer in answers:
        if "error" in answer:
            continue
        whole = (answer["video"], answer["label"], f"{answer['confidence']:.4f}")
        for found in answer["intervals"]:
            seconds = (f"{found[key]:.3f}" for key in ("start", "end"))
            table.writerow([*whole, *seconds, found["label"], f"{found['score']:.4f}"])
        if not answer["intervals"]:
            table.writerow([*whole, "", "", "", ""])
