"""`avarnet evaluate`, `report` and `compare`: how good runs are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import features
import manifests
from avarnet.console import counted, fail, out, plain, print_json
from avarnet.inputs import has_extract, open_stores, root_of, say_doubts, say_random
from avarnet.options import Json, Root, RunManifest, RunPath, RunStores

if TYPE_CHECKING:
    from train import Run
    from train.report.run import Look

app = typer.Typer()


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
    from train.evaluation.segments import RECALL

    loaded = stage2.Run.load(run)
    if recall is not None and loaded.config.task != "detection":
        fail(f"--recall is for detection; {run} is a run of {loaded.config.task}")
    metrics = evaluate_run(
        loaded, store, manifest, root, recall=RECALL if recall is None else recall
    )
    if as_json:
        print_json(metrics)
        return
    if metrics["task"] == "detection":
        _print_detection(metrics, loaded)
    else:
        print_metrics(metrics, loaded)
    out.print(f"report: {plain(str(run / 'report.html'))}")


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
    from train.report.run import write_comparison

    loaded = [stage2.Run.load(run) for run in runs]
    if compare:
        page = output or Path("compare.html")
        write_comparison(loaded, page)
        out.print(f"report: {plain(str(page))}", soft_wrap=True)
        return
    if len(loaded) > 1 and output:
        fail(f"--output {output}: one file for {len(loaded)} runs; leave it out, or --compare them")
    for run in loaded:
        page = output or run.path / "report.html"
        evaluate_run(run, store, manifest, root, page)
        out.print(f"report: {plain(str(page))}", soft_wrap=True)


def _asked(run: Run) -> float:
    """Return the recall at which the run's false alarms were counted, if they were."""
    from train import TrainError
    from train.evaluation.segments import RECALL

    try:
        asked: float = run.evaluation()["model"]["false_alarms"]["asked"]
    except (TrainError, KeyError):
        return RECALL
    return asked


def evaluate_run(
    run: Run,
    stores: list[Path] | None = None,
    manifest: Path | None = None,
    root: Path | None = None,
    page: Path | None = None,
    recall: float | None = None,
) -> dict[str, Any]:
    """Judge a run and write its report; false alarms are counted as last time, if not told."""
    import train as stage2
    from extract.job.batching import read_failures
    from train.report.run import write_report

    if manifest is not None and not manifest.is_file():
        fail(f"{manifest}: no such file; give the run's manifest, or leave it out")
    store = open_stores(stores or run.stores)
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
    elif not has_extract():
        why = "stage 1, which reads videos, is not installed"
    if manifest is None or why:
        yield lambda clip_id: None, why
        return
    import extract as stage1
    from train.report.run import Look

    clips = {clip.id: clip for clip in manifests.read(manifest)}
    base = root_of(manifest, root)

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
    from train.report.html import figure

    say_random(run.recipe)
    say_doubts(run)
    model, linear = metrics["model"], metrics["linear"]
    table = Table("frames of", "clips", "positive", "AP", "ROC-AUC", "linear:", "AP", "ROC-AUC")
    rows = {"all": (model["all"], linear["all"], str(model["clips"]))}
    rows["abnormal"] = (model["abnormal"], linear["abnormal"], "")
    for name, row in model["per_class"].items():
        rows[name] = (row, linear["per_class"][name], str(row["clips"]))
    for name, (ours, theirs, clips) in rows.items():
        figures = [figure(row[key], 4) for row in (ours, theirs) for key in ("ap", "roc_auc")]
        share = f"{ours['anomalous'] / ours['frames']:.1%}"
        table.add_row(plain(name), clips, share, *figures[:2], "", *figures[2:])
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
            f"- AP of {plain(label)}": [row["segments"]["per_class"][label] for row in both]
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
    out.print(f"every snippet's score: {plain(str(run.path / 'predictions.csv'))}")


def print_metrics(metrics: dict[str, Any], run: Run) -> None:
    model, linear = metrics["model"], metrics["linear"]
    say_random(run.recipe)
    say_doubts(run)
    if metrics["held_out"] == "test":
        what = counted(model["clips"], "held-out clip")
    else:
        what = counted(model["clips"], "validation clip") + " (no test split: too good)"
    out.print(f"{what}, {counted(metrics['parts'], 'model')}")
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
        table.add_row(plain(name), str(row["clips"]), *scores)
    out.print(table)
    columns = map(str, range(1, len(run.classes) + 1))
    table = Table(
        "is / taken for", *columns, title=f"{model_name}, confusion", padding=(0, 0, 0, 1)
    )
    for number, (name, counts) in enumerate(zip(run.classes, model["confusion"], strict=True), 1):
        marks = [str(count) if count else "." for count in counts]
        table.add_row(f"{number} {plain(name)}", *marks)
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
        print_json(found)
        return
    names = {"accuracy": "accuracy", "ap": "AP of frames", "roc_auc": "ROC-AUC of frames"}
    measures = [found[key] for key in names if key in found]
    recognition = found["task"] == "recognition"
    alone = [[str(found[key])] if recognition else [] for key in ("only_one", "only_other")]
    columns = [names[key] for key in names if key in found]
    table = Table("", *columns, *["right where the other is wrong"] * recognition)
    for k, path in enumerate((one, other)):
        table.add_row(plain(str(path)), *(f"{m['values'][k]:.4f}" for m in measures), *alone[k])
    differences = [m["difference"] for m in measures]
    table.add_row("difference", *(f"{d['value']:+.4f}" for d in differences))
    table.add_row("95 % interval", *(f"{d['low']:+.4f} to {d['high']:+.4f}" for d in differences))
    table.add_row("p", *(f"{m['p']:.3f}" for m in measures))
    out.print(table)
    test = "McNemar's exact test" if recognition else "permutations of the runs, clip by clip"
    out.print(f"{counted(found['clips'], 'clip')}; p: {test}", highlight=False)
