"""A run: a folder with trained models and all that is needed to judge and to use them.

::

    run.json          classes, labels, parts, settings, recipe of the features; written last
    config.toml       the settings, as `--config` takes them
    model-0.safetensors, ...   the weights, one file for each fold
    history.jsonl     one line an epoch
    metrics.json, predictions.csv, report.html    written by `evaluate`
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from features import FeatureError, Features, Joined, Recipe, Store
from manifests import Clip
from train.config import Config, TrainError
from train.data import Clips
from train.detection import CLASSES, detection, top_pool, weak_labels
from train.fit import (
    DETECTION_LAYERS,
    POOLING,
    Epoch,
    build,
    fit,
    history_rows,
    layers_to_cover,
    score,
)
from train.linear import linear_predictions, linear_scores
from train.metrics import recognition
from train.model import AVARNet
from train.protocol import Part, parts

VERSION = 2
RUN_FILE = "run.json"


@dataclass(frozen=True)
class Run:
    """A trained run, as its folder says.

    Attributes:
        path: its folder.
        config: its settings, ``streams`` and ``layers`` settled.
        classes: class names; class k of the model is ``classes[k]``.
        labels: clip id -> class, for every clip of the parts.
        parts: what trained, picked the epoch and was held out, one for each model.
        recipe: of the features it was trained on.
        sizes: stream name -> values per snippet.
        stores: where those features were: a folder, or several that were joined.
        left_out: clips of the manifest that were not in the store.
        truth: in detection, the held-out clips as the manifest has them.
    """

    path: Path
    config: Config
    classes: list[str]
    labels: dict[str, str]
    parts: list[Part]
    recipe: Recipe
    sizes: dict[str, int]
    stores: list[Path]
    left_out: list[str]
    truth: dict[str, Clip] = field(default_factory=dict)

    def save(self) -> None:
        """Write ``run.json`` and ``config.toml``."""
        whole = {
            "version": VERSION,
            "config": asdict(self.config),
            "classes": self.classes,
            "labels": self.labels,
            "parts": [asdict(part) for part in self.parts],
            "recipe": json.loads(self.recipe.to_json()),
            "sizes": self.sizes,
            "stores": [str(path) for path in self.stores],
            "left_out": self.left_out,
            "truth": [clip.to_json() for clip in self.truth.values()],
        }
        (self.path / "config.toml").write_text(self.config.to_toml(), encoding="utf-8")
        (self.path / RUN_FILE).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read a run's folder.

        Raises:
            TrainError: it is not a run, not a whole one, or of another version.
        """
        try:
            whole = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
            if whole["version"] != VERSION:
                raise TrainError(
                    f"{path} is a run of version {whole['version']}, this program reads {VERSION}; "
                    "update avarnet or train again"
                )
            return cls(
                path,
                Config.from_dict(whole["config"], str(path / RUN_FILE)),
                list(whole["classes"]),
                dict(whole["labels"]),
                [Part(**part) for part in whole["parts"]],
                Recipe.from_json(json.dumps(whole["recipe"])),
                dict(whole["sizes"]),
                [Path(path) for path in whole["stores"]],
                list(whole["left_out"]),
                {clip["id"]: Clip.from_json(clip) for clip in whole.get("truth", [])},
            )
        except OSError as error:
            raise TrainError(
                f"{path} is no finished run: it has no readable {RUN_FILE}; train one with "
                "'avarnet train MANIFEST STORE RUN'"
            ) from error
        except (ValueError, KeyError, TypeError, FeatureError) as error:
            raise TrainError(f"{path / RUN_FILE} is damaged ({error}); train again") from error

    def model(self, number: int) -> AVARNet:
        """Return the model of part `number`."""
        model = build(self.sizes, len(self.classes), self.config)
        file = self.path / f"model-{number}.safetensors"
        try:
            model.load_state_dict(safetensors.torch.load_file(file))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise TrainError(f"{file}: not the weights of this run ({error})") from error
        return model.eval()

    def history(self) -> list[dict[str, Any]]:
        """Return the rows of ``history.jsonl``."""
        lines = (self.path / "history.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def train_run(
    clips: Sequence[Clip],
    store: Store | Joined,
    path: Path,
    config: Config,
    *,
    device: torch.device | None = None,
    on_epoch: Callable[[int, int, Epoch, bool], None] = lambda *_: None,
) -> Run:
    """Train a model for each part of the clips and write the run's folder.

    Args:
        clips: labelled clips; those that are not in the store are left out and listed in the run.
        store: their features.
        path: the run's folder; must not hold a finished run.
        config: settings.
        device: where to train; the CPU if None, which is the fastest for small data.
        on_epoch: called with (part, number of parts, epoch, best so far).

    Raises:
        TrainError: most mistakes, before the first epoch.
    """
    if (path / RUN_FILE).exists():
        raise TrainError(f"{path} holds a run already; give another folder or delete it")
    there = [clip for clip in clips if clip.id in store]
    if not there:
        raise TrainError(
            f"none of the manifest's {len(clips)} clips is in {_names(store)}; do the ids agree? "
            "See 'avarnet features list STORE'"
        )
    as_given = {clip.id: clip for clip in there}
    if config.task == "detection":
        there = weak_labels(there, config.normal)
    divided = parts(there, config)
    truth = {}
    if config.task == "detection":
        classes = CLASSES
        truth = {clip_id: as_given[clip_id] for part in divided for clip_id in part.test}
        _check_truth(truth)
    else:
        classes = sorted({clip.label for clip in there})
    labels = {clip.id: clip.label for clip in there}
    if not config.streams:
        config = replace(config, streams=tuple(store.recipe.streams))
    data = Clips(store, [clip.id for clip in there], config.streams, store.recipe.crops)
    targets = np.array([classes.index(labels[clip_id]) for clip_id in data.ids])
    if config.layers == 0:
        reach = layers_to_cover(data.lengths)
        if config.task == "detection":
            reach = min(reach, DETECTION_LAYERS)
        config = replace(config, layers=reach)
    run = Run(
        path,
        config,
        classes,
        labels,
        divided,
        store.recipe,
        data.sizes,
        [path.resolve() for path in store.paths],
        [clip.id for clip in clips if clip.id not in store],
        truth,
    )
    path.mkdir(parents=True, exist_ok=True)
    where = {clip_id: index for index, clip_id in enumerate(data.ids)}
    with open(path / "history.jsonl", "w", encoding="utf-8") as lines:
        for number, part in enumerate(divided):
            model, history = fit(
                data,
                targets,
                len(classes),
                np.array([where[clip_id] for clip_id in part.train]),
                np.array([where[clip_id] for clip_id in part.val]),
                config,
                device or torch.device("cpu"),
                partial(on_epoch, number, len(divided)),
            )
            weights = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
            safetensors.torch.save_file(weights, path / f"model-{number}.safetensors")
            for row in history_rows(number, history):
                lines.write(json.dumps(row) + "\n")
    run.save()
    return run


def _check_truth(truth: dict[str, Clip]) -> None:
    bare = [clip_id for clip_id, clip in truth.items() if clip.intervals is None]
    if bare:
        raise TrainError(
            f"{len(bare)} held-out clips ({bare[0]}, ...) have no annotation in time, by which "
            "detection is judged; give them intervals in the manifest, [] for normal ones"
        )
    if truth and not any(clip.intervals for clip in truth.values()):
        raise TrainError("the held-out clips have no anomaly: there is nothing to be detected")


def evaluate_run(run: Run, store: Store | Joined) -> dict[str, Any]:
    """Score the held-out clips with the run's models and with a linear classifier beside them.

    Recognition is judged clip by clip, detection frame by frame (see `detection`).

    Each clip is scored by the model that did not see it. The linear classifier is trained on the
    same parts' training and validation clips. Without held-out clips in the manifest, the
    validation clips are used and the result says so.

    Returns:
        Plain data: ``task``, ``model`` and ``linear`` (see `recognition` and `detection`),
        ``held_out`` ("test" or "validation"), ``parts``, ``missing_streams`` (stream -> held-out
        clips that lack it). It is also written to ``metrics.json``, the single answers, of clips
        or of snippets, to ``predictions.csv``.

    Raises:
        TrainError: the store is not the one the run was trained on.
    """
    check_recipe(run, store.recipe)
    lost = [clip_id for clip_id in run.labels if clip_id not in store]
    if lost:
        raise TrainError(
            f"{_names(store)} lacks {len(lost)} clips of the run ({', '.join(lost[:3])}, ...); "
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
    (run.path / "metrics.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


class _Asked(NamedTuple):
    """What the model of one part, and the linear one, are asked for."""

    number: int
    held: NDArray[np.int64]
    known: NDArray[np.int64]
    targets: NDArray[np.int64]


def _asked(run: Run, data: Clips, tested: bool) -> Iterator[_Asked]:
    where = {clip_id: index for index, clip_id in enumerate(data.ids)}
    targets = np.array([run.classes.index(run.labels[clip_id]) for clip_id in data.ids])
    for number, part in enumerate(run.parts):
        held = np.array([where[i] for i in (part.test if tested else part.val)], dtype=np.int64)
        known = [*part.train, *part.val] if tested else part.train
        yield _Asked(number, held, np.array([where[i] for i in known]), targets)


def _missing(data: Clips, index: NDArray[np.int64]) -> dict[str, int]:
    return {name: int(sum(not data.valid[i][name].any() for i in index)) for name in data.sizes}


def _recognition(run: Run, data: Clips, tested: bool) -> dict[str, Any]:
    chosen: list[NDArray[np.int64]] = []
    log_p: list[NDArray[np.float32]] = []
    linear: list[NDArray[np.int64]] = []
    for number, held, known, targets in _asked(run, data, tested):
        answers, _ = score(run.model(number), data, held, torch.device("cpu"))
        chosen.append(held)
        log_p.append(answers)
        linear.append(linear_predictions(data, targets, known, held, run.config))
    index, probabilities = np.concatenate(chosen), np.exp(np.concatenate(log_p))
    by_line, predicted = np.concatenate(linear), probabilities.argmax(1)
    with open(run.path / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["clip", "label", "predicted", "linear", *run.classes])
        for row, i in enumerate(index):
            table.writerow(
                [
                    data.ids[i],
                    run.classes[targets[i]],
                    run.classes[predicted[row]],
                    run.classes[by_line[row]],
                    *(f"{p:.6f}" for p in probabilities[row]),
                ]
            )
    return {
        "model": recognition(targets[index], predicted, run.classes, run.config.seed),
        "linear": recognition(targets[index], by_line, run.classes, run.config.seed),
        "missing_streams": _missing(data, index),
    }


def _detection(run: Run, data: Clips, tested: bool) -> dict[str, Any]:
    if not tested:
        raise TrainError(
            f"{run.path} has no held-out clips, whose annotation in time detection is judged by; "
            "mark some of the manifest's clips as test and train again"
        )
    index: list[int] = []
    scores: list[NDArray[np.float32]] = []
    linear: list[NDArray[np.float32]] = []
    for number, held, known, targets in _asked(run, data, tested):
        _, snippets = score(run.model(number), data, held, torch.device("cpu"), top_pool)
        index += held.tolist()
        scores += [rows[:, 1] for rows in snippets]
        linear += linear_scores(data, targets, known, held, run.config)
    step = run.recipe.snippet_seconds
    with open(run.path / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["clip", "label", "start", "end", "score", "linear"])
        for i, said, by_line in zip(index, scores, linear, strict=True):
            for t, (one, other) in enumerate(zip(said, by_line, strict=True)):
                times = (f"{t * step:.3f}", f"{(t + 1) * step:.3f}")
                row = (run.labels[data.ids[i]], *times, f"{one:.6f}", f"{other:.6f}")
                table.writerow([data.ids[i], *row])
    clips = [run.truth[data.ids[i]] for i in index]
    normal = [run.labels[clip.id] == CLASSES[0] for clip in clips]
    return {
        "model": detection(clips, scores, step, normal),
        "linear": detection(clips, linear, step, normal),
        "missing_streams": _missing(data, np.array(index)),
    }


def _names(store: Store | Joined) -> str:
    return " + ".join(map(str, store.paths))


def check_recipe(run: Run, recipe: Recipe) -> None:
    """Refuse features that are not of the recipe the run was trained on."""
    differing = recipe.differences(run.recipe)
    if differing:
        raise TrainError(
            f"these features are not of the recipe that {run.path} was trained on: "
            + "; ".join(differing)
        )


class Prediction(NamedTuple):
    """What a run says of one clip.

    Attributes:
        label: the likeliest class.
        confidence: its probability.
        probabilities: class -> probability of the clip.
        scores: (T, classes) probabilities of every snippet.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]
    scores: NDArray[np.float32]


class Predictor:
    """Scores new clips with all models of a run; the answers of several folds are averaged."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._models = [run.model(number) for number in range(len(run.parts))]

    def __call__(self, features: Features) -> Prediction:
        """Return what the run says of a clip; a clip that lacks a stream gets an answer too."""
        run = self.run
        clips = Clips({"clip": features}, ["clip"], run.config.streams, run.recipe.crops)
        pooling = POOLING[run.config.task]
        answers = [
            score(model, clips, np.array([0]), torch.device("cpu"), pooling)
            for model in self._models
        ]
        whole = np.mean([np.exp(log_p[0]) for log_p, _ in answers], axis=0)
        scores = np.mean([snippets[0] for _, snippets in answers], axis=0)
        best = int(whole.argmax())
        return Prediction(
            self.run.classes[best],
            float(whole[best]),
            {name: float(p) for name, p in zip(self.run.classes, whole, strict=True)},
            scores,
        )
