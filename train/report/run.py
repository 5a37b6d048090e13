"""A run's report: one HTML file that says how good it is, where it fails, and what was left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from features import visible
from train.evaluation.alarms import ALARM_SECONDS
from train.evaluation.evaluate import Evaluation
from train.evaluation.figures import DetectionMetrics, FrameFigures, Metrics
from train.experiments.stress import read_stress
from train.report.examples import Preview, examples
from train.report.html import write_page
from train.report.run_plots import MAPPED, run_plots
from train.run import Run


def write_report(
    run: Run,
    evaluation: Evaluation,
    file: Path,
    preview: Callable[[str], Preview | None] = lambda clip_id: None,
    no_pictures: str = "",
    reasons: Mapping[str, str] | None = None,
) -> None:
    """Write the report of an evaluated run.

    Args:
        run: the run.
        evaluation: from `judge_run`.
        file: the HTML file.
        preview: gives pictures and sound of a clip, None where there are none.
        no_pictures: why `preview` gives none, if it does.
        reasons: clip id -> why its features are not in the store, as far as that is known.
    """
    metrics = evaluation.metrics
    own: dict[str, Any]
    if metrics["task"] == "detection":
        own = {"measure": "AP of frames", "value": metrics["model"]["all"]["ap"]}
        own |= {"rows": _frame_rows(metrics), "alarm_seconds": f"{ALARM_SECONDS:g}"}
    else:
        clips = [row["clips"] for row in metrics["model"]["per_class"].values()]
        own = {"measure": "accuracy", "value": metrics["model"]["accuracy"]["value"]}
        own["chance"] = max(clips) / sum(clips)
    shown = examples(run, evaluation, preview, file)
    left_out = [(clip, (reasons or {}).get(clip, "not in the store")) for clip in run.left_out]
    write_page(
        file,
        f"{run.config.task}.html",
        title=f"{run.path.resolve().name}: AVAR-Net report",
        run=run,
        metrics=metrics,
        plain_models={"logistic baseline": metrics["linear"], **metrics["baselines"]},
        facts=_facts(run),
        notes=notes(run, metrics),
        plots=run_plots(run, evaluation),
        mapped=min(MAPPED, len(evaluation.clips)),
        examples=shown,
        pictures=any(example.picture for _, _, clips in shown for example in clips),
        no_pictures=no_pictures or "none could be read",
        left_out=left_out,
        stress=read_stress(run),
        **own,
    )


def _facts(run: Run) -> dict[str, str]:
    """Return where the report comes from."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {
        "trained": _by(run.made) if run.made else "by a version that did not note when, nor how",
        "command": run.made.get("command", ""),
        "store": " + ".join(map(str, run.stores)),
        "manifest": "" if run.manifest is None else str(run.manifest),
        **_fitted_last(run),
        "this report": _by({"date": now, "version": version("avarnet")}),
    }
    return {name: visible(text) for name, text in facts.items() if text}


def _fitted_last(run: Run) -> dict[str, str]:
    """Return by what the models' logits are divided, and how many have a linear term."""
    if run.config.task == "detection":
        return {}
    models = run.all_models()
    found = sorted(float(model.temperature) for model in models)
    lowest, highest = f"{found[0]:.1f}", f"{found[-1]:.1f}"
    facts = {"temperature": lowest if lowest == highest else f"{lowest} to {highest}"}
    if run.config.has_linear_term:
        terms = [model.linear_term for model in models]
        fitted = sum(term is not None and bool(term.weight.any()) for term in terms)
        facts["linear term"] = f"in {fitted} of {len(terms)} models"
    return facts


def _by(made: Mapping[str, str]) -> str:
    try:
        date = f"{datetime.fromisoformat(made['date']).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except (KeyError, ValueError, OverflowError):  # of a run that somebody has changed
        date = made.get("date", "?")
    return f"{date}, by avarnet {made.get('version', '?')}"


def _frame_rows(
    metrics: DetectionMetrics,
) -> list[tuple[str, int | str, FrameFigures, FrameFigures]]:
    """Return (of which frames, clips, metrics, those of the logistic baseline)."""
    model, linear = metrics["model"], metrics["linear"]
    rows: list[tuple[str, int | str, FrameFigures, FrameFigures]] = [
        ("all", model["clips"], model["all"], linear["all"])
    ]
    if model["abnormal"] and linear["abnormal"]:
        rows.append(("abnormal clips", "", model["abnormal"], linear["abnormal"]))
    for name, row in model["per_class"].items():
        rows.append((name, row.get("clips", ""), row, linear["per_class"][name]))
    return rows


def notes(run: Run, metrics: Metrics) -> list[str]:
    """Return what a reader must know before any figure."""
    found = []
    if run.recipe.random_streams:
        found.append(
            "Random backbones (" + ", ".join(run.recipe.random_streams) + "): the networks behind "
            "these features have learned nothing. The figures test the pipeline, not the method."
        )
    if metrics["held_out"] == "validation":
        found.append(
            "The manifest has no test clips: these are the validation clips, on which the best "
            "epoch was chosen. The figures are too good."
        )
    return found + metrics["doubts"]
