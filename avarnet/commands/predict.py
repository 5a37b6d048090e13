"""`avarnet predict`: what a run predicts of new videos."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import manifests
from avarnet import pipelines
from avarnet.console import (
    ANOMALY,
    DONE,
    FAILED,
    SOME_FAILED,
    draws_bars,
    err,
    fail,
    footage_bar,
    out,
    print_csv,
    print_json,
    shown,
)
from avarnet.inputs import (
    lines_of,
    moved_models,
    need_device,
    need_extract,
    need_videos,
    print_left_out,
    warn_of_other_reading,
    warn_of_random_weights,
)
from avarnet.options import AudioModel, Device, Json, RunPath, VideoModel, VideoWeights
from avarnet.output import print_prediction
from avarnet.stores import open_stores
from features import FeatureError

if TYPE_CHECKING:
    from train import Run
    from train.report.index import Row

app = typer.Typer()


@app.command(epilog="Example: `avarnet predict run new.mp4 --html pages`")
def predict(
    run: RunPath,
    videos: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="VIDEO...",
            help="Videos, folders of them, or lists (.txt); with --store ids of its clips, or none "
            "for all.",
        ),
    ] = None,
    store: Annotated[
        list[Path] | None,
        typer.Option(help="Score clips of a store; again for each store to be joined."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Pages to look at: a folder, or FILE.html of one video."),
    ] = None,
    single_file: Annotated[
        bool,
        typer.Option("--single-file", help="Put all that a page of a folder needs into it: 5 MB."),
    ] = False,
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
    if store is None and not videos:
        raise typer.BadParameter("give videos, or --store STORE")
    if fail_on_anomaly and loaded.normal is None:
        fail(f"{run} knows no normal class; name it in training: avarnet train ... --normal LABEL")
    quiet = as_json or as_csv
    if not quiet and loaded.normal is None:
        out.print("the run knows no normal class (train --normal LABEL): no intervals")
    if store is not None:
        if html is not None:
            fail(f"--html {html}: pages show videos, and clips of a store have none")
        warn_of_random_weights(loaded.recipe)
        rows = _rows(_stored(loaded, store, videos), loaded, quiet, [])
        _end(rows, as_json, as_csv, fail_on_anomaly)
    need_videos(loaded)
    need_device(device)
    need_extract()
    import extract as stage1
    from train.report.index import write_index

    recipe = moved_models(loaded.recipe, video_model, video_weights, audio_model)
    files, unreadable = _listed([Path(video) for video in videos or ()])
    pages = _pages(files, html)
    if not quiet:
        warn_of_random_weights(recipe)
    warn_of_other_reading(recipe, run)
    listed: list[Row] = []  # in the list of pages
    total = sum(stage1.footage(file) for file in files) if draws_bars() else 0.0
    with footage_bar("scoring") as bar:
        found = pipelines.predict(
            loaded,
            files,
            recipe=recipe,
            device=device,
            pages=pages,
            single_file=single_file or (html is not None and html.suffix == ".html"),
            progress=lambda seconds: bar(seconds, total),
        )
        rows = [{"video": str(folder), "error": why} for folder, why in unreadable.items()]
        rows += _rows(found, loaded, quiet, listed)
    whole = True
    if listed and html is not None and html.suffix != ".html":
        reasons = {row["video"]: row["error"] for row in rows if "error" in row}
        try:
            index = write_index(html, listed, reasons)
        except stage2.TrainError as error:  # what is predicted is printed all the same
            whole = False
            err.print(f"[red]no list of pages:[/] {shown(str(error))}", soft_wrap=True)
        else:
            if not quiet:
                out.print(f"all pages: {shown(index)}", soft_wrap=True)
    _end(rows, as_json, as_csv, fail_on_anomaly, whole)


def _rows(
    found: Iterable[pipelines.Scored | pipelines.Unreadable],
    run: Run,
    quiet: bool,
    listed: list[Row],
) -> list[dict[str, Any]]:
    """Return what is predicted as plain data, and print each as it comes; list those with pages."""
    rows = []
    for one in found:
        if isinstance(one, pipelines.Unreadable):
            rows.append({"video": str(one.video), "error": one.reason})
            err.print(f"[red]failed:[/] {shown(f'{one.video}: {one.reason}')}", soft_wrap=True)
            continue
        rows.append(_row(one))
        if one.page:
            listed.append(_in_index(one, one.page))
        if not quiet:
            print_prediction(one, run)
            if one.page:
                out.print(f"page: {shown(one.page)}", soft_wrap=True)
        if one.page_error:
            err.print(f"[red]no page:[/] {shown(one.page_error)}", soft_wrap=True)
    return rows


def _end(
    rows: list[dict[str, Any]],
    as_json: bool,
    as_csv: bool,
    fail_on_anomaly: bool,
    whole: bool = True,
) -> NoReturn:
    """Print all rows if they are for programs, and end with the exit code that they make.

    It is that of some that failed where all was not `whole`: a page is missing.
    """
    if as_json:
        print_json(rows)
    if as_csv:
        _print_intervals(rows)
    failed = sum("error" in row for row in rows)
    if fail_on_anomaly and any(row.get("intervals") for row in rows):
        raise typer.Exit(ANOMALY)
    if failed:
        raise typer.Exit(FAILED if failed == len(rows) else SOME_FAILED)
    if not whole or any("page_error" in row for row in rows):
        raise typer.Exit(SOME_FAILED)
    raise typer.Exit(DONE)


def _stored(
    run: Run, stores: list[Path], ids: list[str] | None
) -> Iterator[pipelines.Scored | pipelines.Unreadable]:
    """Score clips of a store, or of several that are joined; all if no ids are given."""
    from train import Predictor
    from train.evaluation.evaluate import check_recipe

    opened = open_stores(stores, skip_unreadable=True)
    check_recipe(run, opened.recipe)
    predictor = Predictor(run)
    for clip_id in ids or opened:
        try:
            if clip_id not in opened:
                raise FeatureError("no clip of the store; see 'avarnet features list STORE'")
            clip = opened[clip_id]
        except FeatureError as error:
            yield pipelines.Unreadable(clip_id, str(error))
        else:
            yield pipelines.Scored(clip_id, clip, predictor(clip))


def _listed(videos: list[Path]) -> tuple[list[Path], dict[Path, str]]:
    """Return the videos that are given: themselves, by their folder, or in a list of paths.

    And the folders that cannot be read, with the reason.
    """
    found: list[Path] = []
    unreadable: dict[Path, str] = {}
    for path in videos:
        if os.path.isdir(path):
            try:
                below = manifests.videos_below(path)
            except manifests.ClosedFolder as error:  # the other videos are scored all the same
                below = manifests.Found(unreadable={path: error.reason})
            print_left_out(below, err)
            if not below.videos and not below.unreadable:
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
    """Return the page of each video; refuse what cannot be written before they are read."""
    from train.run_files import check_file

    if html is None:
        return {}
    folder = html.parent if html.suffix == ".html" else html
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--html {html}: {manifests.reason(error)}; give a folder that can be made")
    if not os.access(folder, os.W_OK | os.X_OK):
        fail(f"--html {html}: {folder} cannot be written; give another folder")
    if html.suffix == ".html":
        check_file(html)
        if len(files) > 1:
            fail(f"--html {html}: there are several videos; give a folder for their pages")
        return {files[0]: html}
    names = [file.stem for file in files]
    # where names alone are not enough, or one is that of the list, all have their path
    if len(set(names)) < len(names) or "index" in names:
        above = os.path.commonpath([file.resolve().parent for file in files])
        names = [os.path.relpath(file.resolve(), above).replace(os.sep, "-") for file in files]
    if len(set(names)) < len(names):
        fail(f"--html {html}: two videos would have the same page; give folders of their own")
    return {file: html / f"{name}.html" for file, name in zip(files, names, strict=True)}


def _in_index(scored: pipelines.Scored, page: Path) -> Row:
    from train.report.index import Row

    prediction = scored.prediction
    return Row(
        Path(scored.video),
        page,
        prediction.label,
        prediction.confidence,
        None if prediction.anomaly is None else float(prediction.anomaly.max(initial=0.0)),
        len(prediction.intervals),
        sum(found.end - found.start for found in prediction.intervals),
        scored.clip.duration,
    )


def _row(scored: pipelines.Scored) -> dict[str, Any]:
    clip, prediction = scored.clip, scored.prediction
    failed = {} if scored.page_error is None else {"page_error": scored.page_error}
    return {
        "video": str(scored.video),
        "label": prediction.label,
        "confidence": prediction.confidence,
        "probabilities": prediction.probabilities,
        "novelty": prediction.novelty,
        "unlike_training": None if prediction.novelty is None else prediction.novelty > 1,
        "duration": clip.duration,
        "intervals": [interval._asdict() for interval in prediction.intervals],
        "snippet_seconds": clip.snippet_seconds,
        "streams": {name: int(valid.sum()) for name, valid in clip.valid.items()},
        "scores": {
            name: [round(float(score), 4) for score in prediction.scores[:, column]]
            for column, name in enumerate(prediction.probabilities)
        },
        **failed,
    }


def _print_intervals(rows: list[dict[str, Any]]) -> None:
    """Print the intervals as CSV; a video without any has a line too, with nothing in its end."""
    table = [["video", "label", "confidence", "start", "end", "class", "score"]]
    for row in rows:
        if "error" in row:
            continue
        whole = (row["video"], row["label"], f"{row['confidence']:.4f}")
        for found in row["intervals"]:
            seconds = (f"{found[key]:.3f}" for key in ("start", "end"))
            table.append([*whole, *seconds, found["label"], f"{found['score']:.4f}"])
        if not row["intervals"]:
            table.append([*whole, "", "", "", ""])
    print_csv(table)
