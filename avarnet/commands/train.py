"""`avarnet train`, `ablate`, `sweep` and `export`: models from a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import Progress
from rich.table import Table

import features
import manifests
from avarnet.console import clips_bar, counted, err, fail, first_of, out, plain, print_json
from avarnet.inputs import need_device, open_stores, say_doubts, say_random
from avarnet.options import Device, Json, Manifest, Processes, RunPath, StorePath

if TYPE_CHECKING:
    from train import Run

app = typer.Typer()


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
    need_device(device)
    opened = open_stores([store, *(join or [])])
    if not as_json:
        say_random(opened.recipe)
    trained = train_models(
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
    if not as_json:
        say_doubts(trained)
    best = trained.kept_epochs()
    if as_json:
        print_json(
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
        what = counted(len(trained.left_out), "clip")
        out.print(
            f"[yellow]not in the store and left out: {what} of the manifest[/] "
            f"({first_of(trained.left_out)})"
        )
    heard_ahead = trained.recipe.only(trained.config.streams).foresighted_streams
    if trained.config.causal and heard_ahead:
        out.print(
            f"[yellow]not for 'avarnet watch'[/]: these features ({', '.join(heard_ahead)}) heard "
            "what comes after a snippet; for live streams train on a store of 'avarnet extract "
            "--live'",
            soft_wrap=True,
        )
    out.print(f"run in {plain(str(run))}; next: avarnet evaluate {plain(str(run))}")


def train_models(
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
    from train.fitting.trainer import Epoch

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
    opened = open_stores([store, *(join or [])])
    if not as_json:
        say_random(opened.recipe)
    with Progress(console=err, transient=True, disable=as_json or not err.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def show(name: str, number: int, count: int, epoch: Any, best: bool) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=count * settings.epochs)
            bar.update(tasks[name], advance=1)

        rows = stage2.ablate(clips, opened, folder, settings, processes or joblib.cpu_count(), show)
    if as_json:
        print_json([asdict(row) for row in rows])
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
        table.add_row(plain("+".join(row.streams)), row.fusion, row.model, *cost, *figures)
    out.print(table)
    out.print(
        f"{rows[0].metric}; MFLOPs and ms of the clip of the median length, once forward, one "
        f"thread; runs in {plain(str(folder))}",
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
    opened = open_stores([store])
    if not as_json:
        say_random(opened.recipe)
    with clips_bar("trials", as_json) as show:
        trials = stage2.sweep(clips, opened, folder, search, show)
    if as_json:
        print_json([asdict(trial) for trial in trials])
        return
    table = Table("trial", *search.space, "validation recall", "")
    for trial in trials:
        drawn = (
            f"{v:.3g}" if isinstance(v, float) else plain(str(v)) for v in trial.drawn.values()
        )
        value = "" if trial.value is None else f"{trial.value:.3f}"
        table.add_row(str(trial.number), *drawn, value, trial.state)
    out.print(table)
    best = plain(str(folder / f"trial-{trials[0].number}"))
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
        print_json({"file": str(file), "largest_difference": difference})
        return
    out.print(f"{plain(str(file))}: within {difference:.1g} of torch's answers", soft_wrap=True)
