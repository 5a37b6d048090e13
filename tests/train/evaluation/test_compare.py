"""Comparing two runs on the same clips."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import avarnet
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm, t
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score
from small_stores import RECIPE

from manifests import Clip, Interval
from train import Config, Run, TrainError, compare_runs
from train.splits import Split

pytestmark = pytest.mark.slow

Scores = NDArray[np.float32]
DRAWS = 200


@pytest.fixture(scope="module", autouse=True)
def few_draws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.evaluation.compare.BOOTSTRAPS", DRAWS)
        patch.setattr("train.evaluation.compare.PERMUTATIONS", DRAWS)
        yield


def judged(
    path: Path,
    right: dict[str, bool],
    task: str = "recognition",
    groups: dict[str, str] | None = None,
) -> Path:
    """A run's folder as `evaluate` leaves it, with so many right predictions."""
    path.mkdir()
    classes = ["a", "b"] if task == "recognition" else ["normal", "anomaly"]
    Run(
        path,
        Config(task=task, streams=("video",), layers=1),
        classes,
        dict.fromkeys(right, classes[0]),
        [Split([], [], list(right))],
        RECIPE,
        {"video": 3},
        [],
        [],
        {clip: Clip(clip, "x.mp4", ("A",), ()) for clip in right} if task == "detection" else {},
        groups=groups or {},
    ).save()
    with open(path / "predictions.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["clip", "label", "predicted"])
        table.writerows([clip, "a", "a" if good else "b"] for clip, good in right.items())
    return path


def test_a_difference_in_one_recording_is_not_significant(tmp_path: Path) -> None:
    """Twenty clips of one recording that only one run has right: it is as likely the other's."""
    clips = [f"c{n}" for n in range(100)]
    groups = {clip: f"recording {n // 20}" for n, clip in enumerate(clips)}
    one = judged(tmp_path / "one", {c: n < 60 for n, c in enumerate(clips)}, groups=groups)
    other = judged(tmp_path / "other", {c: n < 80 for n, c in enumerate(clips)}, groups=groups)
    compared = compare_runs(one, other)
    assert f"p: {compared['test']}" in avarnet("compare", one, other)
    assert compared["test"] == "permutations of the runs, recording by recording"
    found = compared["accuracy"]
    assert found["p"] == 1.0
    assert found["difference"]["low"] <= 0 < 0.2 < found["difference"]["high"]


def test_a_better_run_and_an_equal_one(tmp_path: Path) -> None:
    clips = [f"c{n}" for n in range(100)]
    weak = judged(tmp_path / "weak", {c: n < 60 for n, c in enumerate(clips)})
    strong = judged(tmp_path / "strong", {c: n < 80 for n, c in enumerate(clips)})
    equal = judged(tmp_path / "equal", {c: 5 <= n < 65 for n, c in enumerate(clips)})
    better = compare_runs(weak, strong)
    assert better["test"] == "McNemar's exact test"
    accuracy = better["accuracy"]
    assert accuracy["values"] == pytest.approx([0.6, 0.8])
    assert (better["only_one"], better["only_other"]) == (0, 20)
    assert accuracy["p"] == pytest.approx(2 * 0.5**20)
    assert 0.1 < accuracy["difference"]["low"] < 0.2 < accuracy["difference"]["high"] < 0.3
    same = compare_runs(weak, equal)["accuracy"]
    assert same["p"] == 1.0
    assert same["difference"]["low"] < 0 < same["difference"]["high"]
    assert compare_runs(weak, weak)["accuracy"]["p"] == 1.0


def test_equal_runs_rarely_differ_significantly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    significant = 0
    for number in range(40):
        runs = [
            judged(
                tmp_path / f"{number}-{side}",
                {f"c{n}": bool(rng.random() < 0.6) for n in range(80)},
            )
            for side in range(2)
        ]
        significant += compare_runs(*runs)["accuracy"]["p"] < 0.05
    assert significant <= 6  # 2 expected


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    one = judged(tmp_path / "one", {"a": True})
    with pytest.raises(TrainError, match="no held-out clip in common"):
        compare_runs(one, judged(tmp_path / "two", {"b": True}))
    with pytest.raises(TrainError, match=r"recognition, .*three of detection"):
        compare_runs(one, judged(tmp_path / "three", {"a": True}, "detection"))
    (one / "predictions.csv").unlink()
    with pytest.raises(TrainError, match="avarnet evaluate"):
        compare_runs(one, one)
    with pytest.raises(TrainError, match="no finished run"):
        compare_runs(tmp_path / "none", one)


def detector(path: Path, clips: list[Clip], scores: list[Scores], step: float = 0.5) -> Path:
    """A run's folder as `evaluate` leaves it, with these scores of the snippets."""
    path.mkdir(parents=True)
    Run(
        path,
        Config(task="detection", streams=("video",), layers=1),
        ["normal", "anomaly"],
        {clip.id: "anomaly" if clip.intervals else "normal" for clip in clips},
        [Split([], [], [clip.id for clip in clips])],
        replace(RECIPE, snippet_seconds=step),
        {"video": 3},
        [],
        [],
        {clip.id: clip for clip in clips},
    ).save()
    with open(path / "predictions.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["clip", "label", "score"])
        for clip, own in zip(clips, scores, strict=True):
            table.writerows([clip.id, clip.label, f"{score:.9g}"] for score in own)
    return path


def videos(rng: np.random.Generator, count: int) -> tuple[list[Clip], list[Scores]]:
    """Clips, and whether each snippet of them is anomalous."""
    clips, truth = [], []
    for n in range(count):
        length = int(rng.integers(20, 40))
        first = int(rng.integers(0, length - 6))
        events = (Interval(first / 2, (first + 6) / 2),) if n % 2 else ()
        clips.append(Clip(f"c{n:02}", "x.mp4", ("B1" if events else "A",), events, fps=4.0))
        truth.append(np.zeros(length, np.float32))
        truth[-1][first : first + 6] = n % 2
    return clips, truth


def noisy(rng: np.random.Generator, truth: list[Scores], noise: float) -> list[Scores]:
    return [(own + rng.normal(0, noise, len(own))).astype(np.float32) for own in truth]


def test_a_better_detector(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    clips, truth = videos(rng, 40)
    weak, strong = noisy(rng, truth, 1.0), noisy(rng, truth, 0.6)
    one = detector(tmp_path / "weak", clips, weak)
    found = compare_runs(one, detector(tmp_path / "strong", clips, strong))
    # the figures and their interval by the long way: every frame, clips drawn one by one
    real = [np.repeat(own, 2) for own in truth]
    draws = []
    for chosen in [range(40), *np.random.default_rng(0).integers(0, 40, (DRAWS, 40))]:
        labels = np.concatenate([real[i] for i in chosen])
        values = []
        for predicted in (weak, strong):
            own = np.concatenate([np.repeat(predicted[i], 2) for i in chosen])
            precision, recall, _ = precision_recall_curve(labels, own)
            values.append((auc(recall, precision), roc_auc_score(labels, own)))
        draws.append(np.subtract(values[1], values[0]))
    # as wide as 40 recordings ask for
    wider = t.ppf(0.975, 39) / norm.ppf(0.975) * np.sqrt(40 / 39)
    low, high = draws[0] + wider * (np.percentile(draws[1:], [2.5, 97.5], axis=0) - draws[0])
    for k, name in enumerate(("ap", "roc_auc")):
        difference = {"value": draws[0][k], "low": low[k], "high": high[k]}
        assert found[name]["difference"] == pytest.approx(difference)
        assert found[name]["p"] < 0.01
    assert (found["clips"], found["frames"]) == (40, sum(map(len, real)))


@given(st.integers(0, 9999), st.booleans())
@settings(max_examples=8, deadline=None)
def test_swapped_runs_differ_the_other_way_and_a_run_not_from_itself(seed: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    clips, truth = videos(rng, 6)
    predicted = [[own.round(int(not tied)) for own in noisy(rng, truth, 0.8)] for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        a, b = (detector(Path(folder, str(n)), clips, own) for n, own in enumerate(predicted))
        # a run that says the same on another scale ranks the same
        scaled = detector(Path(folder, "c"), clips, [3 * own - 1 for own in predicted[0]])
        forward, reverse = compare_runs(a, b), compare_runs(b, a)
        same = compare_runs(a, scaled)
    for name in ("ap", "roc_auc"):
        one, other = forward[name], reverse[name]
        assert one["values"] == other["values"][::-1]
        assert one["p"] == other["p"]
        d, e = one["difference"], other["difference"]
        assert [d["value"], d["low"], d["high"]] == pytest.approx(
            [-e["value"], -e["high"], -e["low"]]
        )
        assert same[name]["p"] == 1
        assert list(same[name]["difference"].values()) == [0, 0, 0]


def test_equal_detectors_rarely_differ_significantly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    significant = np.zeros(2)
    for number in range(40):
        clips, truth = videos(rng, 12)
        runs = [
            detector(tmp_path / f"{number}-{side}", clips, noisy(rng, truth, 0.8))
            for side in range(2)
        ]
        found = compare_runs(*runs)
        significant += [found[name]["p"] < 0.05 for name in ("ap", "roc_auc")]
    assert (significant <= 6).all()  # 2 expected


def test_other_snippets_of_the_same_frames_can_be_compared(tmp_path: Path) -> None:
    clips = [Clip("a", "x.mp4", ("B1",), (Interval(1.0, 2.0),), fps=4.0)]
    one = detector(tmp_path / "one", clips, [np.array([0, 0, 1, 1, 0], np.float32)])
    other = detector(tmp_path / "other", clips, [np.array([0, 0.5, 0.1], np.float32)], step=1.0)
    assert compare_runs(one, other)["frames"] == 10
    assert compare_runs(one, other)["ap"]["values"] == [1, 1]
    longer = detector(tmp_path / "longer", clips, [np.zeros(9, np.float32)])
    with pytest.raises(TrainError, match="a has 10 in one, 18 in the other"):
        compare_runs(one, longer)


def test_detectors_that_were_judged_by_something_else(tmp_path: Path) -> None:
    clips, truth = videos(np.random.default_rng(0), 4)
    one = detector(tmp_path / "one", clips, truth)
    fewer = detector(tmp_path / "fewer", clips[:3], truth[:3])
    with pytest.raises(TrainError, match=r"same clips: only .*one has 1 \(c03\)"):
        compare_runs(fewer, one)
    for name, change in (("intervals", (Interval(0.0, 1.0),)), ("fps", 5.0)):
        changed = [*clips[:3], replace(clips[3], **{name: change})]
        with pytest.raises(TrainError, match=rf"annotations: the {name} of 1 clips differ \(c03\)"):
            compare_runs(one, detector(tmp_path / name, changed, truth))
