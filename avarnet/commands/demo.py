"""`avarnet demo`: all of it on videos made for it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import features
import manifests
from avarnet import pipelines
from avarnet.console import DONE, SOME_FAILED, fail, out, plain
from avarnet.inputs import need_extract, warn_of_random_weights
from avarnet.output import (
    extraction_progress,
    print_best_epochs,
    print_metrics,
    print_prediction,
    print_summary,
    training_progress,
)

app = typer.Typer()


@app.command(epilog="Example: `avarnet demo`")
def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to put everything.")
    ] = Path("avarnet-demo"),
) -> None:
    """The whole way on synthetic clips: no download, about two minutes on two cores."""
    need_extract()
    import extract as stage1
    import train as stage2
    from extract.synthetic import make_clip, make_videos

    happened = Table("step", "result", "seconds")
    begun = time.monotonic()

    def note(step: str, result: str) -> None:
        nonlocal begun
        now = time.monotonic()
        happened.add_row(step, result, f"{now - begun:.1f}")
        begun = now

    out.print("1. Making small videos with sound: ten classes, some clips without a sound track")
    videos = folder / "videos"
    make_videos(videos)
    unseen = make_clip(folder / "unseen.mp4", "Police siren", seed=10_000)
    manifest, store, run = folder / "manifest.jsonl", folder / "store", folder / "run"
    clips = manifests.from_folders(videos, folder).clips
    clips = manifests.assign_split(clips, test=0.3, val=0.15)
    manifests.write(manifest, clips)
    note("videos", f"{len(clips)} clips of {len({clip.label for clip in clips})} classes")
    out.print(f"2. Extracting the features of {len(clips)} clips, once")
    recipe = stage1.make_recipe("mobilevit_xxs", weights="random")
    warn_of_random_weights(recipe)
    with extraction_progress(store) as callbacks:
        summary = pipelines.extract(clips, folder, store, recipe, **callbacks)
    print_summary(summary, store)
    note("extract", f"{len(features.Store(store))} clips in {plain(str(store))}")
    out.print("3. Training the MTCN from the store alone")
    if run.exists():
        shutil.rmtree(run)
    config = stage2.Config()
    with training_progress(config.epochs) as on_epoch:
        trained = pipelines.train(
            clips, features.Store(store), run, config, manifest=manifest, on_epoch=on_epoch
        )
    print_best_epochs(trained.kept_epochs())
    note("train", f"{len(trained.epochs())} epochs")
    out.print("4. Evaluating it on the clips held out")
    metrics = pipelines.evaluate(trained)
    assert metrics["task"] == "recognition"
    print_metrics(metrics, trained)
    accuracy = metrics["model"]["accuracy"]["value"]
    note("evaluate", f"accuracy {accuracy:.2f} of {metrics['model']['clips']} clips")
    out.print("5. Scoring a clip it has never seen (a synthetic police siren)")
    page = folder / "unseen.html"
    (found,) = pipelines.predict(trained, [unseen], recipe=recipe, pages={unseen: page})
    if isinstance(found, pipelines.Unreadable):
        fail(f"{found.video}: {found.reason}")
    print_prediction(found, trained)
    label, confidence = found.prediction.label, found.prediction.confidence
    note("predict", f"{plain(label)} ({confidence:.2f}); {plain(str(page))}")
    out.print(happened)
    out.print(f"Everything is in {plain(str(folder))}: manifest.jsonl, store, run.")
    out.print(
        "These backbones were random. For real work leave out '--weights random': "
        "'avarnet extract MANIFEST STORE' takes the pretrained networks from the hub, its cache, "
        "or --video-weights FILE and --audio-model FOLDER."
    )
    out.print(f"[bold]Report: {plain(str(run / 'report.html'))}[/]", soft_wrap=True)
    raise typer.Exit(SOME_FAILED if summary.failed else DONE)
