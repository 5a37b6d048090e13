"""The command line: every command is a few lines that call the four parts."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
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
    from train import LiveScorer, Prediction, Run

DONE, FAILED, SOME_FAILED = 0, 1, 3  # exit codes; 2, wrong usage, is Typer's own
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

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The manifest to write.")]
Root = Annotated[
    Path | None,
    typer.Option(help="What the manifest's paths are relative to.", show_default="its folder"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Manifest = Annotated[Path, typer.Argument(help="The manifest, JSON Lines.")]
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
    """Run the command line; a user's mistake is one message, never a traceback."""
    try:
        app()
    except (manifests.ManifestError, features.FeatureError, OSError) as error:
        fail(str(error))
    except Exception as error:
        # the errors of train and extract, which are imported only by the commands that need them
        if type(error).__name__ not in ("TrainError", "ClipError", "ClusterError", "WeightsError"):
            raise
        fail(str(error))


def fail(message: str) -> NoReturn:
    """Print an error and exit with 1."""
    err.print(f"[red]error:[/] {_plain(message)}", highlight=False, soft_wrap=True)
    sys.exit(FAILED)


@app.callback(invoke_without_command=True)
def _version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if show:
        out.print(version("avarnet"), highlight=False)
        raise typer.Exit


# manifest ---------------------------------------------------------------------------------------


@manifest_app.command(
    "folders", epilog="Example: `avarnet manifest folders videos -o videos.jsonl`"
)
def manifest_folders(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="DIR/CLASS/clip.mp4")],
    output: Output,
    groups: Annotated[
        Path | None, typer.Option(help="CSV with columns clip and source (the recording).")
    ] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """One class per sub-folder (VAAR's layout)."""
    clips = manifests.from_folders(directory, _root(output, root), groups)
    _write_manifest(output, clips, [], as_json)


@manifest_app.command("csv", epilog="Example: `avarnet manifest csv clips.csv -o clips.jsonl`")
def manifest_csv(
    file: Annotated[
        Path,
        typer.Argument(
            help="Columns path, label; optional id, split, group, duration, fps, audio, start, end."
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
        out.print(f"{errors} errors, {len(findings) - errors} warnings")
        if probe is None:
            out.print(f"The videos were not opened: {_plain(EXTRACT_EXTRA)}")
    raise typer.Exit(FAILED if errors else DONE)


def _write_manifest(
    output: Path, clips: Sequence[manifests.Clip], missing: list[str], as_json: bool
) -> None:
    manifests.write(output, clips)
    counts = Counter(clip.label for clip in clips)
    if as_json:
        _print_json(
            {"manifest": str(output), "clips": len(clips), "missing": missing, "classes": counts}
        )
        return
    table = Table("class", "clips")
    for name, count in sorted(counts.items()):
        table.add_row(_plain(name), str(count))
    out.print(table)
    out.print(f"{len(clips)} clips in {_plain(str(output))}")
    if missing:
        some = _plain(", ".join(missing[:3]))
        out.print(f"[yellow]{len(missing)} listed videos were not found[/] ({some}, ...)")


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
    ] = "mobilevit_s",
    audio_model: Annotated[
        str,
        typer.Option(help="A Wav2Vec2, HuBERT or WavLM: its name on the hub, or a folder."),
    ] = "facebook/wav2vec2-base",
    layers: Annotated[
        str,
        typer.Option(help="Hidden layers of the audio model to average: last, mean, 6, 4-8, 3,6."),
    ] = "last",
    stream: Annotated[
        list[str] | None,
        typer.Option(help="A further stream: flow, or a backbone that another package brings."),
    ] = None,
    weights: Annotated[
        Literal["pretrained", "random"],
        typer.Option(help="random: seeded networks that have learned nothing, to try things out."),
    ] = "pretrained",
    video_weights: Annotated[
        Path | None, typer.Option(help="A weights file for the video model.")
    ] = None,
    snippet_seconds: Annotated[float, typer.Option(help="Length of one time step.")] = 0.25,
    precision: Annotated[
        Literal["fp32", "bf16", "auto"],
        typer.Option(
            help="auto: the store's; for a new one bf16 if it is faster here and as good."
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
        cluster_config,
        device,
    )
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
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if precision == "auto":
        recipe = _with_best_precision(recipe, store, device)
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
            f"interrupted with {len(summary.left)} clips left; what is finished is in {store}: run "
            "the same command again to go on"
        )
    raise typer.Exit(SOME_FAILED if summary.failed else DONE)


def _with_best_precision(recipe: Recipe, store: Path, device: str) -> Recipe:
    import extract as stage1

    held = store / features.RECIPE_FILE
    if held.exists():
        precision = features.Recipe.from_json(held.read_text(encoding="utf-8")).precision
        why = f"as {store} has it"
    else:
        precision, why = stage1.choose_precision(recipe.source, device)
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
        with _footage_bar() as progress:
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
        f"{len(todo)} clips to extract ({len(clips) - len(todo)} are in {_plain(str(store))}), "
        f"{_clock(sum(lengths))} of video, in {len(plan)} tasks for {cluster.processes} processes"
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
def _footage_bar() -> Iterator[Callable[[float, float], None]]:
    """Yield a callback that draws footage done, speed as a multiple of real time, time left."""
    columns = (
        TextColumn("extracting"),
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
            f"[yellow]{len(summary.damaged)} damaged shards were taken out[/] (renamed to "
            "*.damaged, to be deleted); their clips that were hurt were extracted again"
        )
    if summary.failed:
        table = Table("failed clip", "reason")
        for clip_id, reason in sorted(summary.failed.items()):
            table.add_row(_plain(clip_id), _plain(reason))
        out.print(table)
    if summary.not_tried:
        out.print(
            f"{len(summary.not_tried)} of these failed in an earlier run and their files are the "
            "same: they were not tried again (--retry-failed tries them)"
        )
    if len(summary.extracted) > len(summary.slowest) > 0:
        slow = ", ".join(f"{clip_id} {seconds:.1f} s" for clip_id, seconds in summary.slowest)
        out.print(f"slowest: {_plain(slow)}", soft_wrap=True)
    speed = summary.footage / summary.seconds if summary.seconds else 0.0
    out.print(
        f"{len(summary.extracted)} clips extracted, {len(summary.already)} were there, "
        f"{len(summary.failed)} failed: {_clock(summary.footage)} of video in "
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
    table.add_row("footage", f"{about.hours:.2f} hours in steps of {opened.snippet_seconds:g} s")
    table.add_row("shards", f"{about.shards}, {about.nbytes / 1e6:.1f} MB")
    for name, settings in opened.recipe.streams.items():
        source = opened.recipe.source.get(name, {})
        model = source.get("name", settings.get("model", "?"))
        origin = f"{model}, {source.get('weights', '?')} weights"
        lack = f"; {about.lacking[name]} clips have none" if about.lacking[name] else ""
        table.add_row(f"stream {name}", _plain(f"{settings['features']} values, {origin}{lack}"))
    for flag, count in about.flags.items():
        table.add_row(flag, f"{count} clips")
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
        out.print(f"{intact} clips intact, {len(damages)} damaged shards")
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
    ids = {line.strip() for line in file.read_text(encoding="utf-8").splitlines()} - {""}
    if not ids:
        raise typer.BadParameter(f"{file} has no clip ids; write one a line")
    return ids


def _print_transfer(transfer: features.Transfer, target: str, as_json: bool) -> None:
    if as_json:
        _print_json({"to": target, **asdict(transfer)})
        return
    if transfer.missing:
        some = _plain(", ".join(transfer.missing[:3]))
        out.print(f"[yellow]{len(transfer.missing)} clips are not in that store[/] ({some}, ...)")
    what = f"{len(transfer.clips)} clips" if transfer.clips else f"{len(transfer.shards)} shards"
    rate = transfer.nbytes / 1e6 / transfer.seconds if transfer.seconds else 0.0
    out.print(
        f"{what} travelled, {transfer.already} were there: {transfer.nbytes / 1e6:.1f} MB in "
        f"{transfer.seconds:.1f} s ({rate:.1f} MB/s) -> {_plain(target)}"
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
    out.print(f"{copied} shards copied: {len(features.Store(output))} clips in {output}")


@features_app.command("compact", epilog="Example: `avarnet features compact store`")
def features_compact(
    store: StorePath,
    shard_size: Annotated[int, typer.Option(min=1, help="Of a shard, in MB (2^20 bytes).")] = 256,
) -> None:
    """Make few large shards of many small ones and drop duplicates; nothing is lost by a kill."""
    before, after = features.compact(store, shard_size * 2**20)
    out.print(f"{before} shards before, {after} now")


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
    out.print(f"{len(dropped)} clips dropped, {len(wanted) - len(dropped)} were not there")


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
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    kind: Annotated[
        Literal["npy", "webdataset", "safetensors"],
        typer.Option("--as", help="npy: one file a clip and stream, NaN where nothing was."),
    ] = "npy",
) -> None:
    """Write features for other tools."""
    opened = features.Store(store)
    count = getattr(features, f"export_{kind}")(opened, folder)
    out.print(f"{count} clips written to {_plain(str(folder))}")


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
            f"{len(summary.imported)} clips imported, {len(summary.already)} were there, "
            f"{len(summary.failed)} failed -> {_plain(str(store))}"
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
        typer.Option(help="In detection, the label of normal clips.", show_default="A or Normal"),
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
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, auto.")] = "cpu",
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
    opened = _open([store, *(join or [])])
    if not as_json:
        _say_random(opened.recipe)
    trained = _train(
        clips,
        opened,
        run,
        settings,
        device,
        quiet=as_json,
        processes=processes,
        resume=resume,
        tensorboard=tensorboard,
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
        some = _plain(", ".join(trained.left_out[:3]))
        out.print(
            f"[yellow]{len(trained.left_out)} clips of the manifest are not in the store and were "
            f"left out[/] ({some}, ...)"
        )
    out.print(f"run in {_plain(str(run))}; next: avarnet evaluate {_plain(str(run))}")


def _train(
    clips: Sequence[manifests.Clip],
    store: features.Store | features.Joined,
    run: Path,
    settings: Any,
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
                out.print(_epoch_row(0, epoch, "  best" if best else ""), highlight=False)
            bar.update(task, total=count * settings.epochs, advance=1)

        trained = stage2.train_run(
            clips,
            store,
            run,
            settings,
            device=torch_device,
            processes=processes,
            resume=resume,
            on_epoch=show,
        )
    if log is not None:
        log.close()
    if not quiet and len(bests) > 1:
        out.print("the best epoch of each model:", EPOCH_HEADER, sep="\n", highlight=False)
        for number in sorted(bests):
            out.print(_epoch_row(number, bests[number], ""), highlight=False)
    return trained


EPOCH_HEADER = " model  epoch  train loss  val loss  val accuracy  val recall"


def _epoch_row(number: int, epoch: Any, mark: str) -> str:
    return (
        f"{number:6d} {epoch.epoch:6d} {epoch.train_loss:11.4f} {epoch.val_loss:9.4f} "
        f"{epoch.val_accuracy:13.3f} {epoch.val_recall:11.3f}{mark}"
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


@app.command(epilog="Example: `avarnet evaluate run`")
def evaluate(
    run: RunPath,
    store: Annotated[
        list[Path] | None,
        typer.Option(help="Its features, if they have moved since; again for each joined store."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge a run on its held-out clips, beside a linear classifier, and write its report."""
    import train as stage2

    loaded = stage2.Run.load(run)
    metrics = _evaluate(loaded, store)
    if as_json:
        _print_json(metrics)
        return
    if metrics["task"] == "detection":
        _print_detection(metrics, loaded)
    else:
        _print_metrics(metrics, loaded)
    out.print(f"report: {_plain(str(run / 'report.html'))}")


def _evaluate(run: Run, stores: list[Path] | None = None) -> dict[str, Any]:
    import train as stage2
    from train.report import write_detection_report, write_report

    metrics = stage2.evaluate_run(run, _open(stores or run.stores))
    if metrics["task"] == "detection":
        write_detection_report(run, metrics, run.path / "report.html")
        return metrics
    with open(run.path / "predictions.csv", newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    write_report(run, metrics, rows, run.path / "report.html")
    return metrics


def _print_detection(metrics: dict[str, Any], run: Run) -> None:
    _say_random(run.recipe)
    model, linear = metrics["model"], metrics["linear"]
    table = Table("frames of", "clips", "positive", "AP", "ROC-AUC", "linear:", "AP", "ROC-AUC")
    rows = {"all": (model["all"], linear["all"], str(model["clips"]))}
    rows["abnormal"] = (model["abnormal"], linear["abnormal"], "")
    for name, row in model["per_class"].items():
        rows[name] = (row, linear["per_class"][name], str(row["clips"]))
    for name, (ours, theirs, clips) in rows.items():
        figures = [
            "n/a" if value is None else f"{value:.4f}"
            for value in (ours["ap"], ours["roc_auc"], theirs["ap"], theirs["roc_auc"])
        ]
        share = f"{ours['anomalous'] / ours['frames']:.1%}"
        table.add_row(_plain(name), clips, share, *figures[:2], "", *figures[2:])
    out.print(table)
    out.print("AP: area under the precision-recall curve, as XD-Violence reports it")
    for name, row in (("MTCN", model), ("linear", linear)):
        if not row["intervals"]:
            continue
        (low, high), (auc_low, auc_high) = row["intervals"]["ap"], row["intervals"]["roc_auc"]
        alarms, segments = row["false_alarms"], row["segments"]
        out.print(
            f"{name}: AP {low:.3f} to {high:.3f}, ROC-AUC {auc_low:.3f} to {auc_high:.3f} (95 %); "
            f"segments' mAP at IoU 0.1 to 0.5 {segments['mean']:.3f}; {alarms['per_hour']:.1f} "
            f"false alarms an hour to notice {alarms['recall']:.0%} of the anomalies",
            soft_wrap=True,
            highlight=False,
        )
    out.print(f"every snippet's score: {_plain(str(run.path / 'predictions.csv'))}")


def _print_metrics(metrics: dict[str, Any], run: Run) -> None:
    model, linear = metrics["model"], metrics["linear"]
    _say_random(run.recipe)
    where = "held-out" if metrics["held_out"] == "test" else "validation (no test split: too good)"
    out.print(f"{model['clips']} {where} clips, {metrics['parts']} model(s)")
    table = Table("", "MTCN", "95 % interval", "linear", "95 % interval")
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
    out.print(f"calibration error (ECE): MTCN {ece[0]:.3f}, linear {ece[1]:.3f}", highlight=False)
    table = Table("class", "clips", "precision", "recall", "F1", title="MTCN, by class")
    for name, row in model["per_class"].items():
        scores = (f"{row[key]:.3f}" for key in ("precision", "recall", "f1"))
        table.add_row(_plain(name), str(row["clips"]), *scores)
    out.print(table)
    columns = map(str, range(1, len(run.classes) + 1))
    table = Table("is / taken for", *columns, title="MTCN, confusion", padding=(0, 0, 0, 1))
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
    table = Table("", "accuracy", "right where the other is wrong")
    for path, accuracy, alone in zip(
        (one, other), found["accuracy"], (found["only_one"], found["only_other"]), strict=True
    ):
        table.add_row(_plain(str(path)), f"{accuracy:.3f}", str(alone))
    out.print(table)
    d = found["difference"]
    out.print(
        f"{found['clips']} clips; difference {d['value']:+.3f} (95 % interval {d['low']:+.3f} to "
        f"{d['high']:+.3f}); McNemar's exact test: p = {found['p']:.3f}",
        soft_wrap=True,
    )


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
    file: Annotated[Path, typer.Argument(help="FILE.onnx, or FILE.pt2 for torch.export.")],
    as_json: Json = False,
) -> None:
    """Write a run's models as one file for other programs, and check its answers."""
    import train as stage2

    difference = stage2.export_run(stage2.Run.load(run), file)
    if as_json:
        _print_json({"file": str(file), "largest_difference": difference})
        return
    out.print(f"{_plain(str(file))}: within {difference:.1g} of torch's answers", soft_wrap=True)


@app.command(epilog="Example: `avarnet predict run new.mp4`")
def predict(
    run: RunPath,
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Video files.")],
    video_model: VideoModel = None,
    video_weights: VideoWeights = None,
    audio_model: AudioModel = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Class, confidence and the score of every snippet for new videos."""
    import train as stage2

    loaded = stage2.Run.load(run)
    _need_extract()
    import extract as stage1

    recipe = _moved(loaded.recipe, video_model, video_weights, audio_model)
    if not as_json:
        _say_random(recipe)
    extractor, predictor = stage1.Extractor(recipe, device), stage2.Predictor(loaded)
    answers: list[dict[str, Any]] = []
    failed = 0
    for video in videos:
        try:
            clip = extractor(video)
        except stage1.ClipError as error:
            failed += 1
            answers.append({"video": str(video), "error": str(error)})
            if not as_json:
                err.print(f"[red]failed:[/] {_plain(f'{video}: {error}')}", soft_wrap=True)
            continue
        answer = predictor(clip)
        answers.append(_answer(video, clip, answer))
        if not as_json:
            _print_prediction(video, clip, answer)
    if as_json:
        _print_json(answers)
    if failed:
        raise typer.Exit(FAILED if failed == len(videos) else SOME_FAILED)


def _answer(video: Path, clip: Features, answer: Prediction) -> dict[str, Any]:
    return {
        "video": str(video),
        "label": answer.label,
        "confidence": answer.confidence,
        "probabilities": answer.probabilities,
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
    table = Table("from", "to", "class", "score")
    for step, scores in enumerate(answer.scores):
        best = int(scores.argmax())
        table.add_row(
            f"{step * clip.snippet_seconds:.2f}",
            f"{(step + 1) * clip.snippet_seconds:.2f}",
            _plain(list(answer.probabilities)[best]),
            f"{scores[best]:.2f}",
        )
    out.print(table)


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
    _need_extract()
    import extract as stage1

    recipe = _moved(loaded.recipe, video_model, video_weights, audio_model)
    recipe = recipe.only(loaded.config.streams)
    _say_random(recipe)
    with suppress(KeyboardInterrupt):
        for event in stage1.live_snippets(source, recipe, device, retries):
            if isinstance(event, stage1.Snippet):
                line = _scored(event, scorer, loaded.classes)
                print(json.dumps(line, ensure_ascii=False), flush=True)
            elif event.end is None:
                note = f"[yellow]gap[/] from {event.start:.2f} s on: {_plain(event.why)}"
                err.print(note, soft_wrap=True)
            else:
                scorer.restart()  # what it does not know of cannot be what came before
                line = {"start": round(event.start, 3), "end": round(event.end, 3)}
                print(json.dumps({**line, "gap": event.why}), flush=True)


def _scored(snippet: Snippet, scorer: LiveScorer, classes: list[str]) -> dict[str, Any]:
    probabilities = scorer(snippet.rows, snippet.valid)
    best = int(probabilities.argmax())
    return {
        "start": round(snippet.start, 3),
        "end": round(snippet.end, 3),
        "label": classes[best],
        "score": round(float(probabilities[best]), 4),
        "probabilities": {
            name: round(float(p), 4) for name, p in zip(classes, probabilities, strict=True)
        },
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

    out.print("1. Making small videos with sound: ten classes, some clips without a sound track")
    videos = folder / "videos"
    make_videos(videos)
    unseen = make_clip(folder / "unseen.mp4", "Police siren", seed=10_000)
    manifest, store, run = folder / "manifest.jsonl", folder / "store", folder / "run"
    clips = manifests.from_folders(videos, folder)
    clips = manifests.assign_split(clips, test=0.3, val=0.15)
    manifests.write(manifest, clips)
    out.print(f"2. Extracting the features of {len(clips)} clips, once")
    recipe = stage1.make_recipe("mobilevit_xxs", weights="random")
    _say_random(recipe)
    summary = _extract(clips, folder, store, recipe)
    _print_summary(summary, store)
    out.print("3. Training the MTCN from the store alone")
    if run.exists():
        shutil.rmtree(run)
    trained = _train(clips, features.Store(store), run, stage2.Config())
    out.print("4. Evaluating it on the clips held out")
    _print_metrics(_evaluate(trained), trained)
    out.print("5. Scoring a clip it has never seen (a synthetic police siren)")
    clip = stage1.Extractor(recipe)(unseen)
    _print_prediction(unseen, clip, stage2.Predictor(trained)(clip))
    out.print(f"\nEverything is in {_plain(str(folder))}: manifest.jsonl, store, run.")
    out.print(
        "These backbones were random. For real work leave out '--weights random': "
        "'avarnet extract MANIFEST STORE' takes the pretrained networks from the hub, its cache, "
        "or --video-weights FILE and --audio-model FOLDER."
    )
    out.print(f"[bold]Report: {_plain(str(run / 'report.html'))}[/]", soft_wrap=True)
    raise typer.Exit(SOME_FAILED if summary.failed else DONE)


# shared -----------------------------------------------------------------------------------------


def _root(manifest: Path, root: Path | None) -> Path:
    return root if root is not None else manifests.default_root(manifest)


def _open(stores: list[Path]) -> features.Store | features.Joined:
    opened = [features.Store(path) for path in stores]
    return opened[0] if len(opened) == 1 else features.join(*opened)


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


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _plain(text: str) -> str:
    """Keep a name that looks like Rich's markup from being taken for it."""
    return text.replace("[", r"\[")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


if __name__ == "__main__":
    main()
