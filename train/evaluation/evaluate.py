"""Judges a run on its held-out clips, beside plain baselines."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from features import Joined, Recipe, Store, json_text
from manifests import listed
from train.baselines.logistic import linear_probabilities, linear_scores
from train.baselines.snippet_pooling import Pooling, PoolingBaselines
from train.config import TrainError
from train.data import Clips, store_names
from train.evaluation.alarms import RECALL
from train.evaluation.bootstrap import group_numbers
from train.evaluation.figures import (
    CommonMetrics,
    DetectionMetrics,
    Metrics,
    ModelFigures,
    RecognitionMetrics,
    better_baselines,
)
from train.evaluation.frames import detection, frame_figures
from train.evaluation.recognition import accuracy_and_f1, recognition, spread
from train.evaluation.robustness import impaired, robustness
from train.evaluation.wrong_labels import likely_wrong_labels
from train.inference import (
    ClipPrediction,
    SplitPredictions,
    has_test_clips,
    predict_splits,
)
from train.labels import CLASSES
from train.run import Run
from train.run_files import (
    EVALUATION_FILE,
    PREDICTIONS_FILE,
    check_writable,
    run_text,
    write_run_file,
)
from train.run_json import EVALUATION_FORMAT


@dataclass(frozen=True)
class PlainPredictions:
    """What the plain baselines predict of each held-out clip.

    Attributes:
        linear: of the logistic baseline, (classes,) probabilities; in detection (T,) scores.
        pooled: the same of the network that pools snippets.
    """

    linear: list[NDArray[np.float32]]
    pooled: list[NDArray[np.float32]]


@dataclass(frozen=True)
class Evaluation:
    """What `judge_run` found.

    Attributes:
        metrics: the figures.
        clips: the held-out clips with what was predicted of them.
        data: their features.
        plain: what the plain baselines predict of them.
    """

    metrics: Metrics
    clips: list[ClipPrediction]
    data: Clips
    plain: PlainPredictions


def evaluate_run(run: Run, store: Store | Joined, recall: float = RECALL) -> Metrics:
    """Return the metrics of `judge_run`.

    Args:
        run: a trained run.
        store: the features it was trained on.
        recall: share of the anomalies to be noticed, at which false alarms are counted.
    """
    return judge_run(run, store, recall).metrics


def judge_run(
    run: Run, store: Store | Joined, recall: float = RECALL, plain: PlainPredictions | None = None
) -> Evaluation:
    """Score the held-out clips with the run's models and with plain baselines beside them.

    Recognition is judged clip by clip, detection frame by frame (see `detection`).

    Each clip is scored by the models that did not see it; the predictions of several seeds are
    averaged. The baselines are trained on the training and validation clips of the same splits.
    Without held-out clips in the manifest, the validation clips are used and the result says so.

    Args:
        run: a trained run.
        store: the features it was trained on.
        recall: detection: share of the anomalies to be noticed, at which false alarms are counted.
        plain: of a run with the same clips, splits, streams, seed and class weights, whose
            baselines are the same; None trains them.

    Returns:
        The clips one by one, and the metrics, plain data: ``task``; ``model``, ``linear`` (the
        logistic baseline) and ``baselines`` (name -> another one, a network that pools snippets;
        see `recognition` and `detection`); ``models`` (recognition: what each model reached alone
        on its held-out clips, with mean and deviation); ``seeds`` (mean and deviation over the
        seeds, each pooled over the folds); ``without`` (stream -> accuracy, or frame-level AP, with
        it taken from every held-out clip; empty of a single stream); ``held_out`` ("test" or
        "validation"); ``parts`` (the number of splits); ``doubts`` (see `Run.doubts`, which clips
        are empty, and which baselines do better); ``missing_streams`` (stream -> held-out clips
        that lack it); ``wrong_labels`` (see `likely_wrong_labels`).
        The metrics are also written to ``evaluation.json``, the single predictions, of clips or of
        snippets, to ``predictions.csv``.

    Raises:
        TrainError: the store is not the one the run was trained on, `recall` is not in (0, 1], or
            the run's folder cannot be written.
    """
    check_writable(run.path)
    if not 0 < recall <= 1:
        raise TrainError(f"recall {recall}: expected a share over 0, and at most 1")
    check_recipe(run, store.recipe)
    lost = [clip_id for clip_id in run.labels if clip_id not in store]
    if lost:
        raise TrainError(
            f"{store_names(store)} lacks clips of the run: {len(lost)} ({', '.join(lost[:3])}); "
            "give the store it was trained on (--store)"
        )
    held_out = HeldOut(run, Clips(store, list(run.labels), run.config.streams, run.recipe.crops))
    clips = held_out.predictions()
    plain = plain or held_out.plain_predictions()
    metrics: Metrics
    if run.config.task == "detection":
        metrics = _detection(held_out, clips, plain, recall)
    else:
        metrics = _recognition(held_out, clips, plain)
    metrics["doubts"] += _empty_clips(held_out.data) + better_baselines(metrics, run.config.model)
    write_run_file(run.path / EVALUATION_FILE, json_text(metrics, indent=1) + "\n")
    return Evaluation(metrics, clips, held_out.data, plain)


def _empty_clips(data: Clips) -> list[str]:
    """Return a sentence on the clips that have no row of the run's streams; [] if all have some."""
    both = zip(data.ids, data.valid, strict=True)
    empty = [clip_id for clip_id, valid in both if not any(own.any() for own in valid.values())]
    if not empty:
        return []
    return [
        f"Of the {len(data.ids)} clips of the run, {len(empty)} ({listed(empty[:3])}) have nothing "
        f"in {' or '.join(data.sizes)}: they teach nothing, and what is predicted of those that "
        "are held out is a guess, and counts."
    ]


class HeldOut:
    """The held-out clips of a run, and what its models predict of them.

    Args:
        run: the run.
        data: the features of all its clips.

    Attributes:
        which: "test", or "validation" where the run has no test clips.
        targets: (clips,) class of all its clips.
        splits: what the models predict.
    """

    def __init__(self, run: Run, data: Clips) -> None:
        self.run, self.data = run, data
        tested = has_test_clips(run)
        self.which: Literal["test", "validation"] = "test" if tested else "validation"
        self.targets = np.array([run.classes.index(run.labels[clip_id]) for clip_id in data.ids])
        self.models = run.all_models()
        self.splits = list(predict_splits(run, self.models, data, tested))

    def predictions(self) -> list[ClipPrediction]:
        """Return the clips one by one."""
        return _each(self.run, self.splits, self.data)

    def plain_predictions(self) -> PlainPredictions:
        """Train the plain baselines on what the models of each split know, and let them predict."""
        config, known = self.run.config, [split.known for split in self.splits]
        detects = config.task == "detection"
        pooling: Pooling = "top" if detects else "attention"
        networks = PoolingBaselines(
            self.data, self.targets, known, len(self.run.classes), pooling, config.seed
        )
        logistic = linear_scores if detects else linear_probabilities
        linear: list[NDArray[np.float32]] = []
        pooled: list[NDArray[np.float32]] = []
        for fold, split in enumerate(self.splits):
            linear += [*logistic(self.data, self.targets, split.known, split.held_out, config)]
            whole, snippets = networks.predict(fold, split.held_out)
            pooled += [own[:, 1] for own in snippets] if detects else [*whole]
        return PlainPredictions(linear, pooled)

    def common_metrics(self, clips: list[ClipPrediction]) -> CommonMetrics:
        """Return what both tasks have, but for ``seeds``."""
        ids = {clip.id for clip in clips}
        valid = [own for i, own in zip(self.data.ids, self.data.valid, strict=True) if i in ids]
        less = {
            name: self._impaired(data)
            for name, data in impaired(self.data, self.run.config.seed).items()
        }
        found = robustness(self.run, clips, less)
        return {
            "format": EVALUATION_FORMAT,
            "held_out": self.which,
            "parts": len(self.run.splits),
            "doubts": self.run.doubts(),
            "without": {
                name: found[f"without {name}"]["value"]
                for name in self.data.sizes
                if f"without {name}" in found
            },
            "robustness": found,
            "missing_streams": {
                name: sum(not own[name].any() for own in valid) for name in self.data.sizes
            },
            "seeds": {},
            "wrong_labels": likely_wrong_labels(clips, self.run.classes),
        }

    def _impaired(self, data: Clips) -> list[ClipPrediction]:
        """Return what the same models predict of impaired clips."""
        splits = predict_splits(self.run, self.models, data, self.which == "test")
        return _each(self.run, list(splits), data)


def _each(run: Run, splits: Sequence[SplitPredictions], data: Clips) -> list[ClipPrediction]:
    return [clip for split in splits for clip in split.each(run, data)]


def _recognition(
    held_out: HeldOut, clips: list[ClipPrediction], plain: PlainPredictions
) -> RecognitionMetrics:
    run, targets = held_out.run, held_out.targets
    truth = targets[np.concatenate([split.held_out for split in held_out.splits])]
    linear, pooled = np.stack(plain.linear), np.stack(plain.pooled)
    each: list[ModelFigures] = []
    for number, split in enumerate(held_out.splits):
        for seed, predicted in enumerate(split.clips.argmax(2), run.config.seed):
            accuracy, f1 = accuracy_and_f1(targets[split.held_out], predicted)
            each.append({"fold": number, "seed": seed, "accuracy": accuracy, "f1": f1})
    by_seed = np.concatenate([split.clips.argmax(2) for split in held_out.splits], axis=1)
    accuracies, f1s = zip(*(accuracy_and_f1(truth, own) for own in by_seed), strict=True)
    with run_text(run.path / PREDICTIONS_FILE) as file:
        table = csv.writer(file)
        table.writerow(["clip", "label", "predicted", "linear", *run.classes])
        for clip, by_linear in zip(clips, linear.argmax(1), strict=True):
            p = (f"{value:.6f}" for value in clip.probabilities)
            table.writerow([clip.id, clip.label, clip.predicted, run.classes[by_linear], *p])
    groups = group_numbers([clip.id for clip in clips], run.groups)
    probabilities = np.stack([clip.probabilities for clip in clips])
    return {
        **held_out.common_metrics(clips),
        "task": "recognition",
        "model": recognition(truth, probabilities, run.classes, groups, run.config.seed),
        "linear": recognition(truth, linear, run.classes, groups, run.config.seed),
        "baselines": {
            "attention pooling": recognition(truth, pooled, run.classes, groups, run.config.seed)
        },
        "models": {
            "each": each,
            "accuracy": spread([row["accuracy"] for row in each]),
            "f1": spread([row["f1"] for row in each]),
        },
        "seeds": {"accuracy": spread(accuracies), "f1": spread(f1s)},
    }


def _detection(
    held_out: HeldOut, clips: list[ClipPrediction], plain: PlainPredictions, recall: float
) -> DetectionMetrics:
    run, linear = held_out.run, plain.linear
    # of each clip (seeds, T)
    by_seed = [seeds[..., 1] for split in held_out.splits for seeds in split.snippets]
    step = run.recipe.snippet_seconds
    scores = [clip.snippets[:, 1] for clip in clips]
    with run_text(run.path / PREDICTIONS_FILE) as file:
        table = csv.writer(file)
        table.writerow(["clip", "label", "start", "end", "score", "linear"])
        for clip, ours, theirs in zip(clips, scores, linear, strict=True):
            for t, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                times = (f"{t * step:.3f}", f"{(t + 1) * step:.3f}")
                # nine digits are all of a float32: rounded scores would be tied anew
                table.writerow([clip.id, clip.label, *times, f"{one:.9g}", f"{other:.9g}"])
    truth = [run.truth[clip.id] for clip in clips]
    normal = [clip.label == CLASSES[0] for clip in clips]
    groups = group_numbers([clip.id for clip in clips], run.groups)
    each = [frame_figures(truth, list(seed), step) for seed in zip(*by_seed, strict=True)]
    return {
        **held_out.common_metrics(clips),
        "task": "detection",
        "model": detection(truth, scores, step, normal, groups, run.config.seed, recall),
        "linear": detection(truth, linear, step, normal, groups, run.config.seed, recall),
        "baselines": {
            "snippet ranker": detection(
                truth, plain.pooled, step, normal, groups, run.config.seed, recall
            )
        },
        "seeds": {
            "ap": spread([row["ap"] for row in each]),
            "roc_auc": spread([row["roc_auc"] for row in each]),
        },
    }


def check_recipe(run: Run, recipe: Recipe) -> None:
    """Refuse features that are not of the recipe the run was trained on.

    Args:
        run: the run.
        recipe: of the features.
    """
    differing = recipe.differences(run.recipe)
    if differing:
        raise TrainError(
            f"these features are not of the recipe that {run.path} was trained on: "
            + "; ".join(differing)
        )
