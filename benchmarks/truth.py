"""Does training with the default settings learn what there is to learn, and what plain models do?

Sets of features whose answer is known: places of their own, slow drift and noise, in which a short
event adds a fixed direction to the rows of both streams. What decides is

event       which of four events there is, 5 snippets of 40; or 7 of 650 (`event-long`); or faintly
            throughout the clip (`throughout`)
order       which of two events comes first
weak        detection: an event in a twentieth of each anomalous clip, among others that are none;
            in places that differ much (`weak-scenes`); or for 3 snippets (`weak-short`)

Beside the default stand the plain baselines of `evaluate`, trained on the same clips: logistic
regression, and attention pooling or a ranker of snippets. Figures: accuracy, or AP of frames; mean
and worst of the seeds, each a single model, and seconds a training.

Settings are chosen on data seeds 0 to 9; those from 100 on are for figures that are reported.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

sys.path[0] = str(Path(__file__).parents[1])  # a script beside this one has the name of a package

from features import Features, Recipe, Store, Writer  # noqa: E402
from manifests import Clip, Interval  # noqa: E402
from train import Config, evaluate_run, train_run  # noqa: E402
from train.evaluation.figures import DetectionFigures, RecognitionFigures  # noqa: E402

STEP = 0.25  # seconds


class Kind(NamedTuple):
    """How a set is made: clips, lengths in snippets, the event's length and strength, the places'
    deviation; and which of `task` it is."""

    task: str
    train: int
    test: int
    lengths: tuple[int, int]
    event: float  # snippets, or a share of the clip, at most 1
    strength: float
    place: float


SETS = {
    "event": Kind("event", 60, 200, (30, 50), 5, 5.0, 1.0),
    "event-long": Kind("event", 80, 100, (600, 700), 7, 6.0, 1.0),
    "throughout": Kind("event", 60, 200, (30, 50), 1.0, 2.0, 1.0),
    "order": Kind("order", 60, 200, (30, 50), 5, 6.0, 1.0),
    "weak": Kind("weak", 300, 150, (40, 240), 0.05, 4.0, 0.7),
    "weak-scenes": Kind("weak", 300, 150, (60, 400), 0.05, 4.0, 2.0),
    "weak-short": Kind("weak", 300, 150, (40, 320), 3, 4.0, 0.7),
}


class Example(NamedTuple):
    """Rows (T, D) of both streams, the class, and (T,) true where the anomaly is."""

    rows: dict[str, NDArray[np.float16]]
    label: int
    anomalous: NDArray[np.bool_]


def make(kind: Kind, seed: int) -> list[Example]:
    """Return the training clips and then the test clips of a set."""
    sizes = {"video": 48, "audio": 32} if kind.task == "weak" else {"video": 24, "audio": 16}
    rng = np.random.default_rng(seed)
    looks = {name: rng.normal(size=(6, size)) for name, size in sizes.items()}
    for name, look in looks.items():
        looks[name] = kind.strength * look / np.linalg.norm(look, axis=1, keepdims=True)
    examples = []
    for number in range(kind.train + kind.test):
        length = int(rng.integers(*kind.lengths, endpoint=True))
        rows = {name: _place(rng, length, size, kind.place) for name, size in sizes.items()}
        label = number % (4 if kind.task == "event" else 2)
        span = round(kind.event) if kind.event > 1 else max(2, round(kind.event * length))
        anomalous = np.zeros(length, bool)
        for which, streams, at in _events(rng, kind.task, label, length, span):
            for name in streams:
                rows[name][at : at + span] += looks[name][which]
            if kind.task == "weak" and which == 0:
                anomalous[at : at + span] = True
        halves = {name: values.astype(np.float16) for name, values in rows.items()}
        examples.append(Example(halves, label, anomalous))
    return examples


def _place(
    rng: np.random.Generator, length: int, size: int, deviation: float
) -> NDArray[np.float64]:
    """Return a place of its own, a drift that is forgotten within some ten snippets, and noise."""
    drift = rng.normal(size=(length, size))
    for t in range(1, length):
        drift[t] = 0.9 * drift[t - 1] + np.sqrt(1 - 0.9**2) * drift[t]
    noise = 0.5 * rng.normal(size=(length, size))
    return deviation * rng.normal(size=size) + drift + noise


def _events(
    rng: np.random.Generator, task: str, label: int, length: int, span: int
) -> list[tuple[int, tuple[str, ...], int]]:
    """Return number, streams and first snippet of the events of a clip."""
    both = ("video", "audio")
    if task == "order":
        first = int(rng.integers(length - 2 * span + 1))
        second = int(rng.integers(first + span, length - span + 1))
        times = (first, second) if label else (second, first)
        return [(0, (name,), at) for name, at in zip(both, times, strict=True)]
    kinds = [label] if task == "event" else [*rng.integers(1, 6, 2), *([0] if label else [])]
    return [(int(kind), both, int(rng.integers(length - span + 1))) for kind in kinds]


def write(kind: Kind, examples: list[Example], folder: Path) -> tuple[list[Clip], Store]:
    """Write a set into a store; return it with its manifest."""
    sizes = {name: {"features": rows.shape[1]} for name, rows in examples[0].rows.items()}
    clips = []
    with Writer(folder, Recipe(STEP, "fp32", sizes)) as writer:
        for number, one in enumerate(examples):
            length = len(one.anomalous)
            valid = {name: np.ones(length, bool) for name in one.rows}
            writer.add(f"c{number}", Features(one.rows, valid, STEP, length * STEP))
            edges = np.flatnonzero(np.diff(np.r_[0, one.anomalous, 0])).reshape(-1, 2) * STEP
            test = number >= kind.train
            clips.append(
                Clip(
                    f"c{number}",
                    f"c{number}.mp4",
                    (("Normal", "Crash")[one.label] if kind.task == "weak" else f"{one.label}",),
                    tuple(Interval(*edge) for edge in edges.tolist()) if test else None,
                    "test" if test else "train",
                    duration=length * STEP,
                    fps=1 / STEP,
                )
            )
    return clips, Store(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="*", help="; ".join(SETS))
    parser.add_argument("--seeds", type=int, default=5, help="of training")
    parser.add_argument("--data-seeds", type=int, nargs="+", default=[0], help="of the clips")
    parser.add_argument("--config", type=Path, help="TOML of settings, instead of the default's")
    options = parser.parse_args()
    columns = ("logistic", "pooling", "the default", "worst", "s a training")
    table = Table("set", "data seed", *columns)
    for name in options.sets or SETS:
        kind = SETS[name]
        task = "detection" if kind.task == "weak" else "recognition"
        for data_seed in options.data_seeds:
            found, rivals, seconds = [], [], []
            with tempfile.TemporaryDirectory() as temporary:
                clips, store = write(kind, make(kind, data_seed), Path(temporary) / "store")
                for seed in range(options.seeds):
                    config = Config.load(options.config, task=task, seed=seed)
                    began = time.perf_counter()
                    run = train_run(clips, store, Path(temporary) / f"run-{seed}", config)
                    seconds.append(time.perf_counter() - began)
                    metrics = evaluate_run(run, store)
                    (pooled,) = metrics["baselines"].values()
                    found.append(figure(metrics["model"]))
                    rivals.append((figure(metrics["linear"]), figure(pooled)))
            logistic, pooling = np.mean(rivals, axis=0)
            figures = [f"{value:.3f}" for value in (logistic, pooling, np.mean(found), min(found))]
            table.add_row(name, str(data_seed), *figures, f"{np.mean(seconds):.0f}")
    Console().print(table)


def figure(figures: RecognitionFigures | DetectionFigures) -> float:
    """Return the accuracy, or the AP of frames."""
    if "confusion" in figures:
        return figures["accuracy"]["value"]
    return figures["all"]["ap"] or 0.0


if __name__ == "__main__":
    main()
