"""What the commands do, from Python."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import ModuleType

import pytest

from avarnet import pipelines, stores, video_predictions
from extract import Cluster, footage
from extract.job.timings import TIMINGS
from features import Recipe, Store
from manifests import ManifestError, assign_split, from_folders
from train import Config

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("module", [pipelines, stores, video_predictions])
def test_nothing_is_printed_in_pipelines(module: ModuleType) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text())
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"print", "sys.exit"}
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not modules & {"avarnet.console", "avarnet.inputs", "typer", "rich"}


def test_from_videos_to_predictions(
    clips: Path, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, manifest = tmp_path / "store", tmp_path / "nowhere.jsonl"
    listed = assign_split(from_folders(clips, clips).clips, test=0.3, val=0.3)
    cluster = Cluster(workers=1)
    plan = pipelines.plan_extraction(listed, clips, store, cluster)
    assert (plan.clips, plan.present, plan.processes, plan.job_script) == (12, 0, 1, "")
    assert (plan.speed, plan.seconds) == (None, None)
    elsewhere = pipelines.plan_extraction(listed, tmp_path, store, cluster)
    assert (plan.unknown, elsewhere.unknown) == (0, 12)
    videos = sorted(clips.glob("*/*.mp4"))
    assert sum(plan.batches) == pytest.approx(sum(map(footage, videos)))
    done: list[float] = []
    summary = pipelines.extract(
        listed, clips, store, recipe, cluster=cluster, progress=lambda now, whole: done.append(now)
    )
    assert len(summary.extracted) == 12
    assert done[-1] == pytest.approx(summary.footage)
    assert "Brawling" in (store / "CARD.md").read_text()
    timings = [json.loads(line) for line in (store / TIMINGS).read_text().splitlines()]
    assert sum(row["footage"] for row in timings) == pytest.approx(summary.footage)
    after = pipelines.plan_extraction(listed, clips, store, cluster)
    assert (after.clips, after.present, after.batches, after.seconds) == (0, 12, [], 0.0)
    speed = summary.footage / sum(row["seconds"] for row in timings)
    assert after.speed == pytest.approx(speed)
    epochs: list[tuple[int, int]] = []
    config = Config(epochs=2, seeds=2)
    run = pipelines.train(
        listed,
        Store(store),
        tmp_path / "run",
        config,
        processes=1,
        on_epoch=lambda number, count, epoch, best: epochs.append((number, epoch.epoch)),
    )
    assert set(epochs) == {(0, 1), (0, 2), (1, 1), (1, 2)}
    metrics = pipelines.evaluate(run, str(store), page=tmp_path / "page.html")
    assert metrics == run.evaluation()
    wrong = metrics["model"]["accuracy"]["value"] < 1  # pictures of mistakes are asked for
    assert ("--manifest" in (tmp_path / "page.html").read_text()) == wrong
    with pytest.raises(ManifestError, match=r"nowhere.jsonl: no such file"):
        pipelines.evaluate(run, manifest=manifest)
    (tmp_path / "bad.mp4").write_text("no video")
    good, bad = pipelines.predict(
        run, [videos[0], tmp_path / "bad.mp4"], pages={videos[0]: tmp_path / "video.html"}
    )
    assert isinstance(good, pipelines.Scored)
    assert good.prediction.label in run.classes
    assert good.page == tmp_path / "video.html"
    assert good.page.stat().st_size > 5000
    assert isinstance(bad, pipelines.Unreadable)
    assert "not a readable media file" in bad.reason
    [alone] = pipelines.predict(run, str(tmp_path / "bad.mp4"))  # not letter by letter
    assert alone == bad
    assert capsys.readouterr() == ("", "")
