"""Every setting of a training run, with its default; `--config FILE.toml` sets any of them."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, get_args

from manifests import AvarnetError, reason

Task = Literal["recognition", "detection"]
TASKS = get_args(Task)
MODELS = ("mtcn", "tcn", "lstm", "transformer", "snippet_linear")
FUSIONS = ("early", "gated", "bottleneck", "cross", "late")
# of entry points, by which other packages add theirs
GROUPS = {"model": "avarnet.models", "fusion": "avarnet.fusions"}
LOSSES = ("cross_entropy", "focal")
SAMPLINGS = ("clips", "classes")
POOLINGS = ("mean", "logsumexp", "top")
MODEL_ALIASES = {"linear": "snippet_linear"}
MOST = 100_000  # of what may be any number: no run needs more, and a hostile one asks for it
AUTOMATIC = -1.0  # the task's value is taken
TASK_VALUES: dict[str, dict[str, str | float]] = {
    "recognition": {
        "pooling": "logsumexp",
        "input_dropout": 0.6,
        "stream_dropout": 0.05,
        "time_warp": 3.0,
        "snippet_dropout": 0.2,
        "context_dropout": 0.0,
    },
    # a clip's label says little of its snippets: nothing of them is hidden
    "detection": {
        "pooling": "top",
        "input_dropout": 0.5,
        "stream_dropout": 0.1,
        "time_warp": 1.5,
        "snippet_dropout": 0.0,
        "context_dropout": 0.75,
    },
}
ATTENTION_HEADS = 4
Limit = tuple[Callable[[Any], bool], str]  # whether a value is allowed, and which are


def _one_of(names: Sequence[str]) -> Limit:
    return lambda value: value in names, ", ".join(names)


def _one_of_ours_or_theirs(names: Sequence[str], kind: str) -> Limit:
    return (
        lambda value: value in names or package_of(kind, value) is not None,
        f"{', '.join(names)}, or the name that an installed package gives one by an entry point in "
        f"the group {GROUPS[kind]}",
    )


def _at_least(least: int) -> Limit:
    return lambda value: value >= least, f"{least} or more"


def _between(least: int, most: int) -> Limit:
    return lambda value: least <= value <= most, f"{least} to {most}"


SHARE: Limit = (lambda value: 0 <= value < 1, "from 0 to below 1")
LIMITS: dict[str, Limit] = {
    "task": _one_of(TASKS),
    "streams": (lambda value: len(set(value)) == len(value), "each once"),
    "fusion": _one_of_ours_or_theirs(FUSIONS, "fusion"),
    "model": _one_of_ours_or_theirs(MODELS, "model"),
    "loss": _one_of(LOSSES),
    "pooling": _one_of(POOLINGS),
    "scene_dropout": SHARE,
    "offset_noise": _at_least(0),
    "outlier_limit": _at_least(0),
    "starts": _between(1, MOST),
    "sampling": _one_of(SAMPLINGS),
    "time_warp": _at_least(1),
    "time_crop": (lambda value: 0 < value <= 1, "above 0, to 1"),
    "time_mask": SHARE,
    "snippet_dropout": SHARE,
    "mixup": _at_least(0),
    "stages": _between(1, 100),
    "layers": (lambda value: 0 <= value <= 20, "from 0, which chooses, to 20"),
    "channels": _between(1, MOST),
    "dropout": SHARE,
    "context_dropout": SHARE,
    "input_dropout": SHARE,
    "stream_dropout": SHARE,
    "label_smoothing": SHARE,
    "epochs": _between(1, MOST),
    "patience": _at_least(1),
    "batch_size": (lambda value: value >= 0, "1 or more, or 0, which chooses"),
    "learning_rate": (lambda value: value > 0, "above 0"),
    "weight_decay": _at_least(0),
    "validation": (lambda value: 0 < value < 1, "between 0 and 1"),
    "folds": (lambda value: value == 0 or value >= 2, "2 or more, or 0 for none"),
    "seeds": _between(1, MOST),
    "seed": _between(0, 2**32 - 1),
}


class TrainError(AvarnetError):
    """Something that keeps a run from being trained or read; the message gives the way out."""


def installed_names(kind: str) -> list[str]:
    """Return the names of all that is a ``model`` or a ``fusion``, ours first."""
    ours = FUSIONS if kind == "fusion" else (*MODELS, *MODEL_ALIASES)
    return list(dict.fromkeys([*ours, *sorted(entry_points(group=GROUPS[kind]).names)]))


def package_of(kind: str, name: str) -> str | None:
    """Return name and version of the installed package that brings a model or a fusion.

    None if it is one of ours, or no package has it.

    Args:
        kind: ``model`` or ``fusion``.
        name: of the entry point.
    """
    if name in (FUSIONS if kind == "fusion" else MODELS):
        return None
    for entry in entry_points(group=GROUPS[kind], name=name):
        return entry.value if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
    return None


@dataclass(frozen=True)
class Config:
    """Settings of a run.

    What is left empty or -1 takes the task's value, see `TASK_VALUES`; so give the task with the
    other settings, not to `dataclasses.replace`.

    Attributes:
        task: ``recognition``, one class for a clip, or ``detection``, a score for each snippet that
            is learned from whether there is an anomaly in a clip at all.
        normal: the label of clips without anomaly; empty takes the usual ones.
        streams: the streams to fuse, in this order; none takes all that a training clip has.
        fusion: how the streams become one sequence: ``early`` (AVAR-Net's concatenation),
            ``gated``, ``bottleneck``, ``cross``, ``late``, or one of another package.
        model: what reads that sequence: ``mtcn``, ``tcn`` (one stage of it), ``lstm``,
            ``transformer``, ``snippet_linear`` (each snippet for itself; alias ``linear``), or one
            of another package.
        causal: let no prediction see the future, for live streams.
        stages, channels: of the MTCN; those of MS-TCN are 4 and 64. Further stages refine the
            predictions of snippets, of which a clip's label says nothing: they learn later, and no
            more (benchmarks/CHOICES.md).
        layers: dilated layers per stage; 0 takes the fewest whose receptive field covers most
            training clips (6 at most): layers beyond that see nothing but padding; in
            detection, 3.
        pooling: what a clip's prediction is made of: ``logsumexp``, the few snippets that are sure
            of something; ``top``, the most anomalous sixteenth; ``mean``, all alike.
        centred: give the network each value less its mean over the clip (if causal, over what
            came so far) beside the value itself.
        scene_dropout: how often the values themselves are hidden throughout a training clip, so
            that what changes or stands out in it must tell; without effect if not ``centred``.
        offset_noise: deviation of a random constant that is added to each centred value of a
            training clip, in deviations of that value: what is constant is not to be learned.
        linear_term: add class logits that are linear in the clip's averages, fitted by themselves,
            as far as cross-validation among the training clips finds that they tell something;
            without effect in detection, and if ``causal``. See `train.fitting.linear_fit`.
        outlier_limit: cut values off that are so many deviations from their mean; 0 for no limit.
            What is zero in nearly all training clips, as most values of a sound network are, would
            otherwise outweigh all else in the first clip where it is not.
        dropout: in the MTCN's layers.
        context_dropout: how often a training clip skips the MTCN's dilated layers, so that each
            snippet must also tell by itself.
        scaled_context: let what the dilated layers add count in prediction as often as training
            had it, by ``context_dropout``; in full if false.
        input_dropout: of features, each throughout a clip.
        stream_dropout: how often a whole stream of a clip is hidden in training.
        smoothing_weight, smoothing_limit: lambda and tau of the smoothing loss.
        loss: ``cross_entropy``, or ``focal``, which cares less for what is known already.
        label_smoothing: share of the target spread over all classes; without any, scores near 1
            would tie anomalies.
        class_weights: weigh classes by the inverse of how often they occur.
        sampling: draw ``clips`` as they come, each once an epoch, or all ``classes`` equally
            often, clips of rare ones several times.
        time_warp: play stretches of a training clip up to so many times slower or faster, by
            repeating and leaving out snippets; 1 for none.
        time_crop: cut a training clip to a random stretch of at least this share; 1 keeps all.
        time_mask: blank a random stretch of a training clip of at most this share.
        snippet_dropout: blank this share of the snippets of a training clip.
        mixup: alpha of the Beta distribution by which pairs of training clips are mixed; 0 for
            none.
        epochs: at most this many. One passes over the training clips once, or as often as makes
            `STEPS_PER_EPOCH` steps.
        patience: stop after this many epochs that the validation clips find worse than the best.
        batch_size: clips per step; 0 takes up to 16, fewer for small sets.
        starts: a model whose validation stays near chance is started again with another seed,
            until so many were tried; the best of them is kept.
        learning_rate, weight_decay: of AdamW; the rate warms up and decays as a cosine.
        validation: share of the training clips that chooses the best epoch, where the manifest has
            no validation clips.
        folds: cross-validate with this many folds; 0 takes the manifest's own split.
        seeds: train so many times, with this seed and those after it, and average predictions.
        seed: of everything random.
    """

    task: str = "recognition"
    normal: str = ""
    streams: tuple[str, ...] = ()
    fusion: str = "early"
    model: str = "mtcn"
    causal: bool = False
    stages: int = 1
    layers: int = 0
    channels: int = 64
    pooling: str = ""
    centred: bool = True
    scene_dropout: float = 0.5
    offset_noise: float = 0.5
    outlier_limit: float = 10.0
    linear_term: bool = True
    dropout: float = 0.5
    context_dropout: float = AUTOMATIC
    scaled_context: bool = True
    input_dropout: float = AUTOMATIC
    stream_dropout: float = AUTOMATIC
    smoothing_weight: float = 0.0
    smoothing_limit: float = 4.0
    loss: str = "cross_entropy"
    label_smoothing: float = 0.1
    class_weights: bool = True
    sampling: str = "clips"
    time_warp: float = AUTOMATIC
    time_crop: float = 1.0
    time_mask: float = 0.0
    snippet_dropout: float = AUTOMATIC
    mixup: float = 0.0
    epochs: int = 40
    patience: int = 20
    batch_size: int = 0
    starts: int = 3
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    validation: float = 0.15
    folds: int = 0
    seeds: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", MODEL_ALIASES.get(self.model, self.model))
        for name, value in TASK_VALUES.get(self.task, {}).items():
            if getattr(self, name) in ("", AUTOMATIC):
                object.__setattr__(self, name, value)
        wrong = [
            f"{name} = {value!r} (expected: {allowed})"
            for name, (good, allowed) in LIMITS.items()
            if not good(value := getattr(self, name))
            or (isinstance(value, float) and not math.isfinite(value))
        ]
        if wrong:
            raise TrainError(f"settings out of range: {', '.join(wrong)}")
        attends = self.model == "transformer" or self.fusion in ("bottleneck", "cross")
        if attends and self.channels % ATTENTION_HEADS:
            raise TrainError(
                f"channels = {self.channels}: attention needs a multiple of {ATTENTION_HEADS}"
            )
        if self.causal and self.fusion == "bottleneck":
            raise TrainError(
                "bottleneck fusion sees the whole clip and has no causal form; take another fusion"
            )
        if self.mixup and self.task == "detection":
            raise TrainError("mixup is for recognition: mixed clips have no highest snippets")
        if self.pooling == "top" and self.task != "detection":
            raise TrainError("pooling by the top snippets is for detection: it ranks two classes")

    @property
    def has_linear_term(self) -> bool:
        """Whether there is a linear term: averages tell the class of whole clips."""
        return self.linear_term and self.task == "recognition" and not self.causal

    @classmethod
    def load(cls, file: str | Path | None, **overrides: Any) -> Config:
        """Read a TOML file of settings; `overrides` that are not None win, the rest are defaults.

        Raises:
            TrainError: the file cannot be read, or has a setting that does not exist or fit.
        """
        file = None if file is None else Path(file)
        settings: dict[str, Any] = {}
        if file is not None:
            try:
                settings = tomllib.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise TrainError(f"{file}: {reason(error)}; give a file of TOML") from error
        settings |= {name: value for name, value in overrides.items() if value is not None}
        return cls.from_dict(settings, str(file or "settings"))

    @classmethod
    def from_dict(cls, settings: dict[str, Any], where: str) -> Config:
        """Build from plain data, refusing what does not exist or has another type."""
        defaults = {field.name: field.default for field in fields(cls)}
        unknown = sorted(settings.keys() - defaults.keys())
        if unknown:
            known = ", ".join(sorted(defaults))
            raise TrainError(f"{where}: no setting {', '.join(unknown)}; there are {known}")
        clean: dict[str, Any] = {}
        for name, value in settings.items():
            default = defaults[name]
            if isinstance(default, tuple):
                good = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
                value = tuple(value) if good else value
            elif isinstance(default, float):
                good = isinstance(value, int | float) and not isinstance(value, bool)
                value = float(value) if good else value
            else:
                good = type(value) is type(default)
            if not good:
                raise TrainError(f"{where}: {name} = {value!r}; expected one like {default!r}")
            clean[name] = value
        return cls(**clean)

    def to_toml(self) -> str:
        """Return all settings as TOML that `load` reads."""
        # JSON's texts, numbers, booleans and lists are TOML's too
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in asdict(self).items())
