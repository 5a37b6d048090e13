"""A run: a folder with trained models and all that is needed to judge and to use them.

::

    run.json          classes, labels, parts, settings, recipe of the features; written last
    config.toml       the settings, as `--config` takes them
    model-0.safetensors, ...   the weights: all folds of the first seed, of the next, ...
    metrics.jsonl     one line an epoch
    evaluation.json, predictions.csv, report.html    written by `evaluate`

While it is trained there are also ``unfinished.json``, what ``run.json`` will be, and checkpoints.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from features import FeatureError, Joined, Recipe, Store
from manifests import Clip
from train.config import Config, TrainError
from train.data import Clips
from train.evaluation.frames import CLASSES, NORMAL_LABELS, weak_labels
from train.evaluation.intervals import Hysteresis, anomaly_scores
from train.fitting.trainer import AT_CHANCE, DETECTION_LAYERS, Epoch, Sides, kept, layers_to_cover
from train.inference import answers_of
from train.models.network import AVARNet
from train.parallel import CHECKPOINT, Work, fit_groups, groups_of
from train.splits import Part, parts

VERSION = 4
# what the settings that a run of version 3 does not know were then
THEN: dict[str, Any] = {
    "centred": False,
    "scene_dropout": 0.0,
    "offset_noise": 0.0,
    "context_dropout": 0.0,
    "starts": 1,
}
RUN_FILE = "run.json"
UNFINISHED = "unfinished.json"
EPOCHS_FILE = "metrics.jsonl"
FEW_A_CLASS = 3  # validation clips of each class, below which a run is told so
EVALUATION_FILE = "evaluation.json"
EVALUATION_FORMAT = 1  # of that file; one more whenever its figures change


@dataclass(frozen=True)
class Run:
    """A trained run, as its folder says.

    Attributes:
        path: its folder.
        config: its settings, ``streams`` and ``layers`` settled.
        classes: class names; class k of the model is ``classes[k]``.
        labels: clip id -> class, for every clip of the parts.
        parts: what trained, picked the epoch and was held out, one for each fold.
        recipe: of the features it was trained on.
        sizes: stream name -> values per snippet.
        stores: where those features were: a folder, or several that were joined.
        left_out: clips of the manifest that were not in the store.
        truth: in detection, the held-out clips as the manifest has them.
        manifest: where that was; None if it was not told.
        hysteresis: which scores make an anomalous interval.
        chosen: how well those settings told the validation clips apart, by which they were chosen;
            see `Hysteresis.choose`.
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
    manifest: Path | None = None
    hysteresis: Hysteresis = field(default_factory=Hysteresis)
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def normal(self) -> str | None:
        """The class that is no anomaly; None if no class is known for that."""
        if self.config.task == "detection":
            return CLASSES[0]
        usual = [name for name in (self.config.normal, *NORMAL_LABELS) if name in self.classes]
        return usual[0] if usual else None

    @property
    def models(self) -> list[tuple[int, int]]:
        """(number of the part, seed) of each model."""
        seeds = range(self.config.seed, self.config.seed + self.config.seeds)
        return [(part, seed) for seed in seeds for part in range(len(self.parts))]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
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
            "manifest": None if self.manifest is None else str(self.manifest),
            "hysteresis": asdict(self.hysteresis),
            "chosen": self.chosen,
        }

    def save(self, name: str = RUN_FILE) -> None:
        """Write it as a file of its folder, whole or not at all."""
        half = self.path / f"{name}.half"
        half.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        half.replace(self.path / name)

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read a run's folder.

        Raises:
            TrainError: it is not a run, not a whole one, or of another version.
        """
        try:
            whole = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
            if whole["version"] not in (3, VERSION):
                raise TrainError(
                    f"{path} is a run of version {whole['version']}, this program reads {VERSION}; "
                    "update avarnet or train again"
                )
            settings = whole["config"]
            if whole["version"] == 3:
                top = settings["task"] == "detection"
                settings = {**THEN, "pooling": "top" if top else "mean", **settings}
            return cls(
                path,
                Config.from_dict(settings, str(path / RUN_FILE)),
                list(whole["classes"]),
                dict(whole["labels"]),
                [Part(**part) for part in whole["parts"]],
                Recipe.from_json(json.dumps(whole["recipe"])),
                dict(whole["sizes"]),
                [Path(path) for path in whole["stores"]],
                list(whole["left_out"]),
                {clip["id"]: Clip.from_json(clip) for clip in whole.get("truth", [])},
                Path(whole["manifest"]) if whole.get("manifest") else None,
                Hysteresis(**whole.get("hysteresis", {})),
                whole.get("chosen", {}),
            )
        except OSError as error:
            raise TrainError(
                f"{path} is no finished run: it has no readable {RUN_FILE}; train one with "
                "'avarnet train MANIFEST STORE RUN'"
            ) from error
        except (ValueError, KeyError, TypeError, FeatureError) as error:
            raise TrainError(f"{path / RUN_FILE} is damaged ({error}); train again") from error

    def model(self, number: int) -> AVARNet:
        """Return model `number` of `models`."""
        model = AVARNet(self.sizes, len(self.classes), self.config)
        file = self.path / f"model-{number}.safetensors"
        try:
            model.load_state_dict(safetensors.torch.load_file(file))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise TrainError(f"{file}: not the weights of this run ({error})") from error
        return model.eval()

    def all_models(self) -> list[AVARNet]:
        """Return all `models`, in their order."""
        return [self.model(number) for number in range(len(self.models))]

    def history(self) -> list[dict[str, Any]]:
        """Return the rows of ``metrics.jsonl``."""
        lines = (self.path / EPOCHS_FILE).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def kept_epochs(self) -> list[dict[str, Any]]:
        """Return the row of the epoch whose weights it has, of each model in turn."""
        models: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for row in self.history():
            models.setdefault((row["seed"], row["fold"]), []).append(row)
        found = []
        for rows in models.values():
            epochs = [
                Epoch(**{n: v for n, v in row.items() if n not in ("fold", "seed")}) for row in rows
            ]
            found.append(rows[epochs.index(kept(epochs))])
        return found

    def doubts(self) -> list[str]:
        """Return what its training leaves in doubt: sentences for whoever reads its figures."""
        found = []
        fewest, classes = min(len(part.val) for part in self.parts), len(self.classes)
        if fewest < FEW_A_CLASS * classes:
            clips = "1 validation clip" if fewest == 1 else f"{fewest} validation clips"
            found.append(
                f"Only {clips}, of {classes} classes: too few to choose an epoch, or to tell "
                "whether a model has learned at all."
            )
        rows = self.kept_epochs()
        again = {(r["seed"], r["fold"]) for r in self.history() if r.get("start", 0)}
        if again:
            chance = math.log(classes) * AT_CHANCE
            still = sum(row["val_loss"] > chance for row in rows)
            found.append(
                f"The validation loss of {len(again)} of {len(rows)} models stayed near chance: "
                "they were begun again with other seeds, and the best start is kept"
                + (f"; {still} stayed there in every start." if still else ".")
            )
        return found

    def evaluation(self) -> dict[str, Any]:
        """Return the metrics that `evaluate_run` has written.

        Raises:
            TrainError: it was not evaluated, or by a version that wrote other figures.
        """
        try:
            metrics: dict[str, Any] = json.loads((self.path / EVALUATION_FILE).read_text("utf-8"))
            if metrics.get("format") != EVALUATION_FORMAT:
                raise ValueError
        except (OSError, ValueError) as error:
            raise TrainError(
                f"{self.path} has no {EVALUATION_FILE} that this version can read; judge it first: "
                f"avarnet evaluate {self.path}"
            ) from error
        return metrics


def train_run(
    clips: Sequence[Clip],
    store: Store | Joined,
    path: Path,
    config: Config,
    *,
    device: torch.device | None = None,
    processes: int = 1,
    resume: bool = False,
    manifest: Path | None = None,
    on_epoch: Callable[[int, int, Epoch, bool], None] = lambda *_: None,
) -> Run:
    """Train a model for each part of the clips and each seed, and write the run's folder.

    Args:
        clips: labelled clips; those that are not in the store are left out and listed in the run.
        store: their features.
        path: the run's folder; must not hold a finished run.
        config: settings.
        device: where to train; the CPU if None, which is the fastest for small data.
        processes: at most so many at work, where there are several models. They are started anew
            and import the main script, which must then be guarded by ``__name__ == "__main__"``.
        resume: go on with the run that was interrupted in this folder; its numbers will be those
            of an unbroken one.
        manifest: where the clips were read from; the run notes it for its report.
        on_epoch: called with (number of the model, how many there are, epoch, best so far).

    Raises:
        TrainError: most mistakes, before the first epoch.
    """
    if path.exists() and not path.is_dir():
        raise TrainError(f"{path} is a file; give a folder for the run")
    if (path / RUN_FILE).exists():
        raise TrainError(f"{path} holds a run already; give another folder or delete it")
    if (path / UNFINISHED).exists() and not resume:
        raise TrainError(
            f"{path} holds a run that was interrupted: --resume goes on with it; or delete it"
        )
    there = [clip for clip in clips if clip.id in store]
    if not there:
        raise TrainError(
            f"none of the manifest's {len(clips)} clips is in {store_names(store)}; do the ids "
            "agree? See 'avarnet features list STORE'"
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
        if config.normal and config.normal not in classes:
            raise TrainError(
                f"no clip is labelled {config.normal}, which --normal names; there are "
                + ", ".join(classes)
            )
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
        None if manifest is None else manifest.resolve(),
    )
    _begin(run, resume)
    where = {clip_id: index for index, clip_id in enumerate(data.ids)}
    sides = [
        Sides(
            np.array([where[clip_id] for clip_id in part.train]),
            np.array([where[clip_id] for clip_id in part.val]),
        )
        for part in divided
    ]
    counts = len(run.models)
    with open(path / EPOCHS_FILE, "w", encoding="utf-8") as lines:

        def note(number: int, epoch: Epoch, best: bool) -> None:
            part, seed = run.models[number]
            lines.write(json.dumps({"fold": part, "seed": seed, **asdict(epoch)}) + "\n")
            lines.flush()
            on_epoch(number, counts, epoch, best)

        fit_groups(
            Work(data, store.paths, targets, len(classes), config, device or torch.device("cpu")),
            groups_of(data, sides, config, path),
            processes,
            note,
        )
    order = "seed", "fold", "start", "epoch"
    rows = sorted(run.history(), key=lambda row: [row[key] for key in order])
    (path / EPOCHS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    for file in path.glob(f"{CHECKPOINT}*"):
        file.unlink()
    run = _with_hysteresis(run, data)
    run.save()
    (path / UNFINISHED).unlink()
    return run


def _with_hysteresis(run: Run, data: Clips) -> Run:
    """Return the run with the settings that make intervals of scores, by its validation clips."""
    if run.normal is None:
        return run
    scores: list[NDArray[np.float32]] = []
    anomalous: list[bool] = []
    for answers in answers_of(run, run.all_models(), data, tested=False):
        for index, snippets in zip(answers.held, answers.snippets, strict=True):
            scores.append(anomaly_scores(snippets.mean(0), run.classes, run.normal))
            anomalous.append(run.labels[data.ids[index]] != run.normal)
    hysteresis, chosen = Hysteresis.choose(scores, anomalous, run.recipe.snippet_seconds)
    return replace(run, hysteresis=hysteresis, chosen=chosen)


def _begin(run: Run, resume: bool) -> None:
    """Write what the run will be; refuse to go on with another one."""
    run.path.mkdir(parents=True, exist_ok=True)
    file, whole = run.path / UNFINISHED, json.loads(json.dumps(run.to_json()))
    if resume and file.exists():
        begun = json.loads(file.read_text(encoding="utf-8"))
        differing = sorted(key for key in whole if begun.get(key) != whole[key])
        if "config" in differing:
            old = begun["config"]
            differing += sorted(k for k, v in whole["config"].items() if old.get(k) != v)
        if differing:
            raise TrainError(
                f"{run.path} was begun otherwise ({', '.join(differing)} differ): go on with the "
                "command it was begun with, or delete it"
            )
    run.save(UNFINISHED)


def _check_truth(truth: dict[str, Clip]) -> None:
    bare = [clip_id for clip_id, clip in truth.items() if clip.intervals is None]
    if bare:
        raise TrainError(
            f"held-out clips without annotation in time: {len(bare)} ({bare[0]} is one); detection "
            "is judged by it: give them intervals in the manifest, [] for normal ones"
        )
    if truth and not any(clip.intervals for clip in truth.values()):
        raise TrainError("the held-out clips have no anomaly: there is nothing to be detected")


def store_names(store: Store | Joined) -> str:
    """Return the folders of a store."""
    return " + ".join(map(str, store.paths))
