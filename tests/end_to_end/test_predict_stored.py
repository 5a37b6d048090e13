"""Predictions of clips of a store, for runs whose features no network here makes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from command import as_json, avarnet

from features import Store, import_npy
from manifests import Clip, assign_split
from train import Config, Predictor, Run, train_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of imported features; the last of its store's clips is damaged."""
    folder = tmp_path_factory.mktemp("imported")
    rng = np.random.default_rng(0)
    for n in range(24):
        np.save(folder / f"c{n:02}.npy", rng.normal(n % 2, 1, (9, 4)))
    import_npy(folder / "store", {"rgb": f"{folder}/{{clip}}.npy"}, 16 / 24, "for a test")
    clips = [Clip(f"c{n:02}", "x.mp4", (("Normal", "Crash")[n % 2],)) for n in range(24)]
    config = Config(channels=4, layers=1, epochs=1, starts=1)
    store = Store(folder / "store")
    trained = train_run(assign_split(clips, test=0.3, val=0.3), store, folder / "run", config)
    shard, _ = store.locate("c23")
    content = bytearray(shard.path.read_bytes())
    rows = store["c23"].streams["rgb"].tobytes()
    content[content.index(rows)] ^= 1
    shard.path.write_bytes(content)
    return trained


def test_a_run_without_networks_refuses_videos(run: Run, tmp_path: Path) -> None:
    output = avarnet("predict", run.path, tmp_path / "a.mp4", code=1)
    assert "cannot read videos: it was trained on imported features (rgb)" in output
    assert f"avarnet predict {run.path} --store STORE" in output
    assert "give videos, or --store STORE" in avarnet("predict", run.path, code=2)


def test_clips_of_a_store_are_scored(run: Run) -> None:
    (where,) = run.stores
    store, predictor = Store(where), Predictor(run)
    rows = as_json("predict", run.path, "--store", where, code=3)
    assert [row["video"] for row in rows] == list(store)
    for row in rows:
        if row["video"] == "c23":
            assert "damaged" in row["error"]
            continue
        expected = predictor(store[row["video"]])
        assert row["probabilities"] == pytest.approx(expected.probabilities)
        assert row["label"] == expected.label
    listed = avarnet("predict", run.path, "c03", "c01", "c03x", "--store", where, "--csv", code=3)
    assert {row["video"] for row in csv.DictReader(listed.splitlines())} == {"c03", "c01"}
    output = avarnet("predict", run.path, "c01", "--store", where)
    assert output.startswith("c01: ")


def test_a_store_of_other_features_is_refused(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", np.zeros((9, 4)))
    import_npy(tmp_path / "store", {"rgb": f"{tmp_path}/{{clip}}.npy"}, 16 / 24, "another")
    output = avarnet("predict", run.path, "--store", tmp_path / "store", code=1)
    assert "not of the recipe" in output
