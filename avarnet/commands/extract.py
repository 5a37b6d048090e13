"""`avarnet extract`: stage 1."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.filesize import decimal
from rich.table import Table

import features
import manifests
from avarnet import pipelines
from avarnet.console import (
    DONE,
    SOME_FAILED,
    clock,
    counted,
    ended_by_ctrl_c,
    err,
    fail,
    out,
    plain,
    print_json,
    print_literally,
)
from avarnet.inputs import (
    AUDIO_MODEL,
    BYTES_AN_HOUR,
    VIDEO_MODEL,
    need_device,
    need_extract,
    warn_of_assumptions,
    warn_of_random_weights,
)
from avarnet.options import Device, Json, Manifest, Root, StorePath, in_panels
from avarnet.output import extraction_progress, print_summary
from avarnet.stores import made_with

if TYPE_CHECKING:
    from extract import Cluster, Status
    from features import Recipe

NOT_STARTED = "interrupted before anything was started"
PANELS = {
    "Networks": "video_model audio_model audio_stride layers weights video_weights precision",
    "Streams": "stream only live snippet_seconds",
    "This machine": "device clip_memory",
    "Cluster": "scheduler workers adapt queue walltime cores memory gpus interface cluster_config "
    "tls_ca tls_cert tls_key",
    "Job": "retry_failed dry_run status root",
}
app = typer.Typer()


@app.command(
    cls=in_panels(PANELS),
    epilog="Example: `avarnet extract videos.jsonl store --weights random "
    "--video-model mobilevit_xxs`",
)
def extract(
    manifest: Manifest,
    store: StorePath,
    video_model: Annotated[
        str,
        typer.Option(help="A timm image model, a folder in the hub's format, or a name there."),
    ] = VIDEO_MODEL,
    audio_model: Annotated[
        str,
        typer.Option(
            help="A Wav2Vec2, HuBERT, WavLM, AST, Whisper or CLAP: its name on the hub, or a "
            "folder."
        ),
    ] = AUDIO_MODEL,
    audio_stride: Annotated[
        float | None,
        typer.Option(
            help="Seconds from one window to the next of a CLAP, which reads 10 s around each "
            "snippet else: longer is faster."
        ),
    ] = None,
    layers: Annotated[
        str,
        typer.Option(help="Hidden layers of the audio model to average: last, mean, 6, 4-8, 3,6."),
    ] = "last",
    stream: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=MODEL]",
            help="Another stream: flow, clip, or a backbone of another package.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=MODEL]",
            help="Make this stream alone (again for more), to be joined with a store of others.",
        ),
    ] = None,
    weights: Annotated[
        Literal["pretrained", "random"],
        typer.Option(help="random: seeded networks that have learned nothing, for a first try."),
    ] = "pretrained",
    video_weights: Annotated[
        Path | None,
        typer.Option(
            help="A weights file for the video model: timm's, or transformers' MobileViT."
        ),
    ] = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="For 'watch': a snippet's sound as in a live stream, from the second that ends "
            "with it, and not from the 20 s around it.",
        ),
    ] = False,
    snippet_seconds: Annotated[float, typer.Option(help="Length of one time step.")] = 0.25,
    precision: Annotated[
        Literal["fp32", "bf16", "auto"],
        typer.Option(
            help="auto: that of the store; in a new one bf16 if it is faster on the workers and as "
            "good."
        ),
    ] = "fp32",
    device: Device = "auto",
    clip_memory: Annotated[
        float, typer.Option(min=0.1, help="GB that reading a clip may take; else it fails.")
    ] = 2.0,
    scheduler: Annotated[
        str,
        typer.Option(
            help="local, a running Dask scheduler (tls://host:8786), or a batch system: slurm, "
            "pbs, lsf, sge, htcondor."
        ),
    ] = "local",
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            help="Processes (of one core each), or jobs in the queue; 0: one a core, or one a GPU.",
        ),
    ] = 0,
    adapt: Annotated[
        str | None, typer.Option(metavar="MIN:MAX", help="Jobs in the queue, as there is work.")
    ] = None,
    queue: Annotated[str | None, typer.Option(help="Of the batch system.")] = None,
    walltime: Annotated[str | None, typer.Option(help="Of a job, HH:MM:SS.")] = None,
    cores: Annotated[int | None, typer.Option(min=1, help="Of a job; a process on each.")] = None,
    memory: Annotated[str | None, typer.Option(help="Of a job, such as 8GB.")] = None,
    gpus: Annotated[int, typer.Option(min=0, help="Of a job; a process on each.")] = 0,
    interface: Annotated[
        str | None, typer.Option(help="Network through which jobs reach this machine, such as ib0.")
    ] = None,
    cluster_config: Annotated[
        Path | None, typer.Option(help="TOML: further arguments of dask-jobqueue's cluster.")
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(help="Authority of a running cluster (PEM); else as Dask is configured."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Your certificate there (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The key of that certificate (PEM).")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed files again, even unchanged ones.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Print how far a job is, while it runs or later.")
    ] = False,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Stage 1: read every video once and write its features to a store.

    Of several sound tracks, the file's default is used (the first, if several are marked; where
    none is, the one that ffplay plays); a .wav, .flac or .ogg of the video's name is preferred.

    Interrupted? Run the same command again: finished clips are not extracted twice. At one Ctrl-C
    (or SIGTERM) the clips in work are finished, a second Ctrl-C stops at once.
    """
    clips = manifests.read(manifest)
    for option, needed, given in (
        ("--video-model", "video", video_model != VIDEO_MODEL),
        ("--video-weights", "video", video_weights is not None),
        ("--audio-model", "audio", audio_model != AUDIO_MODEL),
        ("--layers", "audio", layers != "last"),
        ("--audio-stride", "audio", audio_stride is not None),
    ):
        if only and given and needed not in only:
            raise typer.BadParameter(f"{option} is for the {needed} stream: add --only {needed}")
    need_extract()
    import extract as stage1

    if status:
        _print_status(stage1.status([clip.id for clip in clips], store), as_json)
        return
    if not dry_run:  # before the slow imports
        err.print(f"loading {plain(_loaded(video_model, audio_model, stream, only))}")
    with ended_by_ctrl_c(NOT_STARTED):
        cluster = stage1.Cluster(
            scheduler=scheduler,
            workers=workers,
            adapt=_range(adapt) if adapt else None,
            queue=queue,
            walltime=walltime,
            cores=cores,
            memory=memory,
            gpus=gpus,
            interface=interface,
            config=cluster_config,
            device=device,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
        )
        if cluster.scheduler == "local":
            need_device(device)
    if dry_run:
        plan = pipelines.plan_extraction(clips, pipelines.root_of(manifest, root), store, cluster)
        _print_plan(plan, store, as_json)
        return
    with ended_by_ctrl_c(NOT_STARTED):
        try:
            recipe = stage1.make_recipe(
                video_model,
                audio_model,
                weights,
                str(video_weights) if video_weights else None,
                snippet_seconds,
                "fp32" if precision == "auto" else precision,
                layers,
                stream or (),
                live,
                only or (),
                audio_stride,
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        except stage1.WeightsError as error:
            raise stage1.WeightsError(f"{error}{made_with(store)}") from error
        if precision == "auto":
            recipe = _with_best_precision(recipe, store, device, cluster)
    warn_of_random_weights(recipe)
    warn_of_assumptions(recipe)
    with extraction_progress(store) as callbacks:
        summary = pipelines.extract(
            clips,
            pipelines.root_of(manifest, root),
            store,
            recipe,
            cluster=cluster,
            retry_failed=retry_failed,
            memory_bytes=int(clip_memory * 2**30),
            **callbacks,
        )
    if as_json:
        print_json({"store": str(store), "fingerprint": recipe.fingerprint, **asdict(summary)})
    else:
        print_summary(summary, store)
    if summary.left:
        fail(
            f"interrupted with {counted(len(summary.left), 'clip')} left; what is finished is in "
            f"{store}: run the same command again to resume"
        )
    raise typer.Exit(SOME_FAILED if summary.failed else DONE)


def _loaded(
    video_model: str, audio_model: str, further: list[str] | None, only: list[str] | None
) -> str:
    """Return which networks are loaded."""
    usual = {"video": video_model, "audio": audio_model}
    streams = only or (*usual, *(further or ()))
    return f"the networks: {', '.join(usual.get(name, name) for name in streams)}"


def _with_best_precision(recipe: Recipe, store: Path, device: str, cluster: Cluster) -> Recipe:
    import extract as stage1

    if (store / features.RECIPE_FILE).exists():
        precision, why = features.read_recipe(store).precision, f"that of {store}"
    else:
        precision, why = stage1.choose_precision(recipe.source, device, cluster)
    err.print(f"precision: {plain(precision)} ({plain(why)})", soft_wrap=True)
    return replace(recipe, precision=precision)


def _range(text: str) -> tuple[int, int]:
    fewest, colon, most = text.partition(":")
    if not (colon and fewest.isdigit() and most.isdigit() and int(fewest) <= int(most) > 0):
        raise typer.BadParameter(f"--adapt {text}: expected MIN:MAX, such as 0:20")
    return int(fewest), int(most)


def _print_status(status: Status, as_json: bool) -> None:
    if as_json:
        print_json(status._asdict())
        return
    table = Table(show_header=False)
    table.add_row("clips", str(status.clips))
    table.add_row("in the store", f"{status.done} ({status.done / max(1, status.clips):.0%})")
    table.add_row("finished, not sealed yet", str(status.unsealed))
    table.add_row("failed", str(len(status.failed)))
    table.add_row("left", str(status.left))
    out.print(table)
    for clip_id, reason in sorted(status.failed.items()):
        out.print(f"[red]failed[/] {plain(f'{clip_id}: {reason}')}", soft_wrap=True)


def _print_plan(plan: pipelines.Plan, store: Path, as_json: bool) -> None:
    footage = sum(plan.batches)
    if (store / features.RECIPE_FILE).exists():
        recipe = features.read_recipe(store)
        values = sum(settings["features"] for settings in recipe.streams.values())
        nbytes, networks = 2 * values * footage / recipe.snippet_seconds, "the store's networks"
    else:
        nbytes, networks = footage / 3600 * BYTES_AN_HOUR, "the default networks"
    if as_json:
        print_json({**asdict(plan), "seconds": plan.seconds, "bytes": round(nbytes)})
        return
    out.print(
        f"{counted(plan.clips, 'clip')} to extract (already in {plain(str(store))}: "
        f"{plan.present}), {clock(footage)} of video, in {counted(len(plan.batches), 'task')}; "
        f"processes: {plan.processes}"
    )
    if plan.batches:
        out.print(
            f"video in a task: {clock(min(plan.batches))} to {clock(max(plan.batches))}, "
            f"{plan.clips / len(plan.batches):.1f} clips on average"
        )
    if plan.unknown:
        out.print_sentences(
            f"[yellow]without {counted(plan.unknown, 'clip')} of unknown length[/]: the files are "
            "missing, or do not state it; 'avarnet manifest check' names those that are missing"
        )
    out.print(f"disk: about {decimal(round(nbytes))}, with {networks}")
    if plan.seconds:
        out.print(
            f"about {clock(plan.seconds)}, as a process did {plan.speed:.2f} x real time here so "
            "far; on other processors, or with other networks, it may be quite different"
        )
    elif plan.speed is None:
        out.print("no estimate of the time: no task has been done for this store yet")
    if plan.job_script:
        out.print("\nThe script of a job:\n")
        print_literally(plan.job_script)
