"""`avarnet stress`: what a run loses where pictures or sound are bad."""

from __future__ import annotations

import typer

import manifests
from avarnet.console import (
    SOME_FAILED,
    counted,
    footage_bar,
    out,
    plain,
    print_json,
    shown,
)
from avarnet.inputs import (
    moved_models,
    need_device,
    need_extract,
    need_videos,
    warn_of_other_reading,
    warn_of_random_weights,
)
from avarnet.options import (
    AudioModel,
    Device,
    Json,
    Manifest,
    Root,
    RunPath,
    VideoModel,
    VideoWeights,
)
from avarnet.output import print_robustness
from avarnet.pipelines import root_of
from avarnet.stress import stress as stress_run

app = typer.Typer()


@app.command(epilog="Example: `avarnet stress run videos.jsonl`")
def stress(
    run: RunPath,
    manifest: Manifest,
    root: Root = None,
    video_model: VideoModel = None,
    video_weights: VideoWeights = None,
    audio_model: AudioModel = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Read the held-out clips again with noise, late sound or bad pictures: how much is lost?

    Each video is read as it is, and with one impairment at a time: noise (white, babble,
    traffic-like) at 20 to -5 dB, sound that is 0.5 to 2 s late, pictures that are dark, blurred or
    frozen, a frame rate of 5 or 1 a second. Models that were not trained on the clip predict it.
    Losses have 95 % intervals, by recording; `avarnet report` shows them from then on.
    """
    import train as stage2

    loaded = stage2.Run.load(run)
    need_videos(loaded)
    clips = manifests.read(manifest)
    need_device(device)
    need_extract()
    recipe = moved_models(loaded.recipe, video_model, video_weights, audio_model)
    if not as_json:
        warn_of_random_weights(recipe)
    warn_of_other_reading(recipe, run)
    with footage_bar("reading again") as progress:
        found = stress_run(
            loaded, clips, root_of(manifest, root), recipe=recipe, device=device, progress=progress
        )
    if as_json:
        print_json(found)
    else:
        what = "held-out" if found["held_out"] == "test" else "validation"
        for clip_id, why in found["left_out"].items():
            out.print(f"[red]left out:[/] {plain(clip_id)}: {plain(why)}", soft_wrap=True)
        out.print(counted(found["clips"], f"{what} clip"))
        print_robustness(found["conditions"], found["measure"])
        out.print(f"for the report: avarnet report {shown(run)}", soft_wrap=True)
    if found["left_out"]:
        raise typer.Exit(SOME_FAILED)
