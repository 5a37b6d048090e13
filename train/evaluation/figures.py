"""The figures of an evaluation, as ``evaluation.json`` has them."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class Estimate(TypedDict):
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Spread(TypedDict):
    """Mean and standard deviation of several values; `std` is None of a single one."""

    mean: float | None
    std: float | None


class ClassFigures(TypedDict):
    """Of one class in recognition."""

    precision: float
    recall: float
    f1: float
    clips: int


class CalibrationBin(TypedDict):
    """A point of the reliability diagram."""

    confidence: float
    accuracy: float
    clips: int


class Calibration(TypedDict):
    """The expected calibration error, and the bins it is made of."""

    ece: float
    bins: list[CalibrationBin]


class RecognitionFigures(TypedDict):
    """Of one classifier: macro averages over the classes; `confusion` has a row for each truth."""

    accuracy: Estimate
    precision: Estimate
    recall: Estimate
    f1: Estimate
    per_class: dict[str, ClassFigures]
    confusion: list[list[int]]
    calibration: Calibration
    clips: int


class FrameFigures(TypedDict):
    """Areas under the curves of some clips' frames; None where all frames are of one kind."""

    ap: float | None
    average_precision: float | None
    roc_auc: float | None
    frames: int
    anomalous: int
    clips: NotRequired[int]


Overlaps = dict[str, float | None]  # "0.1" to "0.5", and their "mean"


class SegmentFigures(TypedDict):
    """Average precision of segments, of all anomalies and class by class, with its mean."""

    ap: Overlaps
    map: Overlaps
    per_class: dict[str, Overlaps]


class FalseAlarms(TypedDict):
    """What it costs to notice a share of the anomalies."""

    asked: float
    hours: float
    recall: float | None
    threshold: float | None
    per_hour: float | None


class DetectionFigures(TypedDict):
    """Of one detector; `intervals` are the ends of 95 % of ``ap`` and ``roc_auc``."""

    all: FrameFigures
    intervals: dict[str, list[float]]
    segments: SegmentFigures
    false_alarms: FalseAlarms
    curves: dict[str, list[list[float]]]
    abnormal: FrameFigures | None
    per_class: dict[str, FrameFigures]
    clips: int


class ModelFigures(TypedDict):
    """What one model reached alone on the held-out clips of its fold."""

    fold: int
    seed: int
    accuracy: float
    f1: float


class ModelsFigures(TypedDict):
    """Of all models, each alone."""

    each: list[ModelFigures]
    accuracy: Spread
    f1: Spread


class Robustness(TypedDict):
    """Accuracy or AP of impaired clips, and how much less that is.

    AP is None where all frames are of one kind, `loss` where recordings drawn anew never have both.
    """

    value: float | None
    loss: Estimate | None


class WrongLabel(TypedDict):
    """A clip whose label may be wrong: the probabilities of that and of the likelier class."""

    clip: str
    label: str
    likely: str
    p_label: float
    p_likely: float


class CommonMetrics(TypedDict):
    """What both tasks have; see `train.evaluation.evaluate.judge_run`."""

    format: int
    held_out: Literal["test", "validation"]
    parts: int
    doubts: list[str]
    without: dict[str, float | None]
    robustness: dict[str, Robustness]
    missing_streams: dict[str, int]
    seeds: dict[str, Spread]
    wrong_labels: NotRequired[list[WrongLabel]]


class RecognitionMetrics(CommonMetrics):
    """Of a run of recognition."""

    task: Literal["recognition"]
    model: RecognitionFigures
    linear: RecognitionFigures
    baselines: dict[str, RecognitionFigures]
    models: ModelsFigures


class DetectionMetrics(CommonMetrics):
    """Of a run of detection."""

    task: Literal["detection"]
    model: DetectionFigures
    linear: DetectionFigures
    baselines: dict[str, DetectionFigures]


Metrics = RecognitionMetrics | DetectionMetrics


def baseline_values(metrics: Metrics) -> dict[str, float | None]:
    """Return the accuracy, or the AP of frames, of each plain baseline beside a run."""
    if metrics["task"] == "recognition":
        plain = {"logistic baseline": metrics["linear"], **metrics["baselines"]}
        return {name: figures["accuracy"]["value"] for name, figures in plain.items()}
    detectors = {"logistic baseline": metrics["linear"], **metrics["baselines"]}
    return {name: figures["all"]["ap"] for name, figures in detectors.items()}


def better_baselines(metrics: Metrics, model: str) -> list[str]:
    """Return a sentence for each plain baseline that does better than the run's model.

    Args:
        metrics: of the run.
        model: its name.
    """
    if metrics["task"] == "recognition":
        measure, own = "accuracy", metrics["model"]["accuracy"]["value"]
    else:
        measure, own = "AP of frames", metrics["model"]["all"]["ap"] or 0.0
    return [
        f"A plain model does better on these clips: {name}, {measure} {value:.3f} (the {model}: "
        f"{own:.3f})."
        for name, value in baseline_values(metrics).items()
        if value is not None and value > own
    ]
