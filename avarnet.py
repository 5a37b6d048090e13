"""The command line: every command is a few lines that call the four parts."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NoReturn

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

import features
import manifests

if TYPE_CHECKING:
    from extract import Cluster, Snippet, Status, Summary, Task
    from features import Features, Recipe
    from train import LiveScorer, Prediction, Predictor, Run
    from train.report import Look

DONE, FAILED, SOME_FAILED, ANOMALY = 0, 1, 3, 4  # exit codes; 2, wrong usage, is Typer's own
VIDEO_MODEL, AUDIO_MODEL = "mobilevit_s", "facebook/wav2vec2-base"
WEIGHTS_OPTIONS = ("--video-weights FILE", "--audio-model FOLDER")
BYTES_AN_HOUR = 1408 * 2 * 4 * 3600  # of video, by these networks in float16, 4 snippets a second
FEW_A_CLASS = 3  # validation clips of each class, below which a run is told so
LITTLE_ROOM = 2**30  # bytes; a few shards
OPTIONAL = {  # extra -> what tells that it is installed, and what needs it
    "flow": ("cv2", "extract --stream flow"),
    "tensorboard": ("tensorboard", "train --tensorboard"),
    "sweep": ("optuna", "sweep"),
    "onnx": ("onnxruntime", "export to ONNX"),
}
EXTRACT_EXTRA = "this needs stage 1, which is not installed: pip install 'avarnet[extract]'"

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Audio-visual anomaly recognition: features are extracted once, models train in seconds.",
)
manifest_app = typer.Typer(no_args_is_help=True, help="Say what there is to process.")
features_app = typer.Typer(
    no_args_is_help=True, help="Look into feature stores; share and reshape them."
)
app.add_typer(manifest_app, name="manifest")
app.add_typer(features_app, name="features")

out = Console()
err = Console(stderr=True)
debugging = False


def _known_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise typer.BadParameter(f"{name}: expected auto, cpu, cuda, cuda:1 (of several) or mps")
    return name


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The manifest to write.")]
Root = Annotated[
    Path | None,
    typer.Option(help="What the manifest's paths are relative to.", show_default="its folder"),
]
Device = Annotated[str, typer.Option(callback=_known_device, help="auto, cpu, cuda, cuda:1, mps.")]
Manifest = Annotated[Path, typer.Argument(metavar="MANIFEST", help="JSON Lines.")]
StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the feature store.")]
Url = Annotated[
    str,
    typer.Argument(metavar="URL", help="A folder, s3://, sftp://, hf:// or, to pull, http(s)://."),
]
Ids = Annotated[Path | None, typer.Option(help="A file of clip ids, one a line.")]
VideoModel = Annotated[str | None, typer.Option(help="The video model's folder, if it has moved.")]
VideoWeights = Annotated[Path | None, typer.Option(help="The video weights file, if it has moved.")]
AudioModel = Annotated[str | None, typer.Option(help="The sound model's folder, if it has moved.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")]
Processes = Annotated[
    int | None,
    typer.Option(
        min=1, help="That train at once, if there are several models.", show_default="the cores"
    ),
]


def main() -> None:
    """Run the command line; what fails is one message, and a traceback only with --debug."""
    try:
        app(prog_name="avarnet")
    except Exception as error:
        if debugging:
            raise
        # those of train and extract are imported only by the commands that need them
        parts_errors = ("TrainError", "ClipError", "ClusterError", "WeightsError")
        expected = (manifests.ManifestError, features.FeatureError, OSError)
        if isinstance(error, OSError) and isinstance(error.filename, str | Path):
            fail(f"{error.filename}: {manifests.reason(error)}")
        if isinstance(error, expected) or type(error).__name__ in parts_errors:
            fail(str(error))
        again = f"avarnet --debug {shlex.join(sys.argv[1:])}"
        fail(
            f"{_named(error)}. This was not foreseen: 'avarnet doctor' may know why. If not, send "
            f"its answer and that of '{again}' to avarnet's maintainers"
        )


def fail(message: str) -> NoReturn:
    """Print an error and exit with 1."""
    err.print(f"[red]error:[/] {_plain(message)}", highlight=False, soft_wrap=True)
    sys.exit(FAILED)


def _named(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": .")


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(version("avarnet"), highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    show: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback.")] = False,
) -> None:
    global debugging
    debugging = debug


# manifest ---------------------------------------------------------------------------------------


@manifest_app.command(
    "folders", epilog="Example: `avarnet manifest folders videos -o videos.jsonl`"
)
def manifest_folders(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="DIR/CLASS/clip.mp4")],
    output: Output,
    groups: Annotated[
        Path | None,
        typer.Option(
            help="CSV with columns clip and source (the recording). Clips that it does not name "
            "count as a recording of their own; both they and names that are no clip are told."
        ),
    ] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """One class per sub-folder (VAAR's layout)."""
    grouped = manifests.Grouped(manifests.from_folders(directory, _root(output, root)), [], [])
    if groups is not None:
        grouped = manifests.with_groups(grouped.clips, groups)
    _write_manifest(output, grouped.clips, [], as_json, grouped.ungrouped, grouped.unknown)


@manifest_app.command("csv", epilog="Example: `avarnet manifest csv clips.csv -o clips.jsonl`")
def manifest_csv(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Columns path, label; optional id, split, group, duration, fps, audio, start, "
            "end.",
        ),
    ],
    output: Output,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """From a table; paths are relative to the table's folder."""
    _write_manifest(output, manifests.from_csv(file, _root(output, root)), [], as_json)


@manifest_app.command(
    "xd-violence", epilog="Example: `avarnet manifest xd-violence --lists lists -o xd.jsonl`"
)
def manifest_xd_violence(
    lists: Annotated[Path, typer.Option(help="Folder of train.txt, test.txt, annotations.txt.")],
    output: Output,
    videos: Annotated[Path | None, typer.Option(help="Folder of the videos.")] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """XD-Violence: official names, splits, classes and frame annotations."""
    listing = manifests.from_xd_violence(lists, _root(output, root), videos)
    _write_manifest(output, listing.clips, listing.missing, as_json)


@manifest_app.command(
    "ucf-crime", epilog="Example: `avarnet manifest ucf-crime --lists lists -o ucf.jsonl`"
)
def manifest_ucf_crime(
    lists: Annotated[
        Path,
        typer.Option(
            help="Folder of Anomaly_Train.txt, Anomaly_Test.txt, Temporal_Anomaly_Annotation.txt."
        ),
    ],
    output: Output,
    videos: Annotated[Path | None, typer.Option(help="Folder of the videos.")] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """UCF-Crime: official names, splits, classes and frame annotations."""
    listing = manifests.from_ucf_crime(lists, _root(output, root), videos)
    _write_manifest(output, listing.clips, listing.missing, as_json)


@manifest_app.command(
    "split", epilog="Example: `avarnet manifest split videos.jsonl --test 0.2 --val 0.1`"
)
def manifest_split(
    manifest: Manifest,
    test: Annotated[float, typer.Option(help="Share of clips to hold out.")] = 0.2,
    val: Annotated[float, typer.Option(help="Share of clips that pick the best epoch.")] = 0.1,
    folds: Annotated[int, typer.Option(help="Folds for cross-validation instead.")] = 0,
    seed: int = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", show_default="in place", help="Manifest.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Divide the clips, stratified by class, never dividing a group."""
    clips = manifests.read(manifest)
    target = output or manifest
    if target.resolve().parent != manifest.resolve().parent:
        raise manifests.ManifestError(
            f"{target}: paths are relative to the manifest's folder; write it beside {manifest}"
        )
    if folds:
        clips = manifests.assign_folds(clips, folds, seed)
    else:
        clips = manifests.assign_split(clips, test, val, seed)
    manifests.write(target, clips)
    counts = manifests.split_table(clips)
    if as_json:
        _print_json({"manifest": str(target), "classes": counts})
        return
    total = dict(Counter(clip.split or "none" for clip in clips))
    sides = sorted(total, key=lambda side: ["train", "val", "test", side].index(side))
    table = Table("class", *sides)
    for name, row in {**counts, "all clips": total}.items():
        whole = sum(row.values())
        table.add_row(name, *(f"{row.get(s, 0)} ({row.get(s, 0) / whole:.0%})" for s in sides))
    out.print(table)


@manifest_app.command("check", epilog="Example: `avarnet manifest check videos.jsonl`")
def manifest_check(manifest: Manifest, root: Root = None, as_json: Json = False) -> None:
    """Find duplicates, missing files, leaks between splits, wrong intervals, missing sound."""
    probe = None
    if _has_extract():
        from extract.decode import probe as read_clock
        from extract.decode import sound_beside

        def probe(video: Path, audio: Path | None) -> tuple[float, bool]:
            media = read_clock(video)
            sound = audio or sound_beside(video) or media.sound_start is not None
            return media.duration, bool(sound)

    findings = manifests.check(manifest, _root(manifest, root), probe)
    errors = sum(finding.severity == "error" for finding in findings)
    if as_json:
        _print_json(
            {"findings": [finding._asdict() for finding in findings], "opened": probe is not None}
        )
    else:
        if findings:
            table = Table("line", "clip", "", "problem", "way out")
            for f in findings:
                colour = "red" if f.severity == "error" else "yellow"
                cells = (str(f.line), _plain(f.clip), f"[{colour}]{f.kind}[/]")
                table.add_row(*cells, _plain(f.problem), _plain(f.way_out))
            out.print(table)
        out.print(f"{_counted(errors, 'error')}, {_counted(len(findings) - errors, 'warning')}")
        if probe is None:
            out.print(f"The videos were not opened: {_plain(EXTRACT_EXTRA)}")
    raise typer.Exit(FAILED if errors else DONE)


def _write_manifest(
    output: Path,
    clips: Sequence[manifests.Clip],
    missing: list[str],
    as_json: bool,
    ungrouped: Sequence[str] = (),
    unknown: Sequence[str] = (),
) -> None:
    manifests.write(output, clips)
    counts = Counter(clip.label for clip in clips)
    if as_json:
        left = {"missing": missing, "ungrouped": ungrouped, "unknown": unknown}
        _print_json({"manifest": str(output), "clips": len(clips), **left, "classes": counts})
        return
    table = Table("class", "clips")
    for name, count in sorted(counts.items()):
        table.add_row(_plain(name), str(count))
    out.print(table)
    out.print(f"{_counted(len(clips), 'clip')} in {_plain(str(output))}")
    if missing:
        what = _counted(len(missing), "listed video")
        out.print(f"[yellow]not found: {what}[/] ({_first(missing)})")
    if ungrouped:
        what = _counted(len(ungrouped), "clip")
        out.print(f"[yellow]in no group, so one of its own each: {what}[/] ({_first(ungrouped)})")
    if unknown:
        what = _counted(len(unknown), "name")
        out.print(f"[yellow]in the file of groups, but no clip: {what}[/] ({_first(unknown)})")


# extract ----------------------------------------------------------------------------------------


@app.command(
    epilog="Example: `avarnet extract videos.jsonl store --weights random "
    "--video-model mobilevit_xxs`"
)
def extract(
    manifest: Manifest,
    store: StorePath,
    video_model: Annotated[
        str, typer.Option(help="A timm image model, or a folder in the hub's format.")
    ] = VIDEO_MODEL,
    audio_model: Annotated[
        str,
        typer.Option(help="A Wav2Vec2, HuBERT or WavLM: its name on the hub, or a folder."),
    ] = AUDIO_MODEL,
    layers: Annotated[
        str,
        typer.Option(help="Hidden layers of the audio model to average: last, mean, 6, 4-8, 3,6."),
    ] = "last",
    stream: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=MODEL]",
            help="A further stream: flow, clip, or a backbone that another package brings.",
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
        typer.Option(help="random: seeded networks that have learned nothing, to try things out."),
    ] = "pretrained",
    video_weights: Annotated[
        Path | None, typer.Option(help="A weights file for the video model.")
    ] = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="For 'watch': hear each snippet as a live stream has it, in the second that ends "
            "with it, and not in the 20 s around it.",
        ),
    ] = False,
    snippet_seconds: Annotated[float, typer.Option(help="Length of one time step.")] = 0.25,
    precision: Annotated[
        Literal["fp32", "bf16", "auto"],
        typer.Option(
            help="auto: the store's; for a new one bf16 if it is faster where the work is done "
            "and as good."
        ),
    ] = "fp32",
    device: Device = "auto",
    clip_memory: Annotated[
        float, typer.Option(min=0.1, help="GB that reading a clip may take before it fails.")
    ] = 2.0,
    scheduler: Annotated[
        str,
        typer.Option(
            help="local, a running Dask scheduler (tcp://host:8786), or a batch system: slurm, "
            "pbs, lsf, sge, htcondor."
        ),
    ] = "local",
    workers: Annotated[
        int,
        typer.Option(
            min=0, help="Processes, or jobs in the queue; 0: one a core, or a single one on a GPU."
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
        str | None, typer.Option(help="Network by which jobs reach this machine, such as ib0.")
    ] = None,
    cluster_config: Annotated[
        Path | None, typer.Option(help="TOML: further arguments of dask-jobqueue's cluster.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try also what failed before and is unchanged.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Say how far a job is, while it runs or later.")
    ] = False,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Stage 1: read every video once and write its features to a store.

    Interrupted? Run the same command again: finished clips are not done twice. One Ctrl-C finishes
    the clips in work, a second one stops at once.
    """
    clips = manifests.read(manifest)
    _need_extract()
    import extract as stage1

    if status:
        _print_status(stage1.status([clip.id for clip in clips], store), as_json)
        return
    cluster = stage1.Cluster(
        scheduler,
        workers,
        _range(adapt) if adapt else None,
        queue,
        walltime,
        cores,
        memory,
        gpus,
        interface,
        cluster_config,
        device,
    )
    if cluster.scheduler == "local":
        _need_device(device)
    if dry_run:
        _print_plan(clips, _root(manifest, root), store, cluster)
        return
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
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if precision == "auto":
        recipe = _with_best_precision(recipe, store, device, cluster)
    _say_random(recipe)
    summary = _extract(
        clips,
        _root(manifest, root),
        store,
        recipe,
        cluster=cluster,
        retry_failed=retry_failed,
        memory_bytes=int(clip_memory * 2**30),
    )
    if as_json:
        _print_json({"store": str(store), "fingerprint": recipe.fingerprint, **asdict(summary)})
    else:
        _print_summary(summary, store)
    if summary.left:
        fail(
            f"interrupted with {_counted(len(summary.left), 'clip')} left; what is finished is in "
            f"{store}: run the same command again to go on"
        )
    raise typer.Exit(SOME_FAILED if summary.failed else DONE)


def _with_best_precision(recipe: Recipe, store: Path, device: str, cluster: Cluster) -> Recipe:
    import extract as stage1

    held = store / features.RECIPE_FILE
    if held.exists():
        precision = features.Recipe.from_json(held.read_text(encoding="utf-8")).precision
        why = f"as {store} has it"
    else:
        precision, why = stage1.choose_precision(recipe.source, device, cluster)
    err.print(f"precision: {precision} ({_plain(why)})", soft_wrap=True)
    return replace(recipe, precision=precision)


def _range(text: str) -> tuple[int, int]:
    fewest, colon, most = text.partition(":")
    if not (colon and fewest.isdigit() and most.isdigit() and int(fewest) <= int(most) > 0):
        raise typer.BadParameter(f"--adapt {text}: expected MIN:MAX, such as 0:20")
    return int(fewest), int(most)


def _tasks(clips: Sequence[manifests.Clip], root: Path) -> list[Task]:
    from extract import Task

    return [Task(c.id, c.resolve(root), c.resolve_audio(root), c.duration) for c in clips]


def _extract(
    clips: Sequence[manifests.Clip],
    root: Path,
    store: Path,
    recipe: Recipe,
    **settings: Any,
) -> Summary:
    import extract as stage1

    try:
        with _footage_bar("extracting") as progress:
            summary = stage1.extract(
                _tasks(clips, root),
                store,
                recipe,
                progress=progress,
                **settings,
            )
        features.write_card(store, {clip.id: clip.label for clip in clips})
        return summary
    except KeyboardInterrupt:
        fail(f"interrupted; what is finished is in {store}: run the same command again to go on")


def _print_status(status: Status, as_json: bool) -> None:
    if as_json:
        _print_json(status._asdict())
        return
    table = Table(show_header=False)
    table.add_row("clips", str(status.clips))
    table.add_row("in the store", f"{status.done} ({status.done / max(1, status.clips):.0%})")
    table.add_row("finished, not sealed yet", str(status.unsealed))
    table.add_row("failed", str(len(status.failed)))
    table.add_row("left", str(status.left))
    out.print(table)
    for clip_id, reason in sorted(status.failed.items()):
        out.print(f"[red]failed[/] {_plain(f'{clip_id}: {reason}')}", soft_wrap=True)


def _print_plan(clips: Sequence[manifests.Clip], root: Path, store: Path, cluster: Cluster) -> None:
    """What `extract` would do: the tasks, and the script of a job."""
    from extract.decode import footage
    from extract.plan import batches

    held = set(features.Store(store)) if (store / "recipe.json").exists() else set()
    todo = [task for task in _tasks(clips, root) if task.clip_id not in held]
    with ThreadPoolExecutor() as pool:
        lengths = list(pool.map(lambda t: t.duration or footage(t.video), todo))
    seconds = {task.clip_id: length for task, length in zip(todo, lengths, strict=True)}
    plan = batches(todo, lengths, cluster.processes)
    out.print(
        f"{_counted(len(todo), 'clip')} to extract (already in {_plain(str(store))}: "
        f"{len(clips) - len(todo)}), {_clock(sum(lengths))} of video, in "
        f"{_counted(len(plan), 'task')}; processes: {cluster.processes}"
    )
    if plan:
        by_task = sorted(sum(seconds[task.clip_id] for task in batch) for batch in plan)
        out.print(
            f"video in a task: {_clock(by_task[0])} to {_clock(by_task[-1])}, "
            f"{len(todo) / len(plan):.1f} clips on average"
        )
    rate = _rate_so_far(store)
    if rate and plan:
        time = sum(lengths) / rate / cluster.processes
        out.print(
            f"about {_clock(time)}, as a process did {rate:.2f} x real time here so far; where "
            "other processors or networks are to work, that says little"
        )
    else:
        out.print("no estimate of the time: no task has been done for this store yet")
    if cluster.queued:
        out.print("\nThe script of a job:\n")
        print(cluster.job_script())


def _rate_so_far(store: Path) -> float | None:
    """Return seconds of video for a second of a process, from the store's log."""
    try:
        log = (store / "extract.log").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    found = re.findall(r" ([\d.]+) s of video in ([\d.]+) s$", log, re.MULTILINE)
    video, seconds = (sum(float(row[k]) for row in found) for k in (0, 1))
    return video / seconds if seconds else None


@contextmanager
def _footage_bar(what: str) -> Iterator[Callable[[float, float], None]]:
    """Yield a callback that draws footage done, speed as a multiple of real time, time left."""
    columns = (
        TextColumn(what),
        BarColumn(),
        TextColumn("{task.fields[done]} of {task.fields[all]} of video"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=None, done="0:00:00", all="0:00:00", speed="")

        def show(done: float, total: float) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            speed = f"{done / elapsed:.1f} x real time" if done and elapsed else ""
            bar.update(
                task,
                completed=done,
                total=total,
                done=_clock(done),
                all=_clock(total),
                speed=speed,
            )

        yield show


def _print_summary(summary: Summary, store: Path) -> None:
    if summary.damaged:
        out.print(
            f"[yellow]taken out: {_counted(len(summary.damaged), 'damaged shard')}[/] (renamed to "
            "*.damaged, to be deleted); the clips hurt there were extracted again"
        )
    if summary.failed:
        table = Table("failed clip", "reason")
        for clip_id, reason in sorted(summary.failed.items()):
            table.add_row(_plain(clip_id), _plain(reason))
        out.print(table)
    if summary.not_tried:
        out.print(
            f"not tried again, as files that failed before have not changed: "
            f"{_counted(len(summary.not_tried), 'clip')} (--retry-failed tries them)"
        )
    if len(summary.extracted) > len(summary.slowest) > 0:
        slow = ", ".join(f"{clip_id} {seconds:.1f} s" for clip_id, seconds in summary.slowest)
        out.print(f"slowest: {_plain(slow)}", soft_wrap=True)
    speed = summary.footage / summary.seconds if summary.seconds else 0.0
    out.print(
        f"{_counted(len(summary.extracted), 'clip')} extracted, {len(summary.already)} there "
        f"before, {len(summary.failed)} failed: {_clock(summary.footage)} of video in "
        f"{_clock(summary.seconds)} ({speed:.1f} x real time) -> {_plain(str(store))}"
    )


# features ---------------------------------------------------------------------------------------


@features_app.command("info", epilog="Example: `avarnet features info store`")
def features_info(store: StorePath, as_json: Json = False) -> None:
    """What is in a store, and by which recipe."""
    opened = features.Store(store)
    about = features.overview(opened)
    info = {
        "store": str(store),
        **about._asdict(),
        "unreadable_shards": {str(k): v for k, v in opened.unreadable.items()},
        "random_weights": opened.recipe.random_streams,
        "recipe": json.loads(opened.recipe.to_json()),
    }
    if as_json:
        _print_json(info)
        return
    table = Table(show_header=False)
    table.add_row("clips", str(about.clips))
    footage = _clock(about.hours * 3600)
    table.add_row("footage", f"{footage} in steps of {opened.snippet_seconds:g} s")
    table.add_row("shards", f"{about.shards}, {decimal(about.nbytes)}")
    for name, settings in opened.recipe.streams.items():
        source = opened.recipe.source.get(name, {})
        model = source.get("name", settings.get("model", "?"))
        origin = f"{model}, {source['weights']} weights" if "weights" in source else model
        origin += ", heard as a live stream" if "trailing_seconds" in settings else ""
        lack = f"; none in {_counted(about.lacking[name], 'clip')}" if about.lacking[name] else ""
        table.add_row(f"stream {name}", _plain(f"{settings['features']} values, {origin}{lack}"))
    for flag, count in about.flags.items():
        table.add_row(flag, _counted(count, "clip"))
    table.add_row("fingerprint", opened.recipe.fingerprint)
    out.print(table)
    for reason in opened.unreadable.values():
        out.print(f"[red]unreadable:[/] {_plain(reason)}")
    _say_random(opened.recipe)


@features_app.command("list", epilog="Example: `avarnet features list s3://team/surv-fight`")
def features_list(
    store: Annotated[str, typer.Argument(metavar="STORE|URL", help="A folder or a URL.")],
    as_json: Json = False,
) -> None:
    """Every clip of a store, here or anywhere: of a distant one, only the tables are read."""
    rows = [row._asdict() for row in _entries(store)]
    if as_json:
        for row in rows:
            row["flags"] = [flag.name for flag in features.Flag(row["flags"])]
        _print_json(rows)
        return
    table = Table("clip", "seconds", "snippets", "flags")
    for row in rows:
        flags = ", ".join(str(flag.name) for flag in features.Flag(row["flags"])).lower()
        cells = (f"{row['duration']:.2f}", str(row["snippets"]), flags)
        table.add_row(_plain(row["clip"]), *cells)
    out.print(table)


def _entries(store: str) -> list[features.Entry]:
    if "://" in store:
        return list(features.Remote(store).entries())
    return features.entries(features.Store(store))


@features_app.command("verify", epilog="Example: `avarnet features verify store`")
def features_verify(store: StorePath, as_json: Json = False) -> None:
    """Read every byte and say whether it is as it was written."""
    with _bytes_bar("verifying", as_json) as progress:
        intact, damages = features.verify(store, progress)
    if as_json:
        rows = [{**d._asdict(), "shard": str(d.shard)} for d in damages]
        _print_json({"intact_clips": intact, "damaged_shards": rows})
    else:
        for damage in damages:
            if not damage.readable:
                hurt = "all its clips are lost; which ones it had cannot be told"
            elif damage.clips:
                hurt = f"clips hurt: {', '.join(damage.clips)}"
            else:
                hurt = "no clip of it is hurt"
            out.print(f"[red]damaged[/] {_plain(f'{damage.reason}; {hurt}')}", soft_wrap=True)
        if damages:
            out.print("Run 'avarnet extract' again: it does just these clips again. Or copy them.")
        out.print(f"{_counted(intact, 'clip')} intact, {_counted(len(damages), 'damaged shard')}")
    raise typer.Exit(FAILED if damages else DONE)


@features_app.command("push", epilog="Example: `avarnet features push store s3://team/store`")
def features_push(store: StorePath, url: Url, as_json: Json = False) -> None:
    """Send a store to a team: only the shards that are missing there travel.

    Cut off? Run the same command again: it goes on where it stopped.
    """
    with _bytes_bar("pushing", as_json) as progress:
        transfer = features.push(store, url, progress)
    _print_transfer(transfer, url, as_json)


@features_app.command("pull", epilog="Example: `avarnet features pull s3://team/store store`")
def features_pull(
    url: Url,
    store: StorePath,
    manifest: Annotated[
        Path | None, typer.Option(help="The manifest, for --split and --labels.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only train, val or test clips.")] = None,
    labels: Annotated[str | None, typer.Option(help="Only these classes, comma-separated.")] = None,
    ids: Ids = None,
    trim: Annotated[
        bool, typer.Option("--trim", help="Fetch the clips alone, not their whole shards.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch a store, or the shards of some clips: only what is missing here travels.

    Cut off? Run the same command again: it goes on where it stopped.
    """
    wanted = _chosen_clips(manifest, split, labels, ids)
    if trim and wanted is None:
        raise typer.BadParameter("--trim needs a choice of clips: --ids, --split or --labels")
    with _bytes_bar("pulling", as_json) as progress:
        transfer = features.pull(url, store, wanted, trim, progress)
    if wanted is not None:
        clips = manifests.read(manifest) if manifest else []
        features.write_card(store, {clip.id: clip.label for clip in clips})
    _print_transfer(transfer, str(store), as_json)


def _chosen_clips(
    manifest: Path | None, split: str | None, labels: str | None, ids: Path | None
) -> set[str] | None:
    """Return the clips that the options choose, or None for all."""
    if (split or labels) and manifest is None:
        raise typer.BadParameter("a store knows no labels or splits: give their --manifest")
    chosen = _read_ids(ids) if ids else None
    if manifest:
        clips = manifests.read(manifest)
        classes = set(labels.split(",")) if labels else {clip.label for clip in clips}
        unknown = classes - {clip.label for clip in clips}
        if unknown:
            raise typer.BadParameter(f"no clip of {manifest} is {', '.join(sorted(unknown))}")
        listed = {c.id for c in clips if c.label in classes and split in (None, c.split)}
        if not listed:
            raise typer.BadParameter(f"no clip of {manifest} is in split {split}")
        chosen = listed if chosen is None else chosen & listed
    return chosen


def _read_ids(file: Path) -> set[str]:
    ids = set(_lines(file, "of clip ids"))
    if not ids:
        raise typer.BadParameter(f"{file} has no clip ids; write one a line")
    return ids


def _lines(file: Path, what: str) -> list[str]:
    """Return the lines of a text file that are not empty."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file}: {manifests.reason(error)}; give a text file {what}, one a line")
    return [line.strip() for line in lines if line.strip()]


def _print_transfer(transfer: features.Transfer, target: str, as_json: bool) -> None:
    if as_json:
        _print_json({"to": target, **asdict(transfer)})
        return
    if transfer.missing:
        what = _counted(len(transfer.missing), "clip")
        out.print(f"[yellow]not in that store: {what}[/] ({_first(transfer.missing)})")
    if transfer.clips:
        what = _counted(len(transfer.clips), "clip")
    else:
        what = _counted(len(transfer.shards), "shard")
    rate = round(transfer.nbytes / transfer.seconds) if transfer.seconds else 0
    out.print(
        f"{what} travelled, {transfer.already} there before: {decimal(transfer.nbytes)} in "
        f"{transfer.seconds:.1f} s ({decimal(rate)}/s) -> {_plain(target)}"
    )


@contextmanager
def _bytes_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that draws bytes done, their rate and the time left."""
    columns = (
        TextColumn(what),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as bar:
        task = bar.add_task("", total=None)
        try:
            yield lambda done, total: bar.update(task, completed=done, total=total)
        except KeyboardInterrupt:
            fail("interrupted; run the same command again to go on")


@features_app.command("merge", epilog="Example: `avarnet features merge ours theirs -o both`")
def features_merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE...", help="Of one recipe.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The store to make or add to.")],
) -> None:
    """Put the shards of several stores of one recipe into one."""
    copied = features.merge(stores, output)
    features.write_card(output)
    clips = _counted(len(features.Store(output)), "clip")
    out.print(f"{_counted(copied, 'shard')} copied: {clips} in {_plain(str(output))}")


@features_app.command("compact", epilog="Example: `avarnet features compact store`")
def features_compact(
    store: StorePath,
    shard_size: Annotated[int, typer.Option(min=1, help="Of a shard, in MB (2^20 bytes).")] = 256,
) -> None:
    """Make few large shards of many small ones and drop duplicates; nothing is lost by a kill."""
    before, after = features.compact(store, shard_size * 2**20)
    out.print(f"{_counted(before, 'shard')} before, {after} now")


@features_app.command("diff", epilog="Example: `avarnet features diff ours theirs`")
def features_diff(a: StorePath, b: StorePath, as_json: Json = False) -> None:
    """Compare two stores: recipe, clips, content. Exit code 1 if they differ."""
    found = features.diff(a, b)
    if as_json:
        _print_json(found._asdict())
    else:
        kinds = ("recipe differs", f"only in {a}", f"only in {b}", "features differ")
        for kind, rows in zip(kinds, found, strict=True):
            for row in rows:
                out.print(_plain(f"{kind}: {row}"), soft_wrap=True, highlight=False)
        if not any(found):
            out.print("the same clips with the same features")
    raise typer.Exit(FAILED if any(found) else DONE)


@features_app.command("drop", epilog="Example: `avarnet features drop store --ids unwanted.txt`")
def features_drop(
    store: StorePath,
    ids: Annotated[Path, typer.Option(help="A file of clip ids, one a line.")],
) -> None:
    """Take clips out of a store for good."""
    wanted = _read_ids(ids)
    dropped = features.drop(store, wanted)
    out.print(f"{_counted(len(dropped), 'clip')} dropped, {len(wanted) - len(dropped)} not there")


@features_app.command(
    "card", epilog="Example: `avarnet features card store --manifest clips.jsonl`"
)
def features_card(
    store: StorePath,
    manifest: Annotated[Path | None, typer.Option(help="For the number of clips by class.")] = None,
) -> None:
    """Write CARD.md: what the store holds, how it was made, how to load it."""
    clips = manifests.read(manifest) if manifest else []
    card = features.write_card(store, {clip.id: clip.label for clip in clips})
    out.print(f"{_plain(str(card))}", soft_wrap=True)


@features_app.command("export", epilog="Example: `avarnet features export store folder --as npy`")
def features_export(
    store: StorePath,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new one.")],
    kind: Annotated[
        Literal["npy", "webdataset", "safetensors"],
        typer.Option("--as", help="npy: one file a clip and stream, NaN where nothing was."),
    ] = "npy",
) -> None:
    """Write features for other tools."""
    opened = features.Store(store)
    count = getattr(features, f"export_{kind}")(opened, folder)
    out.print(f"{_counted(count, 'clip')} written to {_plain(str(folder))}")


@features_app.command(
    "import",
    epilog="Example: `avarnet features import store --stream 'rgb=i3d/{clip}__{crop}.npy' "
    "--stream 'audio=vggish/{clip}__vggish.npy' --snippet-seconds 16/24 "
    "--about 'I3D and VGGish of XD-Violence'`",
)
def features_import(
    store: StorePath,
    stream: Annotated[
        list[str],
        typer.Option(help="NAME=PATTERN of .npy files; {clip} is the id, {crop} a crop's number."),
    ],
    snippet_seconds: Annotated[str, typer.Option(help="Length of a row: 0.25, or 16/24.")],
    about: Annotated[str, typer.Option(help="One line on what these features are.")],
    as_json: Json = False,
) -> None:
    """Make a store of features that others extracted, from .npy files (rows, values)."""
    patterns = dict(_pair(text) for text in stream)
    try:
        seconds = float(Fraction(snippet_seconds))
    except (ValueError, ZeroDivisionError) as error:
        raise typer.BadParameter(f"--snippet-seconds {snippet_seconds}: {error}") from error
    with _clips_bar("importing", as_json) as progress:
        summary = features.import_npy(store, patterns, seconds, about, progress)
    features.write_card(store)
    if as_json:
        _print_json({"store": str(store), **summary._asdict()})
    else:
        for clip_id, reason in sorted(summary.failed.items()):
            out.print(f"[red]failed[/] {_plain(f'{clip_id}: {reason}')}", soft_wrap=True)
        out.print(
            f"{_counted(len(summary.imported), 'clip')} imported, {len(summary.already)} there "
            f"before, {len(summary.failed)} failed -> {_plain(str(store))}"
        )
    raise typer.Exit(SOME_FAILED if summary.failed else DONE)


def _pair(text: str) -> tuple[str, str]:
    name, found, pattern = text.partition("=")
    if not (name and found and pattern):
        raise typer.BadParameter(f"--stream {text}: expected NAME=PATTERN")
    return name, pattern


@contextmanager
def _clips_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that draws clips done and the time left."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# train, evaluate, predict -----------------------------------------------------------------------


@app.command(epilog="Example: `avarnet train videos.jsonl store run --folds 5`")
def train(
    manifest: Manifest,
    store: StorePath,
    run: RunPath,
    task: Annotated[
        Literal["recognition", "detection"] | None,
        typer.Option(
            help="A class for each clip; or a score for each snippet, learned from which clips are "
            "normal and judged by the manifest's intervals.",
            show_default="recognition",
        ),
    ] = None,
    normal: Annotated[
        str | None,
        typer.Option(help="The label of clips without anomaly.", show_default="A or Normal"),
    ] = None,
    streams: Annotated[
        str | None, typer.Option(help="Comma-separated.", show_default="all in the store")
    ] = None,
    fusion: Annotated[
        Literal["early", "gated", "bottleneck", "cross", "late"] | None,
        typer.Option(help="How the streams become one sequence.", show_default="early"),
    ] = None,
    model: Annotated[
        Literal["mtcn", "tcn", "lstm", "transformer", "linear"] | None,
        typer.Option(help="What reads that sequence.", show_default="mtcn"),
    ] = None,
    causal: Annotated[
        bool | None, typer.Option("--causal", help="Let no answer see the future, for streams.")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(help="Cross-validate; a manifest's own split is then not used."),
    ] = None,
    seed: Annotated[int | None, typer.Option(show_default="0")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Train so often; the answers are averaged.", show_default="1")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="At most this many.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML with any setting; options win over it.")
    ] = None,
    device: Device = "cpu",
    processes: Processes = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was interrupted.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Log to RUN/tensorboard too.")
    ] = False,
    join: Annotated[
        list[Path] | None, typer.Option(help="A store with more streams of the same clips.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Stage 2: train the MTCN to recognise clips, or to detect when something happens in them."""
    import train as stage2

    settings = stage2.Config.load(
        config,
        task=task,
        normal=normal,
        streams=streams.split(",") if streams else None,
        fusion=fusion,
        model=model,
        causal=causal,
        folds=folds,
        seed=seed,
        seeds=seeds,
        epochs=epochs,
    )
    clips = manifests.read(manifest)
    _need_device(device)
    opened = _open([store, *(join or [])])
    if not as_json:
        _say_random(opened.recipe)
    trained = _train(
        clips,
        opened,
        run,
        settings,
        manifest,
        device,
        quiet=as_json,
        processes=processes,
        resume=resume,
        tensorboard=tensorboard,
    )
    fewest = min(len(part.val) for part in trained.parts)
    if fewest < FEW_A_CLASS * len(trained.classes) and not as_json:
        out.print(
            f"[yellow]only {_counted(fewest, 'validation clip')}[/], of {len(trained.classes)} "
            "classes: chance has a say in which epoch is the best",
            soft_wrap=True,
        )
    best = [
        max(rows, key=lambda row: (row["val_recall"], -row["val_loss"]))
        for rows in _by_model(trained.history())
    ]
    if as_json:
        _print_json(
            {
                "run": str(run),
                "classes": trained.classes,
                "best_epochs": best,
                "left_out": trained.left_out,
                "config": asdict(trained.config),
            }
        )
        return
    if trained.left_out:
        what = _counted(len(trained.left_out), "clip")
        out.print(
            f"[yellow]not in the store and left out: {what} of the manifest[/] "
            f"({_first(trained.left_out)})"
        )
    heard_ahead = trained.recipe.only(trained.config.streams).foresighted_streams
    if trained.config.causal and heard_ahead:
        out.print(
            f"[yellow]not for 'avarnet watch'[/]: these features ({', '.join(heard_ahead)}) heard "
            "what comes after a snippet; for live streams train on a store of 'avarnet extract "
            "--live'",
            soft_wrap=True,
        )
    out.print(f"run in {_plain(str(run))}; next: avarnet evaluate {_plain(str(run))}")


def _train(
    clips: Sequence[manifests.Clip],
    store: features.Store | features.Joined,
    run: Path,
    settings: Any,
    manifest: Path,
    device: str = "cpu",
    quiet: bool = False,
    processes: int | None = None,
    resume: bool = False,
    tensorboard: bool = False,
) -> Run:
    """Train with a table on the way: a row an epoch, or the best epoch of each model."""
    import joblib
    import torch

    import train as stage2
    from train.fit import Epoch

    torch_device = torch.device(
        "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    )
    if processes is None:  # one device is shared by no more than one process
        processes = joblib.cpu_count() if torch_device.type == "cpu" else 1
    log = _tensorboard(run) if tensorboard else None
    bests: dict[int, Epoch] = {}
    with Progress(console=err, transient=True, disable=quiet or not err.is_terminal) as bar:
        task = bar.add_task("training", total=None)

        def show(number: int, count: int, epoch: Epoch, best: bool) -> None:
            if log is not None:
                for name, value in asdict(epoch).items():
                    log.add_scalar(f"{name}/model-{number}", value, epoch.epoch)
            if best:
                bests[number] = epoch
            if count == 1 and not quiet:
                if epoch.epoch == 1:
                    out.print(EPOCH_HEADER, highlight=False)
                out.print(_epoch_row(epoch) + ("  best" if best else ""), highlight=False)
            bar.update(task, total=count * settings.epochs, advance=1)

        trained = stage2.train_run(
            clips,
            store,
            run,
            settings,
            device=torch_device,
            processes=processes,
            resume=resume,
            manifest=manifest,
            on_epoch=show,
        )
    if log is not None:
        log.close()
    if not quiet and len(bests) > 1:
        header = f"  fold  seed {EPOCH_HEADER}"
        out.print("the best epoch of each model:", header, sep="\n", highlight=False)
        for number, (fold, seed) in enumerate(trained.models):
            out.print(f"{fold:6d} {seed:5d} {_epoch_row(bests[number])}", highlight=False)
    return trained


EPOCH_HEADER = " epoch  train loss  val loss  val accuracy  val recall"


def _epoch_row(epoch: Any) -> str:
    return (
        f"{epoch.epoch:6d} {epoch.train_loss:11.4f} {epoch.val_loss:9.4f} "
        f"{epoch.val_accuracy:13.3f} {epoch.val_recall:11.3f}"
    )


def _tensorboard(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        fail("--tensorboard needs a package more: pip install tensorboard")
    return SummaryWriter(str(run / "tensorboard"))


def _by_model(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    models: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        models.setdefault((row["seed"], row["fold"]), []).append(row)
    return list(models.values())


RunStores = Annotated[
    list[Path] | None,
    typer.Option(
        "--store", help="Its features, if they have moved since; again for each joined store."
    ),
]
RunManifest = Annotated[
    Path | None, typer.Option(help="Its manifest, if it has moved: where the videos are.")
]


@app.command(epilog="Example: `avarnet evaluate run`")
def evaluate(
    run: RunPath,
    store: RunStores = None,
    manifest: RunManifest = None,
    root: Root = None,
    recall: Annotated[
        float | None,
        typer.Option(
            help="Detection: share of the anomalies to be noticed, at which false alarms are "
            "counted.",
            show_default="0.8",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge a run on its held-out clips, beside a linear classifier, and write its report."""
    import train as stage2
    from train.segments import RECALL

    loaded = stage2.Run.load(run)
    if recall is not None and loaded.config.task != "detection":
        fail(f"--recall is for detection; {run} is a run of {loaded.config.task}")
    metrics = _evaluate(loaded, store, manifest, root, recall=RECALL if recall is None else recall)
    if as_json:
        _print_json(metrics)
        return
    if metrics["task"] == "detection":
        _print_detection(metrics, loaded)
    else:
        _print_metrics(metrics, loaded)
    out.print(f"report: {_plain(str(run / 'report.html'))}")


@app.command(epilog="Example: `avarnet report video-only fused --compare -o both.html`")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    compare: Annotated[
        bool, typer.Option("--compare", help="One page with the runs side by side.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", show_default="RUN/report.html, compare.html", help="A file."
        ),
    ] = None,
    store: RunStores = None,
    manifest: RunManifest = None,
    root: Root = None,
) -> None:
    """One HTML file with all there is to see of a run; or several runs side by side."""
    import train as stage2
    from train.report import write_comparison

    loaded = [stage2.Run.load(run) for run in runs]
    if compare:
        page = output or Path("compare.html")
        write_comparison(loaded, page)
        out.print(f"report: {_plain(str(page))}", soft_wrap=True)
        return
    if len(loaded) > 1 and output:
        fail(f"--output {output}: one file for {len(loaded)} runs; leave it out, or --compare them")
    for run in loaded:
        page = output or run.path / "report.html"
        _evaluate(run, store, manifest, root, page)
        out.print(f"report: {_plain(str(page))}", soft_wrap=True)


def _asked(run: Run) -> float:
    """Return the recall at which the run's false alarms were counted, if they were."""
    from train import TrainError
    from train.segments import RECALL

    try:
        asked: float = run.evaluation()["model"]["false_alarms"]["asked"]
    except (TrainError, KeyError):
        return RECALL
    return asked


def _evaluate(
    run: Run,
    stores: list[Path] | None = None,
    manifest: Path | None = None,
    root: Path | None = None,
    page: Path | None = None,
    recall: float | None = None,
) -> dict[str, Any]:
    """Judge a run and write its report; false alarms are counted as last time, if not told."""
    import train as stage2
    from extract.plan import read_failures
    from train.report import write_report

    if manifest is not None and not manifest.is_file():
        fail(f"{manifest}: no such file; give the run's manifest, or leave it out")
    store = _open(stores or run.stores)
    evaluation = stage2.judge_run(run, store, _asked(run) if recall is None else recall)
    failures = {i: f.reason for path in store.paths for i, f in read_failures(path).items()}
    page = page or run.path / "report.html"
    with _looking(run, store, manifest or run.manifest, root) as (look, no_pictures):
        write_report(run, evaluation, page, look, no_pictures, failures)
    return evaluation.metrics


@contextmanager
def _looking(
    run: Run,
    store: features.Store | features.Joined,
    manifest: Path | None,
    root: Path | None,
) -> Iterator[tuple[Callable[[str], Look | None], str]]:
    """Yield what shows a clip in the report; or one that shows nothing, and why."""
    why = ""
    if manifest is None or not manifest.is_file():
        why = "the manifest that says where the videos are is not at hand (--manifest)"
    elif not _has_extract():
        why = "stage 1, which reads videos, is not installed"
    if manifest is None or why:
        yield lambda clip_id: None, why
        return
    import extract as stage1
    from train.report import Look

    clips = {clip.id: clip for clip in manifests.read(manifest)}
    base = _root(manifest, root)

    def look(clip_id: str) -> Look | None:
        if clip_id not in clips:
            return None
        clip = clips[clip_id]
        files = (clip.resolve(base), clip.resolve_audio(base))
        try:
            return Look(*stage1.glimpse(reader, *files, store[clip_id].duration))
        except stage1.ClipError:
            return None

    with closing(stage1.Reader()) as reader:
        yield look, f"the videos below {base} cannot be read (--root)"


def _print_detection(metrics: dict[str, Any], run: Run) -> None:
    from train.pages import figure

    _say_random(run.recipe)
    model, linear = metrics["model"], metrics["linear"]
    table = Table("frames of", "clips", "positive", "AP", "ROC-AUC", "linear:", "AP", "ROC-AUC")
    rows = {"all": (model["all"], linear["all"], str(model["clips"]))}
    rows["abnormal"] = (model["abnormal"], linear["abnormal"], "")
    for name, row in model["per_class"].items():
        rows[name] = (row, linear["per_class"][name], str(row["clips"]))
    for name, (ours, theirs, clips) in rows.items():
        figures = [figure(row[key], 4) for row in (ours, theirs) for key in ("ap", "roc_auc")]
        share = f"{ours['anomalous'] / ours['frames']:.1%}"
        table.add_row(_plain(name), clips, share, *figures[:2], "", *figures[2:])
    out.print(table)
    out.print("AP: area under the precision-recall curve, as XD-Violence reports it")
    table = Table("", run.config.model, "linear")
    both = model, linear
    for key, title in (("ap", "AP"), ("roc_auc", "ROC-AUC")):
        ends = [row["intervals"].get(key, (None, None)) for row in both]
        shown = (" to ".join(map(figure, pair)) for pair in ends)
        table.add_row(f"{title} of all, 95 % interval", *shown)
    segments = {
        "mAP of segments, IoU 0.1 to 0.5": [row["segments"]["map"] for row in both],
        **{
            f"- AP of {_plain(label)}": [row["segments"]["per_class"][label] for row in both]
            for label in model["segments"]["per_class"]
        },
        "- AP, all classes as one": [row["segments"]["ap"] for row in both],
    }
    for title, pair in segments.items():
        table.add_row(title, *(figure(row["mean"]) for row in pair))
    alarms = [row["false_alarms"] for row in both]
    title = f"false alarms an hour, {100 * alarms[0]['asked']:g} % noticed"
    table.add_row(title, *(figure(row["per_hour"], 1) for row in alarms))
    out.print(table)
    out.print(f"every snippet's score: {_plain(str(run.path / 'predictions.csv'))}")


def _print_metrics(metrics: dict[str, Any], run: Run) -> None:
    model, linear = metrics["model"], metrics["linear"]
    _say_random(run.recipe)
    if metrics["held_out"] == "test":
        what = _counted(model["clips"], "held-out clip")
    else:
        what = _counted(model["clips"], "validation clip") + " (no test split: too good)"
    out.print(f"{what}, {_counted(metrics['parts'], 'model')}")
    model_name = run.config.model
    table = Table("", model_name, "95 % interval", "linear", "95 % interval")
    for name in ("accuracy", "precision", "recall", "f1"):
        cells: list[str] = []
        for row in (model[name], linear[name]):
            cells += [f"{row['value']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"]
        table.add_row(name if name == "accuracy" else f"macro {name}", *cells)
    out.print(table)
    if len(metrics["models"]["each"]) > 1:
        each = metrics["models"]
        out.print(
            f"single models (folds x seeds): accuracy {each['accuracy']['mean']:.3f} ± "
            f"{each['accuracy']['std']:.3f}, macro f1 {each['f1']['mean']:.3f} ± "
            f"{each['f1']['std']:.3f}",
            highlight=False,
        )
    ece = [row["calibration"]["ece"] for row in (model, linear)]
    out.print(
        f"calibration error (ECE): {model_name} {ece[0]:.3f}, linear {ece[1]:.3f}", highlight=False
    )
    table = Table("class", "clips", "precision", "recall", "F1", title=f"{model_name}, by class")
    for name, row in model["per_class"].items():
        scores = (f"{row[key]:.3f}" for key in ("precision", "recall", "f1"))
        table.add_row(_plain(name), str(row["clips"]), *scores)
    out.print(table)
    columns = map(str, range(1, len(run.classes) + 1))
    table = Table(
        "is / taken for", *columns, title=f"{model_name}, confusion", padding=(0, 0, 0, 1)
    )
    for number, (name, counts) in enumerate(zip(run.classes, model["confusion"], strict=True), 1):
        marks = [str(count) if count else "." for count in counts]
        table.add_row(f"{number} {_plain(name)}", *marks)
    out.print(table)


@app.command(epilog="Example: `avarnet compare video-only fused`")
def compare(
    one: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of an evaluated run.")],
    other: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of another.")],
    as_json: Json = False,
) -> None:
    """Is one of two runs better on the clips that both were judged by, or was it luck?"""
    import train as stage2

    found = stage2.compare_runs(one, other)
    if as_json:
        _print_json(found)
        return
    names = {"accuracy": "accuracy", "ap": "AP of frames", "roc_auc": "ROC-AUC of frames"}
    measures = [found[key] for key in names if key in found]
    recognition = found["task"] == "recognition"
    alone = [[str(found[key])] if recognition else [] for key in ("only_one", "only_other")]
    columns = [names[key] for key in names if key in found]
    table = Table("", *columns, *["right where the other is wrong"] * recognition)
    for k, path in enumerate((one, other)):
        table.add_row(_plain(str(path)), *(f"{m['values'][k]:.4f}" for m in measures), *alone[k])
    differences = [m["difference"] for m in measures]
    table.add_row("difference", *(f"{d['value']:+.4f}" for d in differences))
    table.add_row("95 % interval", *(f"{d['low']:+.4f} to {d['high']:+.4f}" for d in differences))
    table.add_row("p", *(f"{m['p']:.3f}" for m in measures))
    out.print(table)
    test = "McNemar's exact test" if recognition else "permutations of the runs, clip by clip"
    out.print(f"{_counted(found['clips'], 'clip')}; p: {test}", highlight=False)


@app.command(epilog="Example: `avarnet ablate videos.jsonl store runs --folds 5 --seeds 5`")
def ablate(
    manifest: Manifest,
    store: StorePath,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="For the runs and the table.")],
    task: Annotated[
        Literal["recognition", "detection"] | None, typer.Option(show_default="recognition")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Cross-validate.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Train so often.", show_default="1")] = None,
    epochs: Annotated[int | None, typer.Option(help="At most this many.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML with any setting; options win over it.")
    ] = None,
    processes: Processes = None,
    join: Annotated[
        list[Path] | None, typer.Option(help="A store with more streams of the same clips.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare streams, fusions and sequence models: a run of each, and a table of all."""
    import joblib

    import train as stage2

    settings = stage2.Config.load(config, task=task, folds=folds, seeds=seeds, epochs=epochs)
    clips = manifests.read(manifest)
    opened = _open([store, *(join or [])])
    if not as_json:
        _say_random(opened.recipe)
    with Progress(console=err, transient=True, disable=as_json or not err.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def show(name: str, number: int, count: int, epoch: Any, best: bool) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=count * settings.epochs)
            bar.update(tasks[name], advance=1)

        rows = stage2.ablate(clips, opened, folder, settings, processes or joblib.cpu_count(), show)
    if as_json:
        _print_json([asdict(row) for row in rows])
        return
    many = settings.seeds > 1
    columns = ["mean ± std", "together"] if many else [rows[0].metric]
    table = Table(
        "streams", "fusion", "model", "params", "MFLOPs", "ms", *columns, padding=(0, 0, 0, 1)
    )
    for row in rows:
        cost = ["", "", ""]
        if row.parameters is not None and row.flops is not None:
            cost = [f"{row.parameters // 1000}k", f"{row.flops / 1e6:.1f}", f"{row.latency_ms:.1f}"]
        figures = [f"{row.mean:.3f}" + (f" ± {row.std:.3f}" if row.std is not None else "")]
        figures += [f"{row.together:.3f}"] if many else []
        table.add_row(_plain("+".join(row.streams)), row.fusion, row.model, *cost, *figures)
    out.print(table)
    out.print(
        f"{rows[0].metric}; MFLOPs and ms of the clip of the median length, once forward, one "
        f"thread; runs in {_plain(str(folder))}",
        soft_wrap=True,
    )


@app.command(epilog="Example: `avarnet sweep videos.jsonl store sweep search.toml`")
def sweep(
    manifest: Manifest,
    store: StorePath,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="For the runs and the journal.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE.toml", help="trials, [settings] and [search].")
    ],
    as_json: Json = False,
) -> None:
    """Search settings by random draws and successive halving; the same command goes on."""
    import train as stage2

    search = stage2.Search.load(file)
    clips = manifests.read(manifest)
    opened = _open([store])
    if not as_json:
        _say_random(opened.recipe)
    with _clips_bar("trials", as_json) as show:
        trials = stage2.sweep(clips, opened, folder, search, show)
    if as_json:
        _print_json([asdict(trial) for trial in trials])
        return
    table = Table("trial", *search.space, "validation recall", "")
    for trial in trials:
        drawn = (
            f"{v:.3g}" if isinstance(v, float) else _plain(str(v)) for v in trial.drawn.values()
        )
        value = "" if trial.value is None else f"{trial.value:.3f}"
        table.add_row(str(trial.number), *drawn, value, trial.state)
    out.print(table)
    best = _plain(str(folder / f"trial-{trials[0].number}"))
    out.print(f"the best is a run: avarnet evaluate {best}", soft_wrap=True)


@app.command(epilog="Example: `avarnet export run model.onnx`")
def export(
    run: RunPath,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="FILE.onnx, or FILE.pt2 for torch.export.")
    ],
    as_json: Json = False,
) -> None:
    """Write a run's models as one file for other programs, and check its answers."""
    import train as stage2

    difference = stage2.export_run(stage2.Run.load(run), file)
    if as_json:
        _print_json({"file": str(file), "largest_difference": difference})
        return
    out.print(f"{_plain(str(file))}: within {difference:.1g} of torch's answers", soft_wrap=True)


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
    _need_device(device)
    if fail_on_anomaly and loaded.normal is None:
        fail(f"{run} knows no normal class; name it in training: avarnet train ... --normal LABEL")
    _need_extract()
    import extract as stage1

    recipe = _moved(loaded.recipe, video_model, video_weights, audio_model)
    files = _listed(videos)
    pages = _pages(files, html)
    quiet = as_json or as_csv
    if not quiet:
        _say_random(recipe)
    extractor, predictor = stage1.Extractor(recipe, device), stage2.Predictor(loaded)
    answers: list[dict[str, Any]] = []
    with _footage_bar("scoring") as bar:
        total = sum(stage1.footage(file) for file in files) if err.is_terminal else 0.0
        clips = (stage1.Files(file, None) for file in files)
        for (video, _), clip in extractor.stream(clips, lambda seconds: bar(seconds, total)):
            if isinstance(clip, stage1.ClipError):
                answers.append({"video": str(video), "error": str(clip)})
                err.print(f"[red]failed:[/] {_plain(f'{video}: {clip}')}", soft_wrap=True)
                continue
            answer = predictor(clip)
            answers.append(_answer(video, clip, answer))
            if not quiet:
                _print_prediction(video, clip, answer)
            if html is not None:
                _write_page(pages[video], video, clip, predictor, answer, quiet)
    if as_json:
        _print_json(answers)
    if as_csv:
        _print_intervals(answers)
    failed = sum("error" in answer for answer in answers)
    if fail_on_anomaly and any(answer.get("intervals") for answer in answers):
        raise typer.Exit(ANOMALY)
    if failed:
        raise typer.Exit(FAILED if failed == len(files) else SOME_FAILED)


def _listed(videos: list[Path]) -> list[Path]:
    """Return the videos that are given: themselves, by their folder, or in a list of paths."""
    found: list[Path] = []
    for path in videos:
        if path.is_dir():
            below = manifests.videos_below(path)
            if not below:
                fail(f"{path}: no videos in this folder")
            found += below
        elif path.suffix == ".txt":
            listed = _lines(path, "of videos")
            if not listed:
                fail(f"{path}: no videos in this list; write a path on each line")
            found += [path.parent / line for line in listed]
        else:
            found.append(path)
    return list(dict.fromkeys(found))


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


def _write_page(
    page: Path, video: Path, clip: Features, predictor: Predictor, answer: Prediction, quiet: bool
) -> None:
    from train.page import write_prediction_page

    run = predictor.run
    streams = [name for name in run.config.streams if clip.valid[name].any()]
    without = {name: predictor(clip, [name]) for name in streams if len(streams) > 1}
    page.parent.mkdir(parents=True, exist_ok=True)
    write_prediction_page(page, video, clip, run, answer, without)
    if not quiet:
        out.print(f"page: {_plain(str(page))}", soft_wrap=True)


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


def _print_prediction(video: Path, clip: Features, answer: Prediction) -> None:
    out.print(f"{_plain(str(video))}: [bold]{_plain(answer.label)}[/] ({answer.confidence:.2f})")
    for name, valid in clip.valid.items():
        if not valid.any():
            out.print(f"  no {name} in this clip: answered without it")
    if answer.anomaly is None:
        out.print("  the run knows no normal class (train --normal LABEL): no intervals")
    elif not answer.intervals:
        out.print(f"  no anomaly; the highest score is {answer.anomaly.max():.2f}")
    else:
        table = Table("from", "to", "class", "anomaly, at most")
        for start, end, label, score in answer.intervals:
            table.add_row(_clock(start, 1), _clock(end, 1), _plain(label), f"{score:.2f}")
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


# search -----------------------------------------------------------------------------------------


@app.command(epilog="Example: `avarnet search store --like fight/fi001@2-4.5 -n 5`")
def search(
    store: StorePath,
    like: Annotated[
        str | None,
        typer.Option(metavar="CLIP[@START-END]", help="A clip of the store, or seconds of it."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Words; for stores with a stream such as clip.")
    ] = None,
    stream: Annotated[
        list[str] | None, typer.Option(help="Compare only this one.", show_default="all")
    ] = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="Clips to find.")] = 10,
    text_model: Annotated[
        str | None, typer.Option(help="The folder of the text's network, if it has moved.")
    ] = None,
    join: Annotated[
        list[Path] | None, typer.Option(help="A store with more streams of the same clips.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find clips, and moments in them, that are like one of the store, or fit a text.

    Whole clips are ranked as wholes; for a moment or a text, the best moment of each clip decides.
    """
    if (like is None) == (text is None):
        raise typer.BadParameter("give one of --like CLIP and --text WORDS")
    opened = _open([store, *(join or [])])
    vector = None
    if text is not None:
        aligned = _text_stream(opened.recipe, store, stream)
        vector = _read_text(text, aligned, opened.recipe, text_model)
    with _clips_bar("reading clips, once", as_json) as progress:
        searcher = features.Searcher(opened, progress)
    if vector is not None:
        hits = searcher.nearest(aligned, vector, n=number)
    else:
        hits = searcher.like(str(like), stream, number)
    by_moment = like not in opened  # so CLIP@START-END, or a text
    if as_json:
        order = "moment" if by_moment else "similarity"
        found = [hit._asdict() for hit in hits]
        _print_json({"ordered_by": order, "hits": found, "damaged": searcher.damaged})
    else:
        _say_random(opened.recipe)
        # what decides on the order is the first figure
        if by_moment:
            table = Table("clip", "its best moment", "from", "to", "the whole clip")
        else:
            table = Table("clip", "the whole clip", "its best moment", "from", "to")
        for hit in hits:
            moment = [f"{hit.moment:.3f}", f"{hit.start:.2f} s", f"{hit.end:.2f} s"]
            whole = [f"{hit.similarity:.3f}"]
            table.add_row(_plain(hit.clip), *(moment + whole if by_moment else whole + moment))
        order = "by their best moments" if by_moment else "by the whole clips"
        out.print(f"the most alike first, {order}; similarities are cosines, at most 1")
        out.print(table)
        for reason in searcher.damaged.values():
            out.print(f"[red]left out:[/] {_plain(reason)}", soft_wrap=True)
    raise typer.Exit(SOME_FAILED if searcher.damaged else DONE)


def _text_stream(recipe: Recipe, store: Path, asked: list[str] | None) -> str:
    """Return the stream whose rows can be compared with texts."""
    for name, settings in recipe.streams.items():
        if "text" in settings and (not asked or name in asked):
            return name
    fail(
        f"{store}: {' or '.join(asked or recipe.streams)} cannot be compared with texts; search in "
        "a store that has a stream such as clip: 'avarnet extract MANIFEST STORE --stream clip'"
    )


def _read_text(text: str, stream: str, recipe: Recipe, moved: str | None) -> Any:
    _need_extract()
    import extract as stage1

    if moved:
        source = {**recipe.source, stream: {**recipe.source.get(stream, {}), "name": moved}}
        recipe = replace(recipe, source=source)
    return stage1.read_text(text, stream, recipe)


def _moved(
    recipe: Recipe, video_model: str | None, video_weights: Path | None, audio_model: str | None
) -> Recipe:
    """Return a recipe whose networks are loaded from where they are now."""
    source = {name: dict(settings) for name, settings in recipe.source.items()}
    for stream, key, moved in (
        ("video", "name", video_model),
        ("video", "file", video_weights),
        ("audio", "name", audio_model),
    ):
        if moved and stream not in source:
            raise typer.BadParameter(f"{moved}: the run has no stream {stream} that would use it")
        if moved:
            source[stream][key] = str(moved)
    return replace(recipe, source=source)


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
        typer.Option(min=0, help="To open a URL again, in a row.", show_default="for ever"),
    ] = None,
) -> None:
    """Score a live stream with a causal run: one line of JSON for each snippet, and each gap."""
    import train as stage2

    loaded = stage2.Run.load(run)
    scorer = stage2.LiveScorer(loaded)
    _need_device(device)
    _need_extract()
    import extract as stage1

    recipe = _moved(loaded.recipe, video_model, video_weights, audio_model)
    recipe = recipe.only(loaded.config.streams)
    _say_random(recipe)
    if recipe.foresighted_streams:
        err.print(
            f"[yellow bold]HEARS OTHERWISE[/] ({', '.join(recipe.foresighted_streams)}): "
            f"{_plain(str(run))} was trained on sound heard in windows of 20 s around a snippet, "
            "and in a stream nothing comes after it yet. The rows differ, and the scores may be "
            "wrong. The way out: 'avarnet extract MANIFEST NEW-STORE --live', and a run that is "
            "trained on that store.",
            soft_wrap=True,
        )
    with suppress(KeyboardInterrupt):
        for event in stage1.live_snippets(source, recipe, device, retries):
            if isinstance(event, stage1.Snippet):
                line = _scored(event, scorer)
                print(json.dumps(line, ensure_ascii=False), flush=True)
            elif event.end is None:
                note = f"[yellow]gap[/] from {event.start:.2f} s on: {_plain(event.why)}"
                err.print(note, soft_wrap=True)
            else:
                scorer.restart()  # what it does not know of cannot be what came before
                line = {"start": round(event.start, 3), "end": round(event.end, 3)}
                print(json.dumps({**line, "gap": event.why}), flush=True)


def _scored(snippet: Snippet, scorer: LiveScorer) -> dict[str, Any]:
    classes, normal = scorer.run.classes, scorer.run.normal
    probabilities = scorer(snippet.rows, snippet.valid)
    best = int(probabilities.argmax())
    said = {name: round(float(p), 4) for name, p in zip(classes, probabilities, strict=True)}
    return {
        "start": round(snippet.start, 3),
        "end": round(snippet.end, 3),
        "label": classes[best],
        "score": round(float(probabilities[best]), 4),
        "probabilities": said,
        # as in an interval of `predict`: how likely it is anything but normal
        "anomaly": None if normal is None else round(1 - said[normal], 4),
        "streams": [name for name, there in snippet.valid.items() if there],
        "latency": round(time.monotonic() - snippet.received, 4),
    }


# demo -------------------------------------------------------------------------------------------


@app.command(epilog="Example: `avarnet demo`")
def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to put everything.")
    ] = Path("avarnet-demo"),
) -> None:
    """The whole way on synthetic clips: no download, about two minutes on two cores."""
    _need_extract()
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
    clips = manifests.from_folders(videos, folder)
    clips = manifests.assign_split(clips, test=0.3, val=0.15)
    manifests.write(manifest, clips)
    note("videos", f"{len(clips)} clips of {len({clip.label for clip in clips})} classes")
    out.print(f"2. Extracting the features of {len(clips)} clips, once")
    recipe = stage1.make_recipe("mobilevit_xxs", weights="random")
    _say_random(recipe)
    summary = _extract(clips, folder, store, recipe)
    _print_summary(summary, store)
    note("extract", f"{len(features.Store(store))} clips in {_plain(str(store))}")
    out.print("3. Training the MTCN from the store alone")
    if run.exists():
        shutil.rmtree(run)
    trained = _train(clips, features.Store(store), run, stage2.Config(), manifest)
    note("train", f"{len(trained.history())} epochs")
    out.print("4. Evaluating it on the clips held out")
    metrics = _evaluate(trained)
    _print_metrics(metrics, trained)
    accuracy = metrics["model"]["accuracy"]["value"]
    note("evaluate", f"accuracy {accuracy:.2f} of {metrics['model']['clips']} clips")
    out.print("5. Scoring a clip it has never seen (a synthetic police siren)")
    clip = stage1.Extractor(recipe)(unseen)
    predictor = stage2.Predictor(trained)
    answer = predictor(clip)
    _print_prediction(unseen, clip, answer)
    page = folder / "unseen.html"
    _write_page(page, unseen, clip, predictor, answer, quiet=True)
    note("predict", f"{_plain(answer.label)} ({answer.confidence:.2f}); {_plain(str(page))}")
    out.print(happened)
    out.print(f"Everything is in {_plain(str(folder))}: manifest.jsonl, store, run.")
    out.print(
        "These backbones were random. For real work leave out '--weights random': "
        "'avarnet extract MANIFEST STORE' takes the pretrained networks from the hub, its cache, "
        "or --video-weights FILE and --audio-model FOLDER."
    )
    out.print(f"[bold]Report: {_plain(str(run / 'report.html'))}[/]", soft_wrap=True)
    raise typer.Exit(SOME_FAILED if summary.failed else DONE)


# doctor -----------------------------------------------------------------------------------------


class Check(NamedTuple):
    """What `doctor` says of one thing: all is well, something one may want is not, it is broken."""

    check: str
    state: Literal["ok", "note", "broken"]
    says: str


@app.command(epilog="Example: `avarnet doctor /scratch/store`")
def doctor(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where a store is to be.", show_default="here")
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Try what avarnet needs of this machine, and say the way out of what is wrong."""
    colours = {"ok": "green", "note": "yellow", "broken": "red"}
    checks = []
    for check in _checks(folder):
        checks.append(check)
        if not as_json:
            state = f"[{colours[check.state]}]{check.state:6}[/]"
            words = _plain(f"{check.check}: {check.says}")
            out.print(state, words, highlight=False, soft_wrap=True)
    fine = all(check.state != "broken" for check in checks)
    if as_json:
        _print_json({"fine": fine, "checks": [check._asdict() for check in checks]})
    raise typer.Exit(DONE if fine else FAILED)


def _checks(folder: Path) -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    attempts: dict[str, tuple[Callable[[], Iterator[Check]], str]] = {
        "torch": (_check_torch, "install the torch for this machine: pytorch.org"),
        "train": (_check_train, "pip install --force-reinstall avarnet"),
        "store": (partial(_check_folder, folder), "give another folder"),
        "extract": (_check_extract, "pip install --force-reinstall 'avarnet[extract]'"),
    }
    for name, (attempt, way_out) in attempts.items():
        try:
            yield from attempt()
        except Exception as error:  # a broken installation fails in its own way
            yield Check(name, "broken", f"{_named(error)}; {way_out}")
    for extra, (module, what) in OPTIONAL.items():
        if importlib.util.find_spec(module):
            yield Check(extra, "ok", f"for {what}")
        else:
            yield Check(extra, "note", f"{what} needs it: pip install 'avarnet[{extra}]'")


def _check_torch() -> Iterator[Check]:
    import torch

    threads = _counted(torch.get_num_threads(), "CPU thread")
    yield Check("torch", "ok", f"{torch.__version__}, {threads}")
    with warnings.catch_warnings(record=True) as said:  # why it cannot use a GPU's driver
        warnings.simplefilter("always")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = {f"cuda:{number}": torch.cuda.get_device_name(number) for number in range(gpus)}
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple's GPU"
    for device, name in devices.items():
        torch.ones(8, 8, device=device).sum().item()
        yield Check(device, "ok", name)
    if not devices and shutil.which("nvidia-smi"):
        why = f" ({said[0].message})" if said else ""
        out_of_it = "install the torch for its driver: pytorch.org"
        yield Check("GPU", "note", f"there is one, but torch cannot use it{why}; {out_of_it}")
    elif not devices:
        yield Check("GPU", "note", "none: extract and train run on the CPU")


def _check_train() -> Iterator[Check]:
    importlib.import_module("train.report")  # it imports all that stage 2 needs
    yield Check("train", "ok", "stage 2 can be imported")


def _check_folder(folder: Path) -> Iterator[Check]:
    wanted = folder.absolute()
    there = next(path for path in (wanted, *wanted.parents) if path.exists())
    features.try_folder(there)
    yield Check("store", "ok", f"can be written, sealed and read in {there}")
    free = shutil.disk_usage(there).free
    room = f"{decimal(free)} are free: features of {free / BYTES_AN_HOUR:,.0f} hours of video"
    if free > LITTLE_ROOM:
        yield Check("disk", "ok", room)
    else:
        yield Check("disk", "note", f"only {room}; make room, or give a folder on another disk")


def _check_extract() -> Iterator[Check]:
    if not _has_extract():
        yield Check("extract", "note", EXTRACT_EXTRA)
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    from extract import doctor as stage1

    read = stage1.try_codecs()
    for codec in stage1.CODECS:
        if codec not in read:
            yield Check(codec, "note", "not tried: this FFmpeg has nothing to encode it with")
        elif reason := read[codec]:
            way_out = "pip install --force-reinstall av decord2"
            yield Check(codec, "broken", f"cannot be read ({reason}); {way_out}")
        else:
            yield Check(codec, "ok", "can be read")
    networks = stage1.cached_weights(VIDEO_MODEL, AUDIO_MODEL)
    for (name, cached), option in zip(networks.items(), WEIGHTS_OPTIONS, strict=True):
        if cached:
            yield Check(name, "ok", f"its weights are in {HF_HUB_CACHE}")
        else:
            says = (
                f"not in {HF_HUB_CACHE}. With internet, the first extract fetches it; without, run "
                f"'hf download {name}' where there is some and copy that folder, or give {option}"
            )
            yield Check(name, "note", says)
    queues = [f"{does} (--scheduler {name})" for name, does in stage1.batch_systems().items()]
    if queues:
        yield Check("queue", "ok", ", ".join(queues))
    else:
        says = "no batch system takes jobs from here; --scheduler slurm is for its login node"
        yield Check("queue", "note", says)


# shared -----------------------------------------------------------------------------------------


def _root(manifest: Path, root: Path | None) -> Path:
    return root if root is not None else manifests.default_root(manifest)


def _open(stores: list[Path]) -> features.Store | features.Joined:
    opened = [features.Store(path) for path in stores]
    return opened[0] if len(opened) == 1 else features.join(*opened)


def _need_device(name: str) -> None:
    """Refuse a device that this machine has not."""
    import torch

    try:
        torch.empty(0, device="cpu" if name == "auto" else name)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        fail(f"--device {name}: torch cannot use it here ({why}); see 'avarnet doctor'")


def _has_extract() -> bool:
    needed = (
        "av",
        "dask",
        "dask_jobqueue",
        "decord",
        "distributed",
        "soundfile",
        "timm",
        "transformers",
    )
    return all(importlib.util.find_spec(name) for name in needed)


def _need_extract() -> None:
    if not _has_extract():
        fail(EXTRACT_EXTRA)


def _say_random(recipe: Recipe) -> None:
    if recipe.random_streams:
        err.print(
            f"[yellow bold]RANDOM WEIGHTS[/] ({', '.join(recipe.random_streams)}): these networks "
            "have learned nothing; the figures test the pipeline, not the method.",
            soft_wrap=True,
        )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _first(names: Sequence[str]) -> str:
    """Return the first names of a list that may be long, for a message."""
    return _plain(", ".join(names[:3]) + (", ..." if len(names) > 3 else ""))


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _plain(text: str) -> str:
    """Keep a name that looks like Rich's markup from being taken for it."""
    return text.replace("[", r"\[")


def _clock(seconds: float, digits: int = 0) -> str:
    whole = int(seconds)
    rest = f"{seconds % 1:.{digits}f}"[1:] if digits else ""
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}{rest}"


if __name__ == "__main__":
    main()
