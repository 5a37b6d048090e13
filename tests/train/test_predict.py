"""Predictions: long clips piece by piece, and what a stream contributes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features import Features, Recipe, Store, Writer
from manifests import Clip, Interval, assign_split
from train import Config, Predictor, Run, TrainError, train_run

RECIPE = Recipe(0.25, "fp32", {"video": {"features": 6}, "audio": {"features": 4}})


def clip(length: int, seed: int, loud: bool = False) -> Features:
    rng = np.random.default_rng(seed)
    rows = {
        "video": rng.normal(size=(length, 6)).astype(np.float16),
        "audio": rng.normal(3.0 * loud, 1.0, (length, 4)).astype(np.float16),
    }
    valid = {name: np.ones(length, bool) for name in rows}
    return Features(rows, valid, 0.25, length / 4 - 0.1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Clip], Store]:
    """Normal clips are silent; the anomalous ones are loud."""
    path = tmp_path_factory.mktemp("store")
    clips = []
    with Writer(path, RECIPE) as writer:
        for n in range(60):
            writer.add(f"c{n}", clip(12 + n % 5, n, loud=n % 2 == 1))
            label = "Crash" if n % 2 else "Normal"
            events = (Interval(0, 3.0),) if n % 2 else ()
            clips.append(Clip(f"c{n}", "x.mp4", (label,), intervals=events, fps=25))
    return assign_split(clips, test=0.3, val=0.2), Store(path)


def trained(world: tuple[list[Clip], Store], path: Path, **settings: object) -> Run:
    small = {"channels": 8, "stages": 2, "epochs": 30, "layers": 2, **settings}
    return train_run(*world, path, Config(**small))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(world: tuple[list[Clip], Store], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(world, tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize("task", ["recognition", "detection"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("model", ["mtcn", "linear"])
def test_a_long_clip_in_pieces_has_the_answer_of_the_whole(
    world: tuple[list[Clip], Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    causal: bool,
    model: str,
) -> None:
    run = trained(world, tmp_path / "run", task=task, causal=causal, model=model, epochs=2)
    long = clip(150, 7)
    whole = Predictor(run)(long)
    monkeypatch.setattr("train.predict.PIECE", 40)
    pieces = Predictor(run)(long)
    assert pieces.scores == pytest.approx(whole.scores, abs=1e-5)
    assert pieces.probabilities == pytest.approx(whole.probabilities, abs=1e-5)


def test_the_validation_chooses_what_an_interval_is(
    world: tuple[list[Clip], Store], run: Run
) -> None:
    assert run.normal == "Normal"
    assert run.chosen["balanced_accuracy"] == 1.0
    assert run.chosen["clips"] == len(run.splits[0].val)
    predictor = Predictor(Run.load(run.path))
    for clip_id in run.splits[0].test:
        prediction = predictor(world[1][clip_id])
        assert bool(prediction.intervals) == (run.labels[clip_id] == "Crash")
        assert all(a.label == "Crash" for a in prediction.intervals)
        assert all(0 <= a.start < a.end <= world[1][clip_id].duration for a in prediction.intervals)


def test_a_removed_stream_has_no_influence(run: Run) -> None:
    loud = clip(12, 1, loud=True)
    mute = replace(loud, valid={**loud.valid, "audio": np.zeros(12, bool)})
    predictor = Predictor(run)
    assert (predictor(loud, ["audio"]).scores == predictor(mute).scores).all()
    assert not np.allclose(predictor(loud, ["audio"]).scores, predictor(loud).scores)
    assert loud.valid["audio"].all()  # what was given is as it was


def test_a_stream_that_the_run_has_not_cannot_be_removed(run: Run) -> None:
    for without in (["sound"], "audio"):  # a text is its letters
        with pytest.raises(TrainError, match=r"no stream .* in the run; it has video, audio"):
            Predictor(run)(clip(9, 1), without)


def test_without_a_normal_class_there_are_no_intervals(
    world: tuple[list[Clip], Store], tmp_path: Path
) -> None:
    names = {"Normal": "calm", "Crash": "crash"}
    clips = [replace(c, labels=(names[c.label],)) for c in world[0]]
    run = train_run(clips, world[1], tmp_path / "run", Config(channels=8, epochs=1))
    prediction = Predictor(run)(clip(12, 1))
    assert (run.normal, prediction.anomaly, prediction.intervals) == (None, None, [])
    named = train_run(
        clips, world[1], tmp_path / "named", Config(channels=8, epochs=1, normal="calm")
    )
    assert Predictor(named)(clip(12, 1)).anomaly is not None
    with pytest.raises(TrainError, match="no clip is labelled quiet"):
        train_run(clips, world[1], tmp_path / "quiet", Config(epochs=1, normal="quiet"))
