"""`avarnet stress`, from videos to the table in the report."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import as_json, avarnet

from avarnet import pipelines
from avarnet.stress import stress
from extract import Cluster
from extract.impairments import impairments
from features import Recipe, Store
from manifests import Interval, assign_split, from_folders, read, write
from train import Config, Run, TrainError
from train.experiments.stress import CLEAN, judge_stress, read_stress
from train.inference import ClipPrediction

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(clips: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of videos, their manifest and store, and runs of recognition and detection."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(clips, folder / "videos")
    listed = []
    for clip in (c for c in from_folders(folder / "videos", folder).clips if "2" not in c.id):
        violent = clip.label in ("Explosion", "Brawling")
        events = (Interval(0.25, 0.75),) if violent else ()
        label = "Violence" if violent else "Normal"
        listed.append(replace(clip, labels=(label,), intervals=events))
    listed = assign_split(listed, test=0.5, val=0.25)
    write(folder / "m.jsonl", listed)
    pipelines.extract(listed, folder, folder / "store", recipe, cluster=Cluster(workers=1))
    store = Store(folder / "store")
    small = {"channels": 8, "epochs": 2, "starts": 1}
    pipelines.train(listed, store, folder / "folds", Config(folds=2, **small))  # type: ignore[arg-type]
    for name, settings in {
        "detection": {"task": "detection"},
        "picture": {"streams": ("video",)},
    }.items():
        pipelines.train(listed, store, folder / name, Config(**small, **settings))  # type: ignore[arg-type]
    return folder


def test_each_clip_is_read_again_and_the_report_shows_it(project: Path) -> None:
    run = project / "folds"
    evaluated = as_json("evaluate", run)
    found = as_json("stress", run, project / "m.jsonl")
    assert found == json.loads((run / "stress.json").read_text())
    assert list(found["conditions"]) == [CLEAN, *impairments("", 0)]
    assert len(found["conditions"]) == 1 + 3 * 4 + 3 + 3 + 2
    clean = found["conditions"][CLEAN]
    # read again, the clips are what the store has; both folds by the models that have not seen them
    assert clean["value"] == evaluated["model"]["accuracy"]["value"]
    assert clean["loss"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (found["clips"], found["left_out"]) == (8, {})
    for left in found["conditions"].values():
        assert left["loss"]["value"] == pytest.approx(clean["value"] - left["value"])
    avarnet("report", run)
    page = " ".join((run / "report.html").read_text().split())
    assert "babble, -5 dB" in page
    assert "8 held-out clips read again" in page


def test_clips_that_cannot_be_read_again_are_named_and_left_out(
    project: Path, tmp_path: Path
) -> None:
    run = Run.load(project / "detection")
    (split,) = run.splits
    broken, gone, *rest = sorted(split.test)
    clips = [clip for clip in read(project / "m.jsonl") if clip.id != gone]
    moved = tmp_path / "moved"
    for clip in clips:
        target = moved / clip.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project / clip.path, target)
        if clip.id == broken:
            target.write_bytes(b"no video")
    write(tmp_path / "m.jsonl", clips)
    output = avarnet("stress", run.path, tmp_path / "m.jsonl", "--root", moved, code=3)
    assert f"left out: {gone}: not in the manifest" in output
    assert f"left out: {broken}: " in output
    found = read_stress(run)
    assert found is not None
    assert (found["clips"], found["measure"]) == (len(rest), "AP")
    assert found["left_out"].keys() == {gone, broken}
    assert {run.labels[clip_id] for clip_id in rest} == {"normal"}  # so there is no AP
    assert found["conditions"][CLEAN] == {"value": None, "loss": None}
    assert "traffic-like noise, 10 dB" in output
    shutil.rmtree(moved)
    output = avarnet("stress", run.path, tmp_path / "m.jsonl", "--root", moved, code=1)
    assert f"none of the {len(split.test)} held-out clips can be read again; " in output
    assert read_stress(run) == found  # that of before


def test_a_run_that_hears_nothing_is_not_tried_with_noise(project: Path) -> None:
    progress: list[tuple[float, float]] = []
    found = stress(
        Run.load(project / "picture"),
        read(project / "m.jsonl"),
        project,
        progress=lambda done, total: progress.append((done, total)),
    )
    assert list(found["conditions"]) == [
        CLEAN,
        *("dark", "blurred", "frozen", "5 frames a second", "1 frame a second"),
    ]
    assert len(progress) == 6 * found["clips"]
    assert progress[-1][0] == pytest.approx(progress[-1][1])


def test_losses_are_counted(project: Path) -> None:
    run = Run.load(project / "folds")
    ids = [clip_id for split in run.splits for clip_id in split.test]
    nothing = np.zeros(0, np.float32)

    def predictions(wrong: int) -> list[ClipPrediction]:
        labels = [run.labels[i] for i in ids]
        taken = ["?"] * wrong + labels[wrong:]
        return [
            ClipPrediction(*one, nothing, nothing) for one in zip(ids, labels, taken, strict=True)
        ]

    found = judge_stress(run, {CLEAN: predictions(2), "dark": predictions(6)}, {"x": "gone"})
    conditions: dict[str, Any] = found["conditions"]  # type: ignore[assignment]
    assert [left["value"] for left in conditions.values()] == [0.75, 0.25]
    assert conditions["dark"]["loss"]["value"] == 0.5
    assert 0 < conditions["dark"]["loss"]["low"] < 0.5 < conditions["dark"]["loss"]["high"]
    (run.path / "stress.json").write_text("{")
    with pytest.raises(TrainError, match=r"stress\.json is damaged .* or delete it"):
        read_stress(run)
