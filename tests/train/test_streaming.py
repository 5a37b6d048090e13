"""A stream's scores are those of the clip that it makes up so far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_stores import RECIPE, clip

from features import Features, Store, Writer
from manifests import Clip
from train import Config, LiveScorer, Predictor, Run, TrainError, train_run
from train.fitting import restarts
from train.models.network import AVARNet


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Clip], Store]:
    path = tmp_path_factory.mktemp("store")
    with Writer(path, RECIPE) as writer:
        for number in range(24):
            writer.add(f"c{number}", clip(12, number))
    sides = ("train", "train", "val", "test")
    clips = [Clip(f"c{n}", "x.mp4", ("ab"[n % 2],), split=sides[n // 2 % 4]) for n in range(24)]
    return clips, Store(path)


@pytest.fixture(scope="module", autouse=True)
def overconfident() -> Iterator[None]:
    """What is learned of noise is as sure as if it were true."""

    def halve(model: AVARNet, *_: object) -> float:
        model.temperature.fill_(2)
        return 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restarts, "fit_temperature", halve)
        yield


def trained(world: tuple[list[Clip], Store], path: Path, **changes: Any) -> Run:
    config = Config(**{"channels": 8, "epochs": 2, "causal": True, "seeds": 2, **changes})
    return train_run(*world, path / "run", config)


def part(whole: Features, length: int) -> Features:
    return replace(
        whole,
        streams={name: rows[:length] for name, rows in whole.streams.items()},
        valid={name: valid[:length] for name, valid in whole.valid.items()},
    )


def scores(scorer: LiveScorer, whole: Features) -> np.ndarray:
    return np.stack(
        [
            scorer(
                {name: rows[t] for name, rows in whole.streams.items()},
                {name: bool(valid[t]) for name, valid in whole.valid.items()},
            )
            for t in range(len(whole.streams["video"]))
        ]
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": 4, "stages": 3},
        {"layers": 2, "context_dropout": 0.5},
        {"fusion": "gated"},
        {"fusion": "late"},
        {"fusion": "cross"},
        {"model": "tcn", "streams": ("audio",)},
        {"model": "linear"},
        {"model": "lstm"},
        {"model": "transformer"},
    ],
    ids=str,
)
def test_every_score_is_that_of_the_clip_so_far(
    world: tuple[list[Clip], Store], tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = trained(world, tmp_path, **changes)
    predictor, scorer, whole = Predictor(run), LiveScorer(run), clip(70, 99)
    live = scores(scorer, whole)
    assert np.allclose(live, predictor(whole).scores, atol=1e-5)
    for length in (1, 2, 33):
        assert np.allclose(live[length - 1], predictor(part(whole, length)).scores[-1], atol=1e-5)
    scorer.restart()
    assert np.array_equal(scores(scorer, whole), live)


@pytest.fixture(scope="module")
def run(world: tuple[list[Clip], Store], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(world, tmp_path_factory.mktemp("run"), layers=3)


@given(st.integers(1, 60), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_it_holds_for_any_stream(run: Run, length: int, seed: int) -> None:
    whole = clip(length, seed)
    assert np.allclose(scores(LiveScorer(run), whole), Predictor(run)(whole).scores, atol=1e-5)


def test_it_remembers_until_it_is_restarted(run: Run) -> None:
    scorer, whole = LiveScorer(run), clip(20, 3)
    first, again = scores(scorer, whole), scores(scorer, whole)
    assert not np.allclose(first, again, atol=1e-5)


def test_runs_that_cannot_score_a_stream(world: tuple[list[Clip], Store], tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"not causal.*--causal"):
        LiveScorer(trained(world, tmp_path, causal=False))


def test_imported_features_cannot_be_watched(run: Run) -> None:
    source = {"video": {"weights": "imported", "name": "i3d"}}
    imported = replace(run, recipe=replace(RECIPE, source=source))
    with pytest.raises(TrainError, match=r"imported \(video\)"):
        LiveScorer(imported)
