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
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from features import FeatureError, Joined, Recipe, Store
from manifests import NORMAL_LABELS, Clip
from train.config import Config, TrainError
from train.evaluation.figures import Metrics
from train.evaluation.intervals import Hysteresis
from train.fitting.history import Epoch, best_epoch
from train.fitting.restarts import NEAR_CHANCE
from train.labels import CLASSES
from train.models.network import AVARNet
from train.splits import Split

VERSION = 4
# what the settings that a run of version 3 does not know were then
VERSION_3: dict[str, Any] = {
    "centred": False,
    "scene_dropout": 0.0,
    "offset_noise": 0.0,
    "context_dropout": 0.0,
    "starts": 1,
}
RUN_FILE = "run.json"
UNFINISHED = "unfinished.json"
EPOCHS_FILE = "metrics.jsonl"
FEW_A_CLASS = 3  # validation clips of each class, below which its report says so
EVALUATION_FILE = "evaluation.json"
EVALUATION_FORMAT = 1  # of that file; one more whenever its figures change


@dataclass(frozen=True)
class Run:
    """A trained run, as its folder says.

    Attributes:
        path: its folder.
        config: its settings, ``streams`` and ``layers`` settled.
        classes: class names; class k of the model is ``classes[k]``.
        labels: clip id -> class, for every clip of the splits.
        splits: which clips train, choose the epoch and are held out, one for each fold.
        recipe: of the features it was trained on.
        sizes: stream name -> values per snippet.
        stores: where those features were: a folder, or several that were joined.
        left_out: clips of the manifest that were not in the store.
        truth: in detection, the held-out clips as the manifest has them.
        groups: clip id -> the recording that it was cut from, where the manifest names it.
        manifest: where that was; None if it was not given.
        hysteresis: which scores make an anomalous interval.
        chosen: how well those settings told the validation clips apart, by which they were chosen;
            see `Hysteresis.choose`.
    """

    path: Path
    config: Config
    classes: list[str]
    labels: dict[str, str]
    splits: list[Split]
    recipe: Recipe
    sizes: dict[str, int]
    stores: list[Path]
    left_out: list[str]
    truth: dict[str, Clip] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
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
        """(number of the split, seed) of each model."""
        seeds = range(self.config.seed, self.config.seed + self.config.seeds)
        return [(split, seed) for seed in seeds for split in range(len(self.splits))]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "version": VERSION,
            "config": asdict(self.config),
            "classes": self.classes,
            "labels": self.labels,
            "parts": [asdict(split) for split in self.splits],
            "recipe": json.loads(self.recipe.to_json()),
            "sizes": self.sizes,
            "stores": [str(path) for path in self.stores],
            "left_out": self.left_out,
            "truth": [clip.to_json() for clip in self.truth.values()],
            "groups": self.groups,
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
                settings = {**VERSION_3, "pooling": "top" if top else "mean", **settings}
            return cls(
                path=path,
                config=Config.from_dict(settings, str(path / RUN_FILE)),
                classes=list(whole["classes"]),
                labels=dict(whole["labels"]),
                splits=[Split(**split) for split in whole["parts"]],
                recipe=Recipe.from_json(json.dumps(whole["recipe"])),
                sizes=dict(whole["sizes"]),
                stores=[Path(path) for path in whole["stores"]],
                left_out=list(whole["left_out"]),
                truth={clip["id"]: Clip.from_json(clip) for clip in whole.get("truth", [])},
                groups=dict(whole.get("groups", {})),
                manifest=Path(whole["manifest"]) if whole.get("manifest") else None,
                hysteresis=Hysteresis(**whole.get("hysteresis", {})),
                chosen=whole.get("chosen", {}),
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
            weights = safetensors.torch.load_file(file)
            # the name that runs of version 3 have for it
            weights = {re.sub("^reader[.]", "sequence_model.", n): x for n, x in weights.items()}
            model.load_state_dict(weights)
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
            found.append(rows[epochs.index(best_epoch(epochs))])
        return found

    def doubts(self) -> list[str]:
        """Return what its training leaves in doubt: sentences for whoever reads its figures."""
        found = []
        fewest, classes = min(len(split.val) for split in self.splits), len(self.classes)
        if fewest < FEW_A_CLASS * classes:
            clips = "1 validation clip" if fewest == 1 else f"{fewest} validation clips"
            found.append(
                f"Only {clips}, of {classes} classes: too few to choose an epoch, or to tell "
                "whether a model has learned at all."
            )
        rows = self.kept_epochs()
        again = {(r["seed"], r["fold"]) for r in self.history() if r.get("start", 0)}
        if again:
            chance = math.log(classes) * NEAR_CHANCE
            still = sum(row["val_loss"] > chance for row in rows)
            found.append(
                f"The validation loss of {len(again)} of {len(rows)} models stayed near chance: "
                "they were started again with other seeds, and the best start is kept"
                + (f"; {still} stayed there in every start." if still else ".")
            )
        calm = [
            i for i, c in self.truth.items() if self.labels[i] != CLASSES[0] and not c.intervals
        ]
        if calm:
            found.append(
                f"The manifest has no anomaly in {len(calm)} held-out clips whose label is that of "
                f"one ({', '.join(calm[:3])}): every frame of them counts as normal. If nobody has "
                "looked when it happens, the figures are wrong: annotate these clips or take them "
                "out of the test split, and train again."
            )
        return found

    def evaluation(self) -> Metrics:
        """Return the metrics that `evaluate_run` has written.

        Raises:
            TrainError: it was not evaluated, or by a version that wrote other figures.
        """
        try:
            metrics: Metrics = json.loads((self.path / EVALUATION_FILE).read_text("utf-8"))
            if metrics.get("format") != EVALUATION_FORMAT:
                raise ValueError
        except (OSError, ValueError) as error:
            raise TrainError(
                f"{self.path} has no {EVALUATION_FILE} that this version can read; judge it first: "
                f"avarnet evaluate {self.path}"
            ) from error
        return metrics


def store_names(store: Store | Joined) -> str:
    """Return the folders of a store."""
    return " + ".join(map(str, store.paths))
