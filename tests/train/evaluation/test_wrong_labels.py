"""Labels that may be wrong: the definition, cleanlab's result, and labels made wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command import avarnet
from hypothesis import given, settings
from hypothesis import strategies as st

from features import Features, Recipe, Store, pack
from manifests import Clip, Interval
from train import Config, train_run
from train.evaluation.wrong_labels import likely_wrong_labels
from train.inference import ClipPrediction

CLASSES = ["a", "b", "c"]
# cleanlab 2.9.0: find_label_issues(given, p, filter_by="confident_learning") of `drawn`
CLEANLAB = [24, 30, 37]


def listed(given: list[int], p: list[list[float]]) -> dict[int, str]:
    """Return what is found: number of a clip -> its likely class, in order."""
    nothing = np.zeros((0, 3), np.float32)
    clips = [
        ClipPrediction(str(i), CLASSES[own], "", np.array(row), nothing)
        for i, (own, row) in enumerate(zip(given, p, strict=True))
    ]
    return {int(one["clip"]): one["likely"] for one in likely_wrong_labels(clips, CLASSES)}


def by_the_definition(given: list[int], p: list[list[float]]) -> dict[int, str]:
    """Equations 1 and 2 of Northcutt et al., one clip after the other."""
    thresholds = {}
    for j in set(given):
        own = [row[j] for label, row in zip(given, p, strict=True) if label == j]
        thresholds[j] = sum(own) / len(own)
    found = {}
    for i, (label, row) in enumerate(zip(given, p, strict=True)):
        sure = [j for j, threshold in thresholds.items() if row[j] >= threshold - 1e-12]
        if sure and max(sure, key=lambda j: row[j]) != label and max(row) > row[label]:
            found[i] = CLASSES[max(sure, key=lambda j: row[j])]
    return found


@given(st.integers(0, 10_000), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_it_is_the_definition(seed: int, clips: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, clips).tolist()
    p = rng.dirichlet(np.full(3, 0.6), clips).tolist()
    found = listed(labels, p)
    assert found == by_the_definition(labels, p)
    surest = [p[i][CLASSES.index(name)] - p[i][labels[i]] for i, name in found.items()]
    assert surest == sorted(surest, reverse=True)


def test_it_is_what_cleanlab_finds() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 40)
    p = (rng.dirichlet(np.full(3, 0.6), 40) + np.eye(3)[labels] * 0.6) / 1.6
    assert sorted(listed(labels.tolist(), p.tolist())) == CLEANLAB


def clip(kind: int, seed: int) -> Features:
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 1, (10, 4))
    rows[:, kind] += 2
    return Features({"video": rows.astype(np.float16)}, {"video": np.ones(10, bool)}, 0.25, 2.5)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["recognition", "detection"])
def test_labels_that_were_made_wrong_are_found(tmp_path: Path, task: str) -> None:
    names = ["Crash", "Normal"]
    recipe = Recipe(0.25, "fp32", {"video": {"features": 4}}, {})
    pack(tmp_path / "store", ((f"c{n}", clip(n % 2, n)) for n in range(60)), recipe)
    wrong = {"c7", "c20", "c33", "c46", "c59"}
    clips = []
    for n in range(60):
        label = names[(n + (f"c{n}" in wrong)) % 2]
        intervals = () if label == "Normal" else (Interval(0, 2.5),)
        clips.append(Clip(f"c{n}", "x.mp4", (label,), intervals))
    store = Store(tmp_path / "store")
    config = Config(task=task, channels=8, epochs=8, folds=3)
    run = train_run(clips, store, tmp_path / "run", config)
    output = " ".join(avarnet("evaluate", run.path).split())
    found = [one["clip"] for one in run.evaluation()["wrong_labels"]]
    assert len(wrong.intersection(found)) >= 4
    assert len(found) <= 6
    assert f"labels that may be wrong: {len(found)} ({found[0]}: " in output
    page = (run.path / "report.html").read_text()
    assert all(f"<tr><td>{clip_id}</td>" in page for clip_id in found)
