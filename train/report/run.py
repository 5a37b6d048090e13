"""A run's report: one HTML file that says how good it is, where it fails, and what was left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from train.evaluation.evaluate import Evaluation
from train.evaluation.figures import Metrics
from train.experiments.stress import read_stress
from train.report.examples import Preview, examples
from train.report.html import write_page
from train.report.run_plots import clip_map, detection_plots, recognition_plots, training_curves
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
    value: float | None
    if metrics["task"] == "detection":
        measure, value = "AP of frames", metrics["model"]["all"]["ap"]
        plots = detection_plots(run, metrics)
    else:
        measure, value = "accuracy", metrics["model"]["accuracy"]["value"]
        plots = recognition_plots(run, metrics)
    shown = examples(run, evaluation, preview)
    left_out = [(clip, (reasons or {}).get(clip, "not in the store")) for clip in run.left_out]
    write_page(
        file,
        f"{run.config.task}.html",
        title=f"{run.path.resolve().name}: AVAR-Net report",
        run=run,
        metrics=metrics,
        plain_models={"logistic baseline": metrics["linear"], **metrics["baselines"]},
        notes=notes(run, metrics),
        measure=measure,
        value=value,
        training=training_curves(run),
        map=clip_map(run, evaluation),
        examples=shown,
        pictures=any(example.picture for _, _, clips in shown for example in clips),
        no_pictures=no_pictures or "none could be read",
        left_out=left_out,
        stress=read_stress(run),
        **plots,
    )


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
