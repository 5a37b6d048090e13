"""Judges a run on its held-out clips, beside a linear classifier."""

from __future__ import annotations

import csv
import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import Joined, Recipe, Store
from train.config import TrainError
from train.data import Clips
from train.evaluation.frames import CLASSES, detection, frame_figures
from train.evaluation.recognition import accuracy_and_f1, recognition, spread
from train.evaluation.segments import RECALL
from train.inference import Judged, answers_of
from train.logistic_baseline import linear_probabilities, linear_scores
from train.models.network import AVARNet
from train.run import EVALUATION_FILE, EVALUATION_FORMAT, Run, store_names


class Evaluation(NamedTuple):
    """Attributes: `metrics`, see `evaluate_run`; the held-out `clips`; their features, `data`."""

    metrics: dict[str, Any]
    clips: list[Judged]
    data: Clips


def evaluate_run(run: Run, store: Store | Joined, recall: float = RECALL) -> dict[str, Any]:
    """Return the metrics of `judge_run`."""
    return judge_run(run, store, recall).metrics


def judge_run(run: Run, store: Store | Joined, recall: float = RECALL) -> Evaluation:
    """Score the held-out clips with the run's models and with a linear classifier beside them.

    Recognition is judged clip by clip, detection frame by frame (see `detection`).

    Each clip is scored by the models that did not see it; the answers of several seeds are
    averaged. The linear classifier is trained on the same parts' training and validation clips.
    Without held-out clips in the manifest, the validation clips are used and the result says so.

    Args:
        run: a trained run.
        store: the features it was trained on.
        recall: detection: share of the anomalies to be noticed, at which false alarms are counted.

    Returns:
        The clips one by one, and the metrics, plain data: ``task``, ``model`` and ``linear`` (see
        `recognition` and `detection`), ``models`` (recognition: what each model reached alone on
        its held-out clips, with mean and deviation), ``seeds`` (mean and deviation over the seeds,
        each pooled over the folds), ``without`` (stream -> accuracy, or frame-level AP, with it
        taken from every held-out clip; empty of a single stream), ``held_out`` ("test" or
        "validation"), ``parts``, ``doubts`` (see `Run.doubts`), ``missing_streams`` (stream ->
        held-out clips that lack it).
        The metrics are also written to ``evaluation.json``, the single answers, of clips or of
        snippets, to ``predictions.csv``.

    Raises:
        TrainError: the store is not the one the run was trained on, or `recall` is not in (0, 1].
    """
    if not 0 < recall <= 1:
        raise TrainError(f"recall {recall}: expected a share over 0, and at most 1")
    check_recipe(run, store.recipe)
    lost = [clip_id for clip_id in run.labels if clip_id not in store]
    if lost:
        raise TrainError(
            f"{store_names(store)} lacks clips of the run: {len(lost)} ({', '.join(lost[:3])}); "
            "give the store it was trained on (--store)"
        )
    data = Clips(store, list(run.labels), run.config.streams, run.recipe.crops)
    tested = any(part.test for part in run.parts)
    models = run.all_models()
    if run.config.task == "detection":
        figures, clips = _detection(run, models, data, tested, recall)
        measure = _average_precision
    else:
        figures, clips = _recognition(run, models, data, tested)
        measure = _accuracy
    several = data.sizes if len(data.sizes) > 1 else ()
    metrics = {
        "format": EVALUATION_FORMAT,
        "task": run.config.task,
        "held_out": "test" if tested else "validation",
        "parts": len(run.parts),
        "doubts": run.doubts(),
        "without": {
            name: measure(run, _clips(run, models, data.without(name), tested)) for name in several
        },
        "missing_streams": _missing(data, {clip.id for clip in clips}),
        **figures,
    }
    text = json.dumps(metrics, indent=1) + "\n"
    (run.path / EVALUATION_FILE).write_text(text, encoding="utf-8")
    return Evaluation(metrics, clips, data)


def _missing(data: Clips, held: set[str]) -> dict[str, int]:
    there = [valid for clip_id, valid in zip(data.ids, data.valid, strict=True) if clip_id in held]
    return {name: sum(not valid[name].any() for valid in there) for name in data.sizes}


def _clips(run: Run, models: list[AVARNet], data: Clips, tested: bool) -> list[Judged]:
    parts = answers_of(run, models, data, tested)
    return [clip for answers in parts for clip in answers.each(run, data)]


def _accuracy(run: Run, clips: list[Judged]) -> float:
    return float(np.mean([clip.predicted == clip.label for clip in clips]))


def _average_precision(run: Run, clips: list[Judged]) -> float | None:
    truth, scores = [run.truth[clip.id] for clip in clips], [clip.snippets[:, 1] for clip in clips]
    ap: float | None = frame_figures(truth, scores, run.recipe.snippet_seconds)["ap"]
    return ap


def _recognition(
    run: Run, models: list[AVARNet], data: Clips, tested: bool
) -> tuple[dict[str, Any], list[Judged]]:
    targets = np.array([run.classes.index(run.labels[clip_id]) for clip_id in data.ids])
    clips: list[Judged] = []
    chosen, theirs, alone = [], [], []
    each: list[dict[str, Any]] = []
    for number, answers in enumerate(answers_of(run, models, data, tested)):
        clips += answers.each(run, data)
        chosen.append(answers.held)
        theirs.append(linear_probabilities(data, targets, answers.known, answers.held, run.config))
        for seed, said in enumerate(answers.clips, run.config.seed):
            accuracy, f1 = accuracy_and_f1(targets[answers.held], said.argmax(1))
            each.append({"fold": number, "seed": seed, "accuracy": accuracy, "f1": f1})
        alone.append(answers.clips.argmax(2))
    truth, linear = targets[np.concatenate(chosen)], np.concatenate(theirs)
    model = np.stack([clip.probabilities for clip in clips])
    seeds = [accuracy_and_f1(truth, said) for said in np.concatenate(alone, axis=1)]
    with open(run.path / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["clip", "label", "predicted", "linear", *run.classes])
        for clip, by_line in zip(clips, linear.argmax(1), strict=True):
            p = (f"{value:.6f}" for value in clip.probabilities)
            table.writerow([clip.id, clip.label, clip.predicted, run.classes[by_line], *p])
    figures = {
        "model": recognition(truth, model, run.classes, run.config.seed),
        "linear": recognition(truth, linear, run.classes, run.config.seed),
        "models": {
            "each": each,
            **{name: spread([row[name] for row in each]) for name in ("accuracy", "f1")},
        },
        "seeds": {
            "accuracy": spread([row[0] for row in seeds]),
            "f1": spread([row[1] for row in seeds]),
        },
    }
    return figures, clips


def _detection(
    run: Run, models: list[AVARNet], data: Clips, tested: bool, recall: float
) -> tuple[dict[str, Any], list[Judged]]:
    if not tested:
        raise TrainError(
            f"{run.path} has no held-out clips, whose annotation in time detection is judged by; "
            "mark some of the manifest's clips as test and train again"
        )
    targets = np.array([run.classes.index(run.labels[clip_id]) for clip_id in data.ids])
    clips: list[Judged] = []
    theirs: list[NDArray[np.float32]] = []
    alone: list[NDArray[np.float32]] = []
    for answers in answers_of(run, models, data, tested):
        clips += answers.each(run, data)
        alone += [seeds[..., 1] for seeds in answers.snippets]
        theirs += linear_scores(data, targets, answers.known, answers.held, run.config)
    step = run.recipe.snippet_seconds
    ours = [clip.snippets[:, 1] for clip in clips]
    with open(run.path / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["clip", "label", "start", "end", "score", "linear"])
        for clip, said, by_line in zip(clips, ours, theirs, strict=True):
            for t, (one, other) in enumerate(zip(said, by_line, strict=True)):
                times = (f"{t * step:.3f}", f"{(t + 1) * step:.3f}")
                # nine digits are all of a float32: rounded scores would be tied anew
                table.writerow([clip.id, clip.label, *times, f"{one:.9g}", f"{other:.9g}"])
    truth = [run.truth[clip.id] for clip in clips]
    normal = [clip.label == CLASSES[0] for clip in clips]
    each = [frame_figures(truth, list(said), step) for said in zip(*alone, strict=True)]
    figures = {
        "model": detection(truth, ours, step, normal, run.config.seed, recall),
        "seeds": {name: spread([row[name] for row in each]) for name in ("ap", "roc_auc")},
        "linear": detection(truth, theirs, step, normal, run.config.seed, recall),
    }
    return figures, clips


def check_recipe(run: Run, recipe: Recipe) -> None:
    """Refuse features that are not of the recipe the run was trained on."""
    differing = recipe.differences(run.recipe)
    if differing:
        raise TrainError(
            f"these features are not of the recipe that {run.path} was trained on: "
            + "; ".join(differing)
        )
