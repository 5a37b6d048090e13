"""The steps of the pipelines at a terminal: their progress, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal
from rich.progress import Progress
from rich.table import Table

import manifests
from avarnet import pipelines
from avarnet.console import (
    bytes_bar,
    clock,
    counted,
    err,
    fail,
    footage_bar,
    out,
    plain,
    progress_bar,
    shown,
)
from avarnet.inputs import warn_of_doubts, warn_of_random_weights
from avarnet.notebook import in_notebook
from avarnet.stores import is_url, pull_clips, pulled_folder

if TYPE_CHECKING:
    from extract import Summary
    from train import Run
    from train.evaluation.figures import (
        CommonMetrics,
        RecognitionFigures,
        RecognitionMetrics,
        Robustness,
    )
    from train.fitting.history import Epoch

MOST_COLUMNS = 30  # classes of a table of confusions
NAMED = 3  # clips with a flag that a summary names
EPOCH_HEADER = " epoch  train loss  val loss  val accuracy  val recall"


@contextmanager
def extraction_progress(store: Path) -> Iterator[dict[str, Callable[..., None]]]:
    """Yield the callbacks of `pipelines.extract`, which draw a bar and print what goes wrong."""
    failed: list[str] = []
    try:
        with footage_bar("extracting", lambda: len(failed)) as progress:
            yield {
                "progress": progress,
                "say": lambda text: err.print(plain(text), highlight=False, soft_wrap=True),
                "on_failure": lambda clip_id, reason: failed.append(clip_id),
            }
    except KeyboardInterrupt:
        fail(f"interrupted; what is finished is in {store}: run the same command again to resume")


def print_summary(summary: Summary, store: Path) -> None:
    """Print what became of an extraction.

    Args:
        summary: of it.
        store: where it went.
    """
    if summary.damaged:
        out.print(
            f"[yellow]taken out: {counted(len(summary.damaged), 'damaged shard')}[/] (renamed to "
            "*.damaged, to be deleted); the clips damaged there were extracted again"
        )
    if summary.failed:
        table = Table("failed clip", "reason")
        for clip_id, reason in sorted(summary.failed.items()):
            table.add_row(plain(clip_id), plain(reason))
        out.print(table)
    for problem in summary.workers_without_access:
        out.print(f"[yellow]{plain(problem)}[/]; other workers extracted its clips", soft_wrap=True)
    if summary.not_tried:
        out.print(
            f"not tried again, as the files have not changed since they failed: "
            f"{counted(len(summary.not_tried), 'clip')} (--retry-failed tries them)"
        )
    if len(summary.extracted) > len(summary.slowest) > 0:
        out.print(f"slowest: {plain(summary.slowest_listed())}", soft_wrap=True)
    if summary.not_finite:
        share = summary.not_finite / summary.rows
        out.print(
            f"[yellow]not finite: {summary.not_finite:,} of {counted(summary.rows, 'row')}[/] "
            f"({share:.1%}); they are invalid, and their clips are flagged"
        )
    if summary.not_finite_clips:
        table = Table("clip with many rows that are not finite", "share")
        for clip_id, share in sorted(summary.not_finite_clips.items()):
            table.add_row(plain(clip_id), f"{share:.1%}")
        out.print(table)
    for flag, clip_ids in sorted(summary.flagged.items()):
        names = manifests.listed(clip_ids[:NAMED]) + (", ..." if len(clip_ids) > NAMED else "")
        out.print(
            f"[yellow]{flag.lower().replace('_', ' ')}[/]: {counted(len(clip_ids), 'clip')} "
            f"({plain(names)}); 'avarnet features list' shows all",
            soft_wrap=True,
        )
    speed = summary.footage / summary.seconds if summary.seconds else 0.0
    out.print(
        f"{counted(len(summary.extracted), 'clip')} extracted, {len(summary.already)} "
        f"already there, {len(summary.failed)} failed: {clock(summary.footage)} of video in "
        f"{clock(summary.seconds)} ({speed:.1f} x real time) -> {plain(str(store))}"
    )


def local_stores(stores: Sequence[str], clips: Sequence[manifests.Clip], quiet: bool) -> list[Path]:
    """Return the folders of stores; of one at a URL, the shards with some clips are pulled first.

    Args:
        stores: folders and URLs.
        clips: of the manifest.
        quiet: print nothing.
    """
    folders = []
    for store in stores:
        if not is_url(store):
            folders.append(Path(store))
            continue
        folder = pulled_folder(store)
        with bytes_bar("pulling", quiet) as progress:
            pulled = pull_clips(store, [clip.id for clip in clips], progress)
        if not quiet:
            out.print(
                f"{plain(store)}: {counted(len(pulled.shards), 'shard')} "
                f"({decimal(pulled.nbytes)}) pulled into {plain(str(folder))}, "
                f"{counted(pulled.already, 'clip')} already there",
                soft_wrap=True,
            )
        folders.append(folder)
    return folders


@contextmanager
def training_progress(
    epochs: int, quiet: bool = False
) -> Iterator[Callable[[int, int, Epoch, bool], None]]:
    """Yield the callback of `pipelines.train`: a bar, and of one model a row an epoch.

    In a notebook there are no rows, as `Run.history` has them.

    Args:
        epochs: of a model, at most.
        quiet: print nothing.
    """

    models, restarts = 1, 0
    rows = not quiet and not in_notebook()

    def line(bar: Progress) -> str:
        done, total = bar.tasks[0].completed, bar.tasks[0].total or 0
        one_with_rows = models == 1 and rows
        return "" if one_with_rows else f"training: {done:.0f} of {total:.0f} epochs at most"

    with progress_bar(line=line, quiet=quiet, transient=True) as bar:
        task = bar.add_task("training", total=None)

        def show(number: int, count: int, epoch: Epoch, best: bool) -> None:
            nonlocal models, restarts
            models = count
            restarts += epoch.start > 0 and epoch.epoch == 1
            if count == 1 and rows:
                if epoch.epoch == 1:
                    out.print(EPOCH_HEADER, highlight=False)
                out.print(_epoch_row(vars(epoch)) + ("  best" if best else ""), highlight=False)
            bar.update(task, total=(count + restarts) * epochs, advance=1)

        yield show


def print_best_epochs(best: list[dict[str, Any]]) -> None:
    """Print the best epoch of each model, if there are several."""
    if len(best) == 1:
        return
    header = f"  fold  seed {EPOCH_HEADER}"
    out.print("the best epoch of each model:", header, sep="\n", highlight=False)
    for row in best:
        out.print(f"{row['fold']:6d} {row['seed']:5d} {_epoch_row(row)}", highlight=False)


def _epoch_row(row: Mapping[str, Any]) -> str:
    return (
        f"{row['epoch']:6d} {row['train_loss']:11.4f} {row['val_loss']:9.4f} "
        f"{row['val_accuracy']:13.3f} {row['val_recall']:11.3f}"
    )


def print_metrics(metrics: RecognitionMetrics, run: Run) -> None:
    """Print how good a run of recognition is.

    Args:
        metrics: of the run.
        run: it.
    """
    model = metrics["model"]
    warn_of_random_weights(run.recipe)
    warn_of_doubts(metrics["doubts"])
    if metrics["held_out"] == "test":
        what = counted(model["clips"], "held-out clip")
    else:
        what = counted(model["clips"], "validation clip") + " (no test split: too good)"
    out.print(f"{what}, {counted(metrics['parts'], 'model')}")
    _print_overall(metrics, run)
    _print_classes(model, run)
    _print_confusion(model, run)
    print_robustness(metrics["robustness"], "accuracy")
    print_wrong_labels(metrics, run)


def _print_overall(metrics: RecognitionMetrics, run: Run) -> None:
    """Print the figures over all classes, beside those of the plain baselines."""
    model, linear = metrics["model"], metrics["linear"]
    model_name = plain(run.config.model)
    table = Table("", model_name, "95 % interval", "logistic baseline", "95 % interval")
    for name, pair in {
        "accuracy": (model["accuracy"], linear["accuracy"]),
        "macro precision": (model["precision"], linear["precision"]),
        "macro recall": (model["recall"], linear["recall"]),
        "macro F1": (model["f1"], linear["f1"]),
    }.items():
        cells: list[str] = []
        for found in pair:
            cells += [f"{found['value']:.3f}", f"{found['low']:.3f} to {found['high']:.3f}"]
        table.add_row(name, *cells)
    out.print(table)
    for name, own in metrics["baselines"].items():
        reached = own["accuracy"]
        out.print(
            f"{plain(name)}: accuracy {reached['value']:.3f} ({reached['low']:.3f} to "
            f"{reached['high']:.3f}), macro F1 {own['f1']['value']:.3f}",
            highlight=False,
        )
    if len(metrics["models"]["each"]) > 1:
        each = metrics["models"]
        out.print(
            f"single models (folds x seeds): accuracy {each['accuracy']['mean']:.3f} ± "
            f"{each['accuracy']['std']:.3f}, macro F1 {each['f1']['mean']:.3f} ± "
            f"{each['f1']['std']:.3f}",
            highlight=False,
        )
    ece = [row["calibration"]["ece"] for row in (model, linear)]
    out.print(
        f"calibration error (ECE): {model_name} {ece[0]:.3f}, logistic baseline {ece[1]:.3f}",
        highlight=False,
    )


def _print_classes(model: RecognitionFigures, run: Run) -> None:
    """Print precision, recall and F1 of each class."""
    title = f"{plain(run.config.model)}, by class"
    table = Table("class", "clips", "precision", "recall", "F1", title=title)
    for name, row in model["per_class"].items():
        scores = (f"{value:.3f}" for value in (row["precision"], row["recall"], row["f1"]))
        table.add_row(plain(name), str(row["clips"]), *scores)
    out.print(table)


def _print_confusion(model: RecognitionFigures, run: Run) -> None:
    """Print how many clips of each class were taken for which."""
    if len(run.classes) > MOST_COLUMNS:
        out.print(f"the confusion of {len(run.classes)} classes is in the report")
        return
    columns = map(str, range(1, len(run.classes) + 1))
    title = f"{plain(run.config.model)}, confusion"
    table = Table("is / taken for", *columns, title=title, padding=(0, 0, 0, 1))
    for number, (name, counts) in enumerate(zip(run.classes, model["confusion"], strict=True), 1):
        marks = [str(count) if count else "." for count in counts]
        table.add_row(f"{number} {plain(name)}", *marks)
    out.print(table)


def print_robustness(figures: Mapping[str, Robustness], measure: str) -> None:
    """Print what is left where held-out clips are impaired.

    Args:
        figures: what is missing or wrong -> what is left.
        measure: accuracy or AP.
    """
    from train.report.html import figure

    table = Table("held-out clips", plain(measure), "loss", "95 % interval")
    for name, left in figures.items():
        cells = ["", ""]
        if lost := left["loss"]:
            cells = [figure(lost["value"]), f"{figure(lost['low'])} to {figure(lost['high'])}"]
        table.add_row(plain(name), figure(left["value"]), *cells)
    out.print(table)


def print_wrong_labels(metrics: CommonMetrics, run: Run) -> None:
    """Print how many labels of held-out clips may be wrong, and the likeliest of them.

    Args:
        metrics: of a run.
        run: it.
    """
    found = metrics.get("wrong_labels", [])
    if found:
        first = "; ".join(
            f"{f['clip']}: {manifests.quoted(f['label'])}, likely {manifests.quoted(f['likely'])}"
            for f in found[:3]
        )
        more = "; ..." if len(found) > 3 else ""
        out.print_sentences(
            f"[yellow]labels that may be wrong:[/] {len(found)} ({plain(first)}{more}); a weak "
            "model suspects many that are right; all are in "
            f"{plain(str(run.path / 'evaluation.json'))}, the surest in the report"
        )


def print_prediction(scored: pipelines.Scored, run: Run) -> None:
    """Print what a run predicts of a video.

    Args:
        scored: the video and its prediction.
        run: what predicted it.
    """
    clip, answer = scored.clip, scored.prediction
    out.print(f"{shown(scored.video)}: [bold]{plain(answer.label)}[/] ({answer.confidence:.2f})")
    if not any(clip.valid[name].any() for name in run.config.streams):
        out.print("  [yellow]it has nothing that the run was trained on[/]: this is a guess")
    for name, valid in clip.valid.items():
        if not valid.any():
            out.print(f"  no {plain(name)} in this clip: predicted without it")
    if answer.novelty is not None and answer.novelty > 1:
        out.print(
            f"  [yellow]unlike anything in training[/]: {answer.novelty:.1f} times as far from it "
            "as is usual; trust this prediction less"
        )
    if answer.anomaly is None:
        return
    if not answer.intervals:
        highest, settings = answer.anomaly.max(initial=0.0), run.interval_settings
        brief = f", for less than {settings.shortest:g} s" if highest >= settings.high else ""
        out.print(f"  no anomaly; the highest score is {highest:.2f}{brief}")
    else:
        table = Table("from", "to", "class", "highest score")
        for start, end, label, score in answer.intervals:
            table.add_row(clock(start, 1), clock(end, 1), plain(label), f"{score:.2f}")
        out.print(table)
