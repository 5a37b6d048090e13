"""`avarnet train`, `ablate`, `sweep` and `export`: models from a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import Progress
from rich.table import Table

import manifests
from avarnet import pipelines
from avarnet.console import (
    clips_bar,
    counted,
    err,
    first_few,
    out,
    plain,
    print_json,
    progress_bar,
)
from avarnet.inputs import need_device, warn_of_doubts, warn_of_random_weights
from avarnet.options import (
    Device,
    JoinOrUrl,
    Json,
    Manifest,
    Processes,
    RunPath,
    SkipUnreadable,
    StoreOrUrl,
    in_panels,
)
from avarnet.output import local_stores, print_best_epochs, training_progress
from train.config import Config, Task, installed_names
from train.labels import taken_as_normal

app = typer.Typer()
if TYPE_CHECKING:
    from features import Recipe

    Fusion = str
    Model = str
else:  # what is installed decides
    Fusion, Model = Literal[*installed_names("fusion")], Literal[*installed_names("model")]


Seeds = Annotated[
    int | None,
    typer.Option(
        help="Train with so many seeds; their predictions are averaged.",
        show_default=str(Config.seeds),
    ),
]
Epochs = Annotated[
    int | None, typer.Option(help="At most this many.", show_default=str(Config.epochs))
]
ConfigFile = Annotated[
    Path | None, typer.Option(help="TOML with any setting; options take precedence.")
]


@app.command(
    cls=in_panels(
        {
            "Task": "task normal causal",
            "Model": "streams fusion model join skip_unreadable",
            "Training": "folds seed seeds epochs config resume tensorboard",
            "This machine": "device processes",
        }
    ),
    epilog="Example: `avarnet train videos.jsonl store run --folds 5`",
)
def train(
    manifest: Manifest,
    store: StoreOrUrl,
    run: RunPath,
    task: Annotated[
        Task | None,
        typer.Option(
            help="A class for each clip; or a score for each snippet, learned from which clips are "
            "normal and evaluated on the manifest's intervals.",
            show_default=Config.task,
        ),
    ] = None,
    normal: Annotated[
        str | None,
        typer.Option(help="The label of clips without anomaly.", show_default="A or Normal"),
    ] = None,
    streams: Annotated[
        str | None,
        typer.Option(help="Comma-separated.", show_default="all that a training clip has"),
    ] = None,
    fusion: Annotated[
        Fusion | None,
        typer.Option(help="How the streams become one sequence.", show_default=Config.fusion),
    ] = None,
    model: Annotated[
        Model | None,
        typer.Option(help="What reads that sequence.", show_default=Config.model),
    ] = None,
    causal: Annotated[
        bool | None,
        typer.Option("--causal", help="Let no prediction see the future: for live streams."),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(help="Cross-validate; a manifest's own split is then not used."),
    ] = None,
    seed: Annotated[int | None, typer.Option(show_default=str(Config.seed))] = None,
    seeds: Seeds = None,
    epochs: Epochs = None,
    config: ConfigFile = None,
    device: Device = "cpu",
    processes: Processes = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run that was interrupted.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Log to RUN/tensorboard too.")
    ] = False,
    join: JoinOrUrl = None,
    skip_unreadable: SkipUnreadable = False,
    as_json: Json = False,
) -> None:
    """Stage 2: train the MTCN to recognise clips, or to detect when something happens in them."""
    settings = Config.load(
        config,
        task=task,
        normal=normal,
        streams=manifests.names_in(streams) if streams else None,
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
    folders = local_stores([store, *(join or [])], clips, as_json)
    opened = pipelines.open_stores(folders, skip_unreadable)
    taken = taken_as_normal((c.label for c in clips if c.id in opened), settings.normal)
    if not as_json:
        warn_of_random_weights(opened.recipe)
        if taken is not None:
            out.print(f"clips without anomaly: those labelled {plain(taken)} (--normal)")
        else:
            err.print_sentences(
                "[yellow]no class is known as normal[/] (--normal LABEL names it): predictions "
                "will have a class, and neither anomaly scores nor intervals"
            )
    with training_progress(settings.epochs, as_json) as on_epoch:
        trained = pipelines.train(
            clips,
            opened,
            run,
            settings,
            manifest=manifest,
            device=device,
            processes=processes,
            resume=resume,
            tensorboard=tensorboard,
            on_epoch=on_epoch,
        )
    best = trained.kept_epochs()
    if as_json:
        print_json(
            {
                "run": str(run),
                "classes": trained.classes,
                "normal": taken,
                "best_epochs": best,
                "left_out": trained.left_out,
                "config": asdict(trained.config),
            }
        )
        return
    print_best_epochs(best)
    warn_of_doubts(trained.doubts())
    if trained.left_out:
        what = counted(len(trained.left_out), "clip")
        out.print(
            f"[yellow]not in the store and left out: {what} of the manifest[/] "
            f"({first_few(trained.left_out)})"
        )
    if not settings.streams:
        _print_absent(opened.recipe, trained.config.streams)
    heard_ahead = trained.recipe.only(trained.config.streams).streams_with_lookahead
    if trained.config.causal and heard_ahead:
        out.print_sentences(
            "[yellow]not for 'avarnet watch'[/]: these features "
            f"({plain(', '.join(heard_ahead))}) heard what comes after a snippet; for live streams "
            "train on a store of 'avarnet extract --live'"
        )
    out.print(f"run in {plain(str(run))}; next: avarnet evaluate {plain(str(run))}")


def _print_absent(recipe: Recipe, learned: Sequence[str]) -> None:
    """Print which streams of a store were left out, as a model would learn nothing of them."""
    if absent := [name for name in recipe.streams if name not in learned]:
        names = plain(", ".join(absent))
        out.print_sentences(
            f"[yellow]trained without {names}[/]: no training clip (of one fold, if there are "
            "several) has it"
        )


@app.command(epilog="Example: `avarnet ablate videos.jsonl store runs --folds 5 --seeds 5`")
def ablate(
    manifest: Manifest,
    store: StoreOrUrl,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="For the runs and the table.")],
    task: Annotated[Task | None, typer.Option(show_default=Config.task)] = None,
    folds: Annotated[int | None, typer.Option(help="Cross-validate.")] = None,
    seeds: Seeds = None,
    epochs: Epochs = None,
    config: ConfigFile = None,
    processes: Processes = None,
    join: JoinOrUrl = None,
    skip_unreadable: SkipUnreadable = False,
    as_json: Json = False,
) -> None:
    """Compare streams, fusions and sequence models: a run of each, and a table of all."""
    import joblib

    import train as stage2

    settings = Config.load(config, task=task, folds=folds, seeds=seeds, epochs=epochs)
    clips = manifests.read(manifest)
    folders = local_stores([store, *(join or [])], clips, as_json)
    opened = pipelines.open_stores(folders, skip_unreadable)
    if not as_json:
        warn_of_random_weights(opened.recipe)

    def line(bar: Progress) -> str:
        parts = [f"{t.description} {t.completed:.0f} of {t.total:.0f}" for t in bar.tasks]
        return f"epochs, at most: {parts[-1]}" if parts else ""

    with progress_bar(line=line, quiet=as_json, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(name: str, number: int, count: int, epoch: Any, best: bool) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=count * settings.epochs)
            restarted = epoch.start > 0 and epoch.epoch == 1
            total = (bar.tasks[tasks[name]].total or 0) + restarted * settings.epochs
            bar.update(tasks[name], total=total, advance=1)

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
        table.add_row(
            plain("+".join(row.streams)), plain(row.fusion), plain(row.model), *cost, *figures
        )
    out.print(table)
    if not settings.streams:
        _print_absent(opened.recipe, rows[0].streams)
    out.print(
        f"{plain(rows[0].metric)}; MFLOPs and ms of the clip of the median length, once forward, "
        f"one thread; runs in {plain(str(folder))}",
        soft_wrap=True,
    )


@app.command(epilog="Example: `avarnet sweep videos.jsonl store sweep search.toml`")
def sweep(
    manifest: Manifest,
    store: StoreOrUrl,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="For the runs and the journal.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE.toml", help="trials, [settings] and [search].")
    ],
    skip_unreadable: SkipUnreadable = False,
    as_json: Json = False,
) -> None:
    """Search settings by random draws and successive halving; the same command resumes."""
    import train as stage2

    search = stage2.Search.load(file)
    clips = manifests.read(manifest)
    folders = local_stores([store], clips, as_json)
    opened = pipelines.open_stores(folders, skip_unreadable)
    if not as_json:
        warn_of_random_weights(opened.recipe)
    with clips_bar("trials", as_json) as show:
        trials = stage2.sweep(clips, opened, folder, search, show)
    if as_json:
        print_json([asdict(trial) for trial in trials])
        return
    table = Table("trial", *map(plain, search.space), "validation recall", "")
    for trial in trials:
        drawn = (
            f"{v:.3g}" if isinstance(v, float) else plain(str(v)) for v in trial.drawn.values()
        )
        value = "" if trial.value is None else f"{trial.value:.3f}"
        table.add_row(str(trial.number), *drawn, value, plain(trial.state))
    out.print(table)
    best = folder / f"trial-{trials[0].number}"
    if not (search.fixed.streams or "streams" in search.space):
        _print_absent(opened.recipe, stage2.Run.load(best).config.streams)
    out.print(f"the best is a run: avarnet evaluate {plain(str(best))}", soft_wrap=True)


@app.command(epilog="Example: `avarnet export run model.onnx`")
def export(
    run: RunPath,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="FILE.onnx, or FILE.pt2 for torch.export.")
    ],
    as_json: Json = False,
) -> None:
    """Write a run's models as one file for other programs, and check its predictions.

    Inputs, for each stream such as video: video, its rows as the store has them (1 x snippets x
    values, float32), which must not be normalised, of 3 snippets or more; and video_valid, true
    where a row is real (1 x snippets). A .pt2 takes them by position, the rows of all streams
    before their validity.

    Outputs: clip (1 x classes) and snippets (1 x snippets x classes), probabilities.

    Metadata (of a .pt2: extra_files): classes, snippet_seconds, fingerprint of the features.
    """
    import train as stage2

    difference = stage2.export_run(stage2.Run.load(run), file)
    if as_json:
        print_json({"file": str(file), "largest_difference": difference})
        return
    out.print(f"{plain(str(file))}: within {difference:.1g} of torch's predictions", soft_wrap=True)
