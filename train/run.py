"""A trained run: its models, and all that is needed to judge and to use them.

Its folder is described in `train.run_files`.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from features import FeatureError, Joined, Recipe, Store, html_table, json_text, visible
from manifests import NORMAL_LABELS, Clip, listed
from train.config import Config, TrainError
from train.evaluation.anomaly_intervals import Hysteresis
from train.evaluation.figures import DetectionMetrics, Metrics, RecognitionMetrics
from train.labels import CLASSES
from train.models.network import AVARNet
from train.run_files import (
    EVALUATION_FILE,
    MOST_HEADER,
    PREDICTIONS_FILE,
    RUN_FILE,
    WAY_OUT,
    read_run_file,
    write_run_file,
)
from train.run_json import (
    EVALUATION_FORMAT,
    VERSION,
    Calibration,
    check_run,
    parse_json,
    path_of,
    read_calibration,
    read_epochs,
    read_run_json,
)
from train.splits import Split

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    from features import Features


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
        chosen: how well those settings separate the validation clips, by which they were chosen;
            see `Hysteresis.choose`.
        weights: the SHA-256 of the file of each model; none in runs of older versions.
        known_clips_digest: that of the file of the clips it learned from; "" if it has none.
        packages: ``model`` and ``fusion`` -> name and version of the package that it came with,
            where it is not one of ours.
        calibration: the threshold of alarms that was chosen for a camera; None if none was.
        made: ``date`` (ISO 8601, UTC), ``command``, and ``version`` of avarnet; empty in runs of
            older versions.
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
    weights: list[str] = field(default_factory=list)
    known_clips_digest: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    calibration: Calibration | None = None
    made: dict[str, str] = field(default_factory=dict)

    @property
    def normal(self) -> str | None:
        """The class that is no anomaly; None if no class is known for that."""
        if self.config.task == "detection":
            return CLASSES[0]
        usual = [name for name in (self.config.normal, *NORMAL_LABELS) if name in self.classes]
        return usual[0] if usual else None

    @property
    def interval_settings(self) -> Hysteresis:
        """Which scores of a new clip make an anomalous interval: the calibration's, if any."""
        if self.calibration is None:
            return self.hysteresis
        threshold = self.calibration["threshold"]
        return Hysteresis(threshold, threshold)

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
            **({"weights": self.weights} if self.weights else {}),
            **({"known_clips": self.known_clips_digest} if self.known_clips_digest else {}),
            **({"packages": self.packages} if self.packages else {}),
            **({"made": self.made} if self.made else {}),
        }

    def save(self, name: str = RUN_FILE) -> None:
        """Write it as a file of its folder, whole or not at all."""
        write_run_file(self.path / name, json_text(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a run's folder.

        Raises:
            TrainError: it is not a run, not a whole one, or of another version.
        """
        path = Path(path)
        whole = read_run_json(path)
        file, manifest = path / RUN_FILE, whole.get("manifest")
        try:
            run = cls(
                path=path,
                config=Config.from_dict(whole["config"], str(file)),
                classes=whole["classes"],
                labels=whole["labels"],
                splits=[Split(**split) for split in whole["parts"]],
                recipe=Recipe.from_json(json.dumps(whole["recipe"])),
                sizes=whole["sizes"],
                stores=[path_of(text) for text in whole["stores"]],
                left_out=whole["left_out"],
                truth={clip["id"]: Clip.from_json(clip) for clip in whole.get("truth", [])},
                groups=whole.get("groups", {}),
                manifest=path_of(manifest) if manifest else None,
                hysteresis=Hysteresis(**whole.get("hysteresis", {})),
                chosen=dict(whole.get("chosen", {})),
                weights=whole.get("weights", []),
                known_clips_digest=whole.get("known_clips", ""),
                packages=whole.get("packages", {}),
                calibration=read_calibration(path),
                made=whole.get("made", {}),
            )
            check_run(run)
        except (ValueError, KeyError, TypeError, FeatureError) as error:
            raise TrainError(f"{file} is damaged ({error}); {WAY_OUT}") from error
        return run

    def weights_file(self, number: int) -> Path:
        """Return where the weights of model `number` are."""
        return self.path / f"model-{number}.safetensors"

    def model(self, number: int) -> AVARNet:
        """Return model `number` of `models`.

        Raises:
            TrainError: its weights are damaged, or not those of this run.
        """
        file = self.weights_file(number)
        try:
            with torch.device("meta"):  # which takes no memory: that the file has is enough
                size = sum(x.nbytes for x in self._empty_model().state_dict().values())
            content = read_run_file(file, size + MOST_HEADER)
            if len(content) < size:
                raise ValueError(f"it has {len(content)} bytes, and they {size}")
            if self.weights and hashlib.sha256(content).hexdigest() != self.weights[number]:
                raise ValueError(f"damaged: its SHA-256 is not that in {RUN_FILE}")
            weights = safetensors.torch.load(content)
            if not all(x.isfinite().all() for x in weights.values()):
                raise ValueError("not finite numbers")
            # the name that runs of version 3 have for it
            weights = {re.sub("^reader[.]", "sequence_model.", n): x for n, x in weights.items()}
            weights.setdefault("temperature", torch.ones(()))  # which runs before version 9 lack
            if not weights["temperature"] > 0:
                raise ValueError("a temperature that is not above zero")
            model = self._empty_model()
            model.load_state_dict(weights)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise TrainError(f"{file}: not the weights of this run ({error}); {WAY_OUT}") from error
        return model.eval()

    def _empty_model(self) -> AVARNet:
        return AVARNet(self.sizes, len(self.classes), self.config)

    def all_models(self) -> list[AVARNet]:
        """Return all `models`, in their order."""
        return [self.model(number) for number in range(len(self.models))]

    def epochs(self) -> list[dict[str, Any]]:
        """Return the rows of ``metrics.jsonl``, one for each epoch of each model.

        Raises:
            TrainError: it cannot be read, or has something else in it.
        """
        return read_epochs(self.path, len(self.splits))

    def history(self) -> DataFrame:
        """Return `epochs` as a data frame; this needs pandas.

        Raises:
            TrainError: pandas is not installed.
        """
        return _pandas().DataFrame(self.epochs())

    def predictions(self) -> DataFrame:
        """Return what `evaluate_run` has written of the held-out clips; this needs pandas.

        In recognition a row is a clip: its label, the prediction of the run and of the logistic
        baseline, and the probability of each class. In detection it is a snippet: from when to
        when, and the scores of both.

        Raises:
            TrainError: pandas is not installed, or the run was not evaluated.
        """
        texts = ["clip", "label"]
        if self.config.task == "recognition":
            texts += ["predicted", "linear"]
        try:
            return _pandas().read_csv(
                self.path / PREDICTIONS_FILE,
                dtype=dict.fromkeys(texts, str),
                keep_default_na=False,  # a class may be called None
            )
        except OSError as error:
            raise TrainError(
                f"{self.path} has no {PREDICTIONS_FILE}; judge it first: avarnet evaluate "
                f"{self.path}"
            ) from error

    def plot_scores(self, clip: str | Features, store: Store | Joined | None = None) -> Figure:
        """Return the scores of a clip over time, and those of each class, as Plotly's figure.

        A held-out clip is scored by the models that were not trained on it.

        Args:
            clip: its id, or its features.
            store: has the clip; None opens the one that the run was trained on.

        Raises:
            TrainError: the store does not have the clip.
            FeatureError: the store is not where it was.
        """
        from train.report.prediction import clip_plot

        return clip_plot(self, clip, store)

    def _shown(self) -> dict[str, str]:
        about = {
            "task": self.config.task,
            "classes": listed(self.classes),
            "streams": " + ".join(self.config.streams),
            "model": f"{self.config.model}, {self.config.fusion} fusion",
            "models": f"{len(self.models)} (folds: {len(self.splits)}, seeds: {self.config.seeds})",
            "clips": str(len(self.labels)),
            "features": " + ".join(map(str, self.stores)),
        }
        return {name: visible(text) for name, text in about.items()}

    def __repr__(self) -> str:
        shown = self._shown()
        return (
            f"<Run {str(self.path)!r}: {shown['task']} of {len(self.classes)} classes; "
            f"{shown['model']} of {shown['streams']}; models {shown['models']}>"
        )

    def _repr_html_(self) -> str:
        return html_table(f"Run {self.path}", self._shown())

    def kept_epochs(self) -> list[dict[str, Any]]:
        """Return the row of the epoch whose weights it has, of each model in turn."""
        from train.doubts import kept_epochs

        return kept_epochs(self)

    def doubts(self) -> list[str]:
        """Return what its training leaves in doubt: sentences for whoever reads its figures."""
        from train.doubts import doubts

        return doubts(self)

    def evaluation(self) -> Metrics:
        """Return the metrics that `evaluate_run` has written.

        Raises:
            TrainError: it was not evaluated, or by a version that wrote other figures.
        """
        kind = DetectionMetrics if self.config.task == "detection" else RecognitionMetrics
        metrics: Metrics | None = None
        with suppress(OSError, TrainError):
            content = read_run_file(self.path / EVALUATION_FILE)
            metrics = parse_json(content, kind, EVALUATION_FILE)
        if metrics is None or metrics["format"] != EVALUATION_FORMAT:
            raise TrainError(
                f"{self.path} has no {EVALUATION_FILE} that this version can read; judge it first: "
                f"avarnet evaluate {self.path}"
            )
        return metrics


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise TrainError(
            "data frames need another package: pip install pandas; Run.epochs() is a list"
        ) from error
    return pandas
