"""The threshold of alarms: counted by hand, on footage that comes after it, and in the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import as_json, avarnet
from hypothesis import given, settings
from hypothesis import strategies as st

from features import Features, Recipe, Store, pack
from manifests import Clip
from train import Config, Predictor, Run, TrainError, calibrate, train_run
from train.evaluation.alarms import threshold_for

RECIPE = Recipe(0.25, "fp32", {"video": {"features": 4}}, {})
LONGEST = 40  # snippets of 0.25 s in an alarm of 10 s


def alarms(clips: list[list[float]], threshold: float, longest: int = LONGEST) -> int:
    """Count alarms as they are raised, snippet by snippet."""
    count = 0
    for scores in clips:
        left = 0  # snippets that the alarm may still last
        for score in scores:
            if score < threshold:
                left = 0
                continue
            if left == 0:
                count, left = count + 1, longest
            left -= 1
    return count


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=30), min_size=1, max_size=4),
    st.integers(0, 12),
)
@settings(max_examples=200, deadline=None)
def test_the_lowest_threshold_with_so_few_alarms(clips: list[list[int]], most: int) -> None:
    """An alarm lasts three snippets here; every score is tried as a threshold, from the top."""
    expected: tuple[float | None, int] = (None, 0)
    for threshold in sorted({score for own in clips for score in own}, reverse=True):
        count = alarms(clips, threshold, longest=3)
        if count > most:
            break
        expected = (threshold, count)
    scores = [np.array(own, np.float32) for own in clips]
    threshold, count = threshold_for(scores, 10 / 3, most)
    assert count == expected[1]
    if expected[0] is None:
        assert threshold > max(score for own in clips for score in own)
    else:
        assert threshold == expected[0]


def test_footage_that_comes_after_has_about_as_many_alarms() -> None:
    """Scores of one kind, 20 hours to choose and 200 to count; 60 alarms vary by an eighth."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=220 * 14_400 + 8)
    scores = np.convolve(noise, np.ones(8) / 8, "valid").astype(np.float32)[: 220 * 14_400]
    known, later = scores[: 20 * 14_400], scores[20 * 14_400 :]
    threshold, count = threshold_for([known], 0.25, 60)
    assert count <= 60
    assert 0.7 * 3 < alarms([later.tolist()], threshold) / 200 < 1.4 * 3


def clip(kind: int, seed: int, length: int = 12) -> Features:
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 1, (length, 4))
    rows[:, 0] += 1.5 * kind
    return Features(
        {"video": rows.astype(np.float16)}, {"video": np.ones(length, bool)}, 0.25, length / 4
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    names = ("Normal", "Crash")
    clips = [Clip(f"c{n}", "x.mp4", (names[n % 2],), split="train") for n in range(24)]
    pack(tmp_path / "store", ((c.id, clip(n % 2, n)) for n, c in enumerate(clips)), RECIPE)
    config = Config(channels=4, layers=1, epochs=2, starts=1, causal=True)
    return train_run(clips, Store(tmp_path / "store"), tmp_path / "run", config)


@pytest.fixture
def camera(tmp_path: Path) -> Store:
    """A quarter of an hour of a camera's footage."""
    pack(tmp_path / "camera", ((f"hour-{n}", clip(0, 100 + n, 900)) for n in range(4)), RECIPE)
    return Store(tmp_path / "camera")


def test_predict_uses_it(run: Run, camera: Store) -> None:
    output = avarnet("calibrate", run.path, camera.path, "--false-alarms-per-hour", 40)
    chosen = json.loads((run.path / "calibration.json").read_text())
    assert f"alarms at scores of {chosen['threshold']:.4f} or more: {chosen['alarms']}" in output
    assert (chosen["hours"], chosen["clips"]) == (0.25, 4)
    assert chosen["low"] < chosen["alarms"] / 0.25 < chosen["high"]
    # an exact Poisson interval (Garwood 1936) of ten events is 4.80 to 18.39
    assert chosen["alarms"] == 10
    assert (chosen["low"], chosen["high"]) == pytest.approx((4 * 4.795, 4 * 18.390), abs=0.01)
    scores = {i: Predictor(run)(camera[i]).anomaly.tolist() for i in camera}
    assert alarms(list(scores.values()), chosen["threshold"]) == 10
    rows = as_json("predict", run.path, "--store", camera.path)
    for row in rows:
        inside = [
            any(found["start"] <= t / 4 < found["end"] for found in row["intervals"])
            for t in range(900)
        ]
        assert inside == [score >= chosen["threshold"] for score in scores[row["video"]]]
    (run.path / "calibration.json").unlink()
    assert Run.load(run.path).interval_settings == run.hysteresis


def test_what_cannot_be_calibrated(run: Run, camera: Store, tmp_path: Path) -> None:
    command = ("calibrate", run.path, camera.path, "--false-alarms-per-hour")
    output = avarnet(*command, 0.5, code=1)
    assert (
        "0.25 hours of footage are too few for 0.5 false alarms an hour: give at least 2 " in output
    )
    assert "expected more than 0" in avarnet(*command, 0, code=1)
    other = Recipe(0.25, "bf16", {"video": {"features": 4}}, {})
    pack(tmp_path / "other", [("c", clip(0, 1))], other)
    with pytest.raises(TrainError, match="not of the recipe"):
        calibrate(run, Store(tmp_path / "other"), 1.0)
    (run.path / "calibration.json").write_text('{"threshold": "high"}')
    with pytest.raises(
        TrainError, match=r"calibration.json is damaged \(what it has for threshold"
    ):
        Run.load(run.path)
