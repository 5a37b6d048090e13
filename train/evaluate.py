"""Judges a run on its held-out clips, beside a linear classifier."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from features import Joined, Recipe, Store
from train.config import TrainError
from train.data import Clips
from train.detection import CLASSES, detection, frame_figures
from train.fit import POOLING, score
from train.linear import linear_probabilities, linear_scores
from train.metrics import accuracy_and_f1, recognition, spread
from train.run import Run, store_names

CPU = torch.device("cpu")


def evaluate_run(run: Run, store: Store | Joined) -> dict[str, Any]:
    """Score the held-out clips with the run's models and with a linear classifier beside them.

    Recognition is judged clip by clip, detection frame by frame (see `detection`).

    Each clip is scored by the models that did not see it; the answers of several seeds are
    averaged. The linear classifier is trained on the same parts' training and validation clips.
    Without held-out clips in the manifest, the validation clips are used and the result says so.

    Returns:
        Plain data: ``task``, ``model`` and ``linear`` (see `recognition` and `detection`),
        ``models`` (recognition: what each model reached alone on its held-out clips, with mean and
        deviation), ``seeds`` (mean and deviation over the seeds, each pooled over the folds),
        ``held_out`` ("test" or "validation"), ``parts``, ``missing_streams`` (stream -> held-out
        clips that lack it). It is also written to ``evaluation.json``, the single answers, of clips
        or of snippets, to ``predictions.csv``.

    Raises:
        TrainError: the store is not the one the run was trained on.
    """
    check_recipe(run, store.recipe)
    lost = [clip_id for clip_id in run.labels if clip_id not in store]
    if lost:
        raise TrainError(
            f"{store_names(store)} lacks clips of the run: {len(lost)} ({', '.join(lost[:3])}); "
            "give the store it was trained on (--store)"
        )
    data = Clips(store, list(run.labels), run.config.streams, run.recipe.crops)
    tested = any(part.test for part in run.parts)
    judge = _detection if run.config.task == "detection" else _recognition
    result = {
        "task": run.config.task,
        "held_out": "test" if tested else "validation",
        "parts": len(run.parts),
        **judge(run, data, tested),
    }
    text = json.dumps(result, indent=1) + "\n"
    (run.path / "evaluation.json").write_text(text, encoding="utf-8")
    return result


class _Answers(NamedTuple):
    """What all models of one part, each of another seed, say of its held-out clips.

    Attributes:
        held: (clips,) indices of the held-out clips.
        known: (...,) indices of those that the linear classifier may learn from.
        clips: (seeds, clips, classes) probabilities.
        snippets: for each clip (seeds, T, classes) probabilities.
    """

    held: NDArray[np.int64]
    known: NDArray[np.int64]
    clips: NDArray[np.float32]
    snippets: list[NDArray[np.float32]]


def _answers(run: Run, data: Clips, tested: bool) -> Iterator[_Answers]:
    where = {clip_id: index for index, clip_id in enumerate(data.ids)}
    for number, part in enumerate(run.parts):
        held = np.array([where[i] for i in (part.test if tested else part.val)], dtype=np.int64)
        known = np.array([where[i] for i in ([*part.train, *part.val] if tested else part.train)])
        said = [
            score(run.model(model), data, held, CPU, POOLING[run.config.task])
            for model, (own, _) in enumerate(run.models)
            if own == number
        ]
        clips = np.exp(np.stack([log_p for log_p, _ in said]))
        yield _Answers(
            held, known, clips, [np.stack(s) for s in zip(*(s for _, s in said), strict=True)]
        )


def _recognition(run: Run, data: Clips, tested: bool) -> dict[str, Any]:
    targets = np.array([run.classes.index(run.labels[clip_id]) for clip_id in data.ids])
    chosen, ours, theirs, alone = [], [], [], []
    each: list[dict[str, Any]] = []
    for number, answers in enumerate(_answers(run, data, tested)):
        chosen.append(answers.held)
        ours.append(answers.clips.mean(0))
        theirs.append(linear_probabilities(data, targets, answers.known, answers.held, run.config))
        for seed, said in enumerate(answers.clips, run.config.seed):
            accuracy, f1 = accuracy_and_f1(targets[answers.held], said.argmax(1))
            each.append({"fold": number, "seed": seed, "accuracy": accuracy, "f1": f1})
        alone.append(answers.clips.argmax(2))
    index, model, linear = map(np.concatenate, (chosen, ours, theirs))
    seeds = [accuracy_and_f1(targets[index], said) for said in np.concatenate(alone, axis=1)]
    with open(run.path / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["clip", "label", "predicted", "linear", *run.classes])
        for i, p, by_line in zip(index, model, linear.argmax(1), strict=True):
            names = (run.classes[k] for k in (targets[i], p.argmax(), by_line))
            table.writerow([data.ids[i], *names, *(f"{value:.6f}" for value in p)])
    return {
        "model": recognition(targets[index], model, run.classes, run.config.seed),
        "linear": recognition(targets[index], linear, run.classes, run.config.seed),
        "models": {
            "each": each,
            **{name: spread([row[name] for row in each]) for name in ("accuracy", "f1")},
        },
        "seeds": {
            "accuracy": spread([row[0] for row in seeds]),
            "f1": spread([row[1] for row in seeds]),
        },
        "missing_streams": _missing(data, index),
    }


def _detection(run: Run, data: Clips, tested: bool) -> dict[str, Any]:
    if not tested:
        raise TrainError(
            f"{run.path} has no held-out clips, whose annotation in time detection is judged by; "
            "mark some of the manifest's clips as test and train again"
        )
    targets = np.array([run.classes.index(run.labels[clip_id]) for clip_id in data.ids])
    index: list[int] = []
    ours: list[NDArray[np.float32]] = []
    theirs: list[NDArray[np.float32]] = []
    alone: list[NDArray[np.float32]] = []
    for answers in _answers(run, data, tested):
        index += answers.held.tolist()
        alone += [seeds[..., 1] for seeds in answers.snippets]
        ours += [seeds[..., 1].mean(0) for seeds in answers.snippets]
        theirs += linear_scores(data, targets, answers.known, answers.held, run.config)
    step = run.recipe.snippet_seconds
    with open(run.path / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["clip", "label", "start", "end", "score", "linear"])
        for i, said, by_line in zip(index, ours, theirs, strict=True):
            for t, (one, other) in enumerate(zip(said, by_line, strict=True)):
                times = (f"{t * step:.3f}", f"{(t + 1) * step:.3f}")
                row = (run.labels[data.ids[i]], *times, f"{one:.6f}", f"{other:.6f}")
                table.writerow([data.ids[i], *row])
    clips = [run.truth[data.ids[i]] for i in index]
    normal = [run.labels[clip.id] == CLASSES[0] for clip in clips]
    each = [frame_figures(clips, list(said), step) for said in zip(*alone, strict=True)]
    return {
        "model": detection(clips, ours, step, normal, run.config.seed),
        "seeds": {name: spread([row[name] for row in each]) for name in ("ap", "roc_auc")},
        "linear": detection(clips, theirs, step, normal, run.config.seed),
        "missing_streams": _missing(data, np.array(index)),
    }


def _missing(data: Clips, index: NDArray[np.int64]) -> dict[str, int]:
    return {name: int(sum(not data.valid[i][name].any() for i in index)) for name in data.sizes}


def check_recipe(run: Run, recipe: Recipe) -> None:
    """Refuse features that are not of the recipe the run was trained on."""
    differing = recipe.differences(run.recipe)
    if differing:
        raise TrainError(
            f"these features are not of the recipe that {run.path} was trained on: "
            + "; ".join(differing)
        )
