"""Kills (-9) of a training: resumed as often as it takes, it is as one that nothing stopped."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from kills import run_and_kill
from small_stores import RECIPE, clip

import train.fitting.restarts
from features import Store, pack
from manifests import Clip, assign_split, read, write
from train import Config, Run, TrainError, train_run

pytestmark = pytest.mark.slow
CONFIG = Config(channels=8, epochs=5, patience=5, folds=2, starts=2)


def train_or_resume(folder: Path) -> None:
    train.fitting.restarts.SAVE_SECONDS = 0.0  # a checkpoint after each epoch
    clips, store = read(folder / "m.jsonl"), Store(folder / "store")
    train_run(clips, store, folder / "run", CONFIG, resume=(folder / "run").exists())


def result(run: Path) -> dict[str, bytes]:
    names = ("config.toml", "metrics.jsonl", "model-0.safetensors", "model-1.safetensors")
    return {name: (run / name).read_bytes() for name in names}


def finished(run: Path) -> bool:
    return (run / "run.json").exists() and not (run / "unfinished.json").exists()


def prepare(folder: Path) -> None:
    pack(folder / "store", ((f"c{n}", clip(12, n)) for n in range(24)), RECIPE)
    clips = [Clip(f"c{n}", "x.mp4", ("ab"[n % 2],)) for n in range(24)]
    write(folder / "m.jsonl", assign_split(clips, test=0.25, val=0.25))


@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=pytest.mark.soak)])
def test_killed_at_any_moment(kills: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(kills)
    prepare(tmp_path)
    clips = read(tmp_path / "m.jsonl")
    started = time.monotonic()
    train_run(clips, Store(tmp_path / "store"), tmp_path / "whole", CONFIG)
    usual = time.monotonic() - started
    right, killed, number = result(tmp_path / "whole"), 0, 0
    while killed < kills:
        killed += run_and_kill(train_or_resume, (tmp_path,), rng.uniform(0, usual))
        if killed == kills and not finished(tmp_path / "run"):
            run_and_kill(train_or_resume, (tmp_path,), 100)
        if finished(tmp_path / "run"):
            assert len(Run.load(tmp_path / "run").models) == 2
            assert result(tmp_path / "run") == right
            assert not list((tmp_path / "run").glob("*checkpoint*"))
            (tmp_path / "run").rename(tmp_path / f"run-{number}")
            number += 1


def test_killed_when_all_was_done_but_tidying(tmp_path: Path) -> None:
    prepare(tmp_path)
    clips, store = read(tmp_path / "m.jsonl"), Store(tmp_path / "store")
    run = train_run(clips, store, tmp_path / "run", CONFIG)
    right = result(run.path)
    run.save("unfinished.json")
    (run.path / "checkpoint-0.safetensors").write_bytes(b"left")
    again = train_run(clips, store, run.path, CONFIG, resume=True)
    assert again.weights == run.weights
    assert result(run.path) == right
    assert {file.name for file in run.path.iterdir()}.isdisjoint(
        {"unfinished.json", "checkpoint-0.safetensors"}
    )
    with pytest.raises(TrainError, match="holds a run already"):
        train_run(clips, store, run.path, CONFIG, resume=True)
