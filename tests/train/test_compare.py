"""Comparing two runs on the same clips."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from small import RECIPE

from train import Config, Run, TrainError, compare_runs


def judged(path: Path, right: dict[str, bool], task: str = "recognition") -> Path:
    """A run's folder as `evaluate` leaves it, with so many right answers."""
    path.mkdir()
    Run(
        path,
        Config(task=task, streams=("video",), layers=1),
        ["a", "b"],
        {},
        [],
        RECIPE,
        {},
        [],
        [],
    ).save()
    with open(path / "predictions.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["clip", "label", "predicted"])
        table.writerows([clip, "a", "a" if good else "b"] for clip, good in right.items())
    return path


def test_a_better_run_and_an_equal_one(tmp_path: Path) -> None:
    clips = [f"c{n}" for n in range(100)]
    weak = judged(tmp_path / "weak", {c: n < 60 for n, c in enumerate(clips)})
    strong = judged(tmp_path / "strong", {c: n < 80 for n, c in enumerate(clips)})
    equal = judged(tmp_path / "equal", {c: 5 <= n < 65 for n, c in enumerate(clips)})
    better = compare_runs(weak, strong)
    assert better["accuracy"] == pytest.approx([0.6, 0.8])
    assert (better["only_one"], better["only_other"]) == (0, 20)
    assert better["p"] == pytest.approx(2 * 0.5**20)
    assert 0.1 < better["difference"]["low"] < 0.2 < better["difference"]["high"] < 0.3
    same = compare_runs(weak, equal)
    assert same["p"] == 1.0
    assert same["difference"]["low"] < 0 < same["difference"]["high"]
    assert compare_runs(weak, weak)["p"] == 1.0


def test_equals_are_rarely_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    told_apart = 0
    for number in range(40):
        runs = [
            judged(
                tmp_path / f"{number}-{side}",
                {f"c{n}": bool(rng.random() < 0.6) for n in range(80)},
            )
            for side in range(2)
        ]
        told_apart += compare_runs(*runs)["p"] < 0.05
    assert told_apart <= 6  # 2 expected


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    one = judged(tmp_path / "one", {"a": True})
    with pytest.raises(TrainError, match="no held-out clip in common"):
        compare_runs(one, judged(tmp_path / "two", {"b": True}))
    with pytest.raises(TrainError, match="only recognition can be compared"):
        compare_runs(one, judged(tmp_path / "three", {"a": True}, "detection"))
    (one / "predictions.csv").unlink()
    with pytest.raises(TrainError, match="avarnet evaluate"):
        compare_runs(one, one)
    with pytest.raises(TrainError, match="no finished run"):
        compare_runs(tmp_path / "none", one)
