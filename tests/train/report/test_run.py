"""A report's header and its plots, from Python and without a browser."""

from __future__ import annotations

import json
import re
import shutil
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from small_stores import clip, fill

from features import FeatureError, Store
from manifests import Clip, Interval
from train import Config, Predictor, Run, TrainError, judge_run, run_plots, train_run
from train.evaluation.evaluate import Evaluation
from train.report.run import write_report

CLASSES = [f"class {n:02d}" for n in range(12)]
SIDES = ("train", "train", "val", "test")
COMMAND = ["/opt/bin/avarnet", "train", "my clips.jsonl", "sftp://ann:s3cret@host/store", "run"]


def made_by_a_command(
    monkeypatch: pytest.MonkeyPatch, clips: list[Clip], store: Store, path: Path, config: Config
) -> Run:
    monkeypatch.setattr(sys, "argv", COMMAND)
    return train_run(clips, store, path, config)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Clip], Store]:
    path = tmp_path_factory.mktemp("store")
    clips = [Clip(f"{c}/{n}", "x", (c,), split=SIDES[n % 4]) for c in CLASSES for n in range(8)]
    fill(path, {one.id: clip(8, seed) for seed, one in enumerate(clips, 1)})
    return clips, Store(path)


@pytest.fixture(scope="module")
def run(world: tuple[list[Clip], Store], tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = Config(channels=4, layers=1, epochs=2, starts=1)
    with pytest.MonkeyPatch.context() as patch:
        return made_by_a_command(patch, *world, tmp_path_factory.mktemp("run") / "run", settings)


@pytest.fixture(scope="module")
def evaluation(world: tuple[list[Clip], Store], run: Run) -> Evaluation:
    return judge_run(run, world[1])


def test_it_shows_when_and_how_the_run_was_made(
    world: tuple[list[Clip], Store], run: Run, evaluation: Evaluation, tmp_path: Path
) -> None:
    loaded = Run.load(run.path)
    assert loaded.made == run.made
    assert datetime.now(UTC) - datetime.fromisoformat(run.made["date"]) < timedelta(hours=1)
    command = "avarnet train 'my clips.jsonl' 'sftp://***@host/store' run"
    assert run.made["command"] == command
    write_report(run, evaluation, tmp_path / "report.html")
    page = re.sub("</?span>", "", (tmp_path / "report.html").read_text())
    assert "s3cret" not in page + (run.path / "run.json").read_text()
    assert f"<dd>{command.replace(chr(39), '&#39;')}</dd>" in page
    assert f"UTC, by avarnet {version('avarnet')}</dd>" in page
    assert f"<dd>{world[1].path}</dd>" in page


@pytest.mark.parametrize("made", [None, {"date": "yesterday"}, {"date": "9999-12-31T23:59-14:00"}])
def test_old_and_changed_runs_are_reported(
    world: tuple[list[Clip], Store], run: Run, tmp_path: Path, made: dict[str, str] | None
) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    whole: dict[str, Any] = json.loads((copy / "run.json").read_text())
    del whole["made"]
    (copy / "run.json").write_text(json.dumps(whole if made is None else {**whole, "made": made}))
    loaded = Run.load(copy)
    write_report(loaded, judge_run(loaded, world[1]), tmp_path / "report.html")
    page = re.sub("</?span>", "", (tmp_path / "report.html").read_text())
    shown = "by a version that did not note when" if made is None else f"{made['date']}, by avarnet"
    assert f"<dt>trained</dt><dd>{shown}" in page
    assert re.search(r"<dt>linear term</dt><dd>in [01] of 1 models</dd>", page)


def test_every_plot_of_the_report_is_one_of_plotlys(run: Run, evaluation: Evaluation) -> None:
    plots = run_plots(run, evaluation)
    assert list(plots) == ["classes", "confusion", "calibration", "training", "map"]
    assert all(isinstance(drawn, go.Figure) and drawn.data for drawn in plots.values())
    (matrix,) = plots["confusion"].data
    truth = [CLASSES.index(c.label) for c in evaluation.clips]
    taken = [CLASSES.index(c.predicted) for c in evaluation.clips]
    counts = np.zeros((12, 12), int)
    np.add.at(counts, (truth, taken), 1)
    assert [[int(t or 0) for t in row] for row in matrix.text] == counts.tolist()


def test_classes_of_a_map_look_different_and_mistakes_are_hollow(
    run: Run, evaluation: Evaluation
) -> None:
    wrong = {c.id for c in evaluation.clips if c.predicted != c.label}
    traces = run_plots(run, evaluation)["map"].data
    assert len({trace.marker.color for trace in traces}) == len(traces) == len(CLASSES)
    symbols = {
        name: symbol
        for trace in traces
        for name, symbol in zip(trace.text, trace.marker.symbol, strict=True)
    }
    assert len(symbols) == len(evaluation.clips)
    assert {name for name, symbol in symbols.items() if symbol.endswith("-open")} == wrong


def test_scores_of_a_clip(world: tuple[list[Clip], Store], run: Run) -> None:
    drawn = run.plot_scores("class 03/3")
    curve, *_, classes = drawn.data
    found = Predictor(run)(world[1]["class 03/3"])
    column = run.classes.index(found.label)
    assert np.allclose(curve.y, found.scores[:, column])
    assert np.allclose(classes.z, found.scores.T)
    assert curve.x0 + curve.dx * 2 == 0.25 * 2.5  # the middle of the third snippet
    names = {trace.name for trace in drawn.data if trace.name}
    assert {"all streams"} <= names <= {"all streams", "without video", "without audio"}
    by_rows = run.plot_scores(world[1]["class 03/3"])
    assert np.array_equal(by_rows.data[0].y, curve.y)


def test_a_held_out_clip_is_scored_by_models_that_did_not_see_it(tmp_path: Path) -> None:
    clips = [
        Clip(f"c{n}", "x", (("Normal", "Crash")[n % 2],), ((), (Interval(0, 1),))[n % 2])
        for n in range(24)
    ]
    fill(tmp_path / "store", {one.id: clip(8, n) for n, one in enumerate(clips, 1)})
    store = Store(tmp_path / "store")
    settings = Config(task="detection", folds=3, channels=4, layers=1, epochs=1, starts=1)
    run = train_run(clips, store, tmp_path / "run", settings)
    evaluation = judge_run(run, store)
    for held_out in evaluation.clips[::5]:
        drawn = run.plot_scores(held_out.id, store)
        assert np.allclose(drawn.data[0].y, held_out.snippets[:, 1], atol=1e-5)
        named = [trace for trace in drawn.data if trace.name == "annotated"]
        truth = run.truth[held_out.id].intervals or ()
        assert [list(trace.x[:2]) for trace in named] == [[i.start, i.end] for i in truth]


def test_clips_that_cannot_be_scored(run: Run, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"nowhere is not in .*; see 'avarnet features list"):
        run.plot_scores("nowhere")
    moved = Run(**{**{n: getattr(run, n) for n in vars(run)}, "stores": [tmp_path / "gone"]})
    with pytest.raises(FeatureError, match="gone"):
        moved.plot_scores("class 03/3")
