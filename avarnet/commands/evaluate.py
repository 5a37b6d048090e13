"""`avarnet evaluate`, `report` and `compare`: how good runs are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from avarnet import pipelines
from avarnet.console import counted, fail, out, plain, print_json
from avarnet.inputs import warn_of_doubts, warn_of_random_weights
from avarnet.options import Json, Root, RunManifest, RunPath, RunStores, SkipUnreadable
from avarnet.output import print_metrics, print_robustness, print_wrong_labels

if TYPE_CHECKING:
    from train import Run
    from train.evaluation.figures import DetectionMetrics

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
            help="Detection: share of the anomalies that are noticed where false alarms are "
            "counted.",
            show_default="0.8",
        ),
    ] = None,
    skip_unreadable: SkipUnreadable = False,
    as_json: Json = False,
) -> None:
    """Evaluate a run on its held-out clips, beside the logistic baseline, and write its report."""
    import train as stage2
    from train.evaluation.alarms import RECALL

    loaded = stage2.Run.load(run)
    if recall is not None and loaded.config.task != "detection":
        fail(f"--recall is for detection; {run} is a run of {loaded.config.task}")
    metrics = pipelines.evaluate(
        loaded,
        store or (),
        manifest=manifest,
        root=root,
        recall=RECALL if recall is None else recall,
        skip_unreadable=skip_unreadable,
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
    skip_unreadable: SkipUnreadable = False,
) -> None:
    """One HTML file with all results of a run; or several runs side by side."""
    import train as stage2
    from train.report.comparison import write_comparison

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
        pipelines.evaluate(
            run,
            store or (),
            manifest=manifest,
            root=root,
            page=page,
            skip_unreadable=skip_unreadable,
        )
        out.print(f"report: {plain(str(page))}", soft_wrap=True)


def _print_detection(metrics: DetectionMetrics, run: Run) -> None:
    from train.report.html import figure

    warn_of_random_weights(run.recipe)
    warn_of_doubts(metrics["doubts"])
    model, linear = metrics["model"], metrics["linear"]
    areas = ("AP", "ROC-AUC")
    table = Table(
        "frames of", "clips", "anomalous", *areas, *(f"baseline {area}" for area in areas)
    )
    rows = {"all": (model["all"], linear["all"], str(model["clips"]))}
    if model["abnormal"] and linear["abnormal"]:
        rows["abnormal"] = (model["abnormal"], linear["abnormal"], "")
    for name, row in model["per_class"].items():
        rows[name] = (row, linear["per_class"][name], str(row.get("clips", "")))
    for name, (ours, theirs, clips) in rows.items():
        figures = [figure(row[key], 4) for row in (ours, theirs) for key in ("ap", "roc_auc")]
        share = f"{ours['anomalous'] / ours['frames']:.1%}"
        table.add_row(plain(name), clips, share, *figures)
    out.print(table)
    out.print("AP: area under the precision-recall curve, as XD-Violence reports it")
    table = Table("", plain(run.config.model), "logistic baseline")
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
    for name, own in metrics["baselines"].items():
        ap, area = figure(own["all"]["ap"], 4), figure(own["all"]["roc_auc"], 4)
        out.print(f"{plain(name)}: AP {ap}, ROC-AUC {area} of all frames", highlight=False)
    print_robustness(metrics["robustness"], "AP")
    print_wrong_labels(metrics, run)
    out.print(f"every snippet's score: {plain(str(run.path / 'predictions.csv'))}")


@app.command(epilog="Example: `avarnet compare video-only fused`")
def compare(
    one: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of an evaluated run.")],
    other: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of another.")],
    as_json: Json = False,
) -> None:
    """Is one of two runs better on the clips that both were evaluated on, or is it chance?"""
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
    out.print(f"{counted(found['clips'], 'clip')}; p: {plain(found['test'])}", highlight=False)
