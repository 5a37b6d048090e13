"""What is left of a run's predictions where a part of the clips is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import Features, Recipe, Store, Writer
from manifests import Clip, Interval, assign_split
from train import Config, Run, TrainError, evaluate_run, train_run
from train.data import Clips
from train.inference import has_test_clips

RECIPE = Recipe(0.25, "fp32", {"video": {"features": 4}, "audio": {"features": 4}})
LENGTH = 12


def clip(kind: int, seed: int) -> Features:
    """A clip whose class is in its sound alone, for the whole of the clip."""
    rng = np.random.default_rng(seed)
    rows = {name: rng.normal(0, 0.3, (LENGTH, 4)) for name in ("video", "audio")}
    rows["audio"][:, kind] += 2
    streams = {name: values.astype(np.float16) for name, values in rows.items()}
    return Features(streams, {n: np.ones(LENGTH, bool) for n in rows}, 0.25, LENGTH / 4)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Clip], Store]:
    path = tmp_path_factory.mktemp("store")
    clips = []
    with Writer(path, RECIPE) as writer:
        for n in range(80):
            writer.add(f"c{n}", clip(n % 2, n))
            label = ("Normal", "Crash")[n % 2]
            found = (Interval(0, LENGTH / 4),) if n % 2 else ()
            clips.append(Clip(f"c{n}", "x.mp4", (label,), found, group=f"street {n % 20}"))
    return assign_split(clips, test=0.5, val=0.2), Store(path)


@pytest.fixture(scope="module", params=["recognition", "detection"])
def run(
    world: tuple[list[Clip], Store],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Run:
    config = Config(task=request.param, channels=8, epochs=20)
    return train_run(*world, tmp_path_factory.mktemp("runs") / "run", config)


def impaired_store(store: Store, path: Path, without: str) -> Store:
    """The same clips where a stream is missing indeed."""
    with Writer(path, RECIPE) as writer:
        for clip_id, own in store.items():
            rows = {**own.streams, without: np.zeros((LENGTH, 4), np.float16)}
            valid = {**own.valid, without: np.zeros(LENGTH, bool)}
            writer.add(clip_id, Features(rows, valid, 0.25, LENGTH / 4))
    return Store(path)


def test_figures_are_those_of_a_store_that_lacks_it(
    world: tuple[list[Clip], Store], run: Run, tmp_path: Path
) -> None:
    def figure(store: Store) -> float:
        metrics = evaluate_run(run, store)
        if metrics["task"] == "recognition":
            return metrics["model"]["accuracy"]["value"]
        return metrics["model"]["all"]["ap"] or 0.0

    whole = figure(world[1])
    found = Run.load(run.path).evaluation()["robustness"]
    assert list(found) == [
        "25 % of snippets lost",
        "50 % of snippets lost",
        "without video",
        "without audio",
    ]
    for name in ("video", "audio"):
        left = found[f"without {name}"]
        assert left["value"] == pytest.approx(
            figure(impaired_store(world[1], tmp_path / name, name))
        )
        loss = left["loss"]
        assert loss is not None
        assert loss["value"] == pytest.approx(whole - left["value"])
        assert loss["low"] <= loss["value"] <= loss["high"]
    # the class is in the sound alone, in every snippet
    assert whole > 0.95
    heard, seen = (found[f"without {name}"]["loss"] for name in ("video", "audio"))
    assert heard is not None
    assert seen is not None
    assert heard["low"] <= 0.02
    assert seen["low"] > 0
    half = found["50 % of snippets lost"]["loss"]
    assert half is not None
    assert half["value"] < 0.1


@given(st.floats(0, 1), st.integers(0, 100))
def test_so_many_snippets_are_lost_in_all_streams(
    world: tuple[list[Clip], Store], share: float, seed: int
) -> None:
    whole = Clips(world[1], ["c0", "c1"], ["video", "audio"], {})
    less = whole.with_snippets_lost(share, seed)
    valid = less.batch([0, 1]).valid
    assert (valid["video"] == valid["audio"]).all()
    lost = min(round(share * LENGTH), LENGTH - 1)
    assert (LENGTH - valid["video"].sum(1) == lost).all()
    assert whole.batch([0, 1]).valid["video"].all()  # those are as they were


def test_a_run_without_held_out_clips(run: Run) -> None:
    assert has_test_clips(run)
    rest = replace(run, splits=[replace(split, test=[]) for split in run.splits])
    if run.config.task == "recognition":
        assert not has_test_clips(rest)  # it is judged by its validation clips
        return
    with pytest.raises(TrainError, match="mark some of the manifest's clips as test"):
        has_test_clips(rest)
