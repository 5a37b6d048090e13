"""Two that write to one folder, full disks, and what is left of a search that was killed."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_stores import clip, fill

from features import Store
from manifests import Clip, assign_split, write
from train import Config, Run, Search, TrainError, export_run, judge_run, sweep, train_run
from train.report.run import write_report
from train.run_files import locked

pytestmark = pytest.mark.slow

SMALL = Config(channels=4, layers=1, epochs=2, starts=1)
SEARCH = "trials = {}\n[settings]\nepochs = {}\n[search]\nchannels = [{}]\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Clip], Store]:
    path = tmp_path_factory.mktemp("store")
    fill(path, {f"c{n}": clip(8, n + 1) for n in range(24)})
    clips = [Clip(f"c{n}", "x.mp4", (("Normal", "Crash")[n % 2],)) for n in range(24)]
    return assign_split(clips, test=0.3, val=0.3), Store(path)


@pytest.fixture(scope="module")
def run(world: tuple[list[Clip], Store], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_run(*world, tmp_path_factory.mktemp("runs") / "run", SMALL)


def test_two_do_not_train_in_one_folder(world: tuple[list[Clip], Store], tmp_path: Path) -> None:
    path = tmp_path / "run"
    refused = []

    def meanwhile(*_: object) -> None:
        if not refused:
            for resume in (True, False):
                with pytest.raises(TrainError) as caught:
                    train_run(*world, path, SMALL, resume=resume)
                refused.append(str(caught.value))

    whole = train_run(*world, path, SMALL, on_epoch=meanwhile)
    assert "another process is training there" in refused[0]
    assert "--resume continues it" in refused[1]
    assert Run.load(path) == whole
    assert not [file.name for file in path.iterdir() if file.name.startswith(".")]


def limited(*words: object) -> str:
    """Run a command that can write no more than 2,000 bytes to a file, as on a full disk."""
    done = subprocess.run(
        [sys.executable, "-m", "avarnet", *map(str, words)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "unexpected" not in done.stderr
    return done.stderr


def test_a_full_disk(world: tuple[list[Clip], Store], run: Run, tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", world[0])
    words = [tmp_path / "m.jsonl", world[1].path]
    output = limited("train", *words, tmp_path / "new", "--epochs", 1)
    assert f"{tmp_path / 'new'}" in output
    assert "File too large" in output
    page, figures = run.path / "report.html", run.path / "evaluation.json"
    write_report(run, judge_run(run, world[1]), page)
    before = page.read_bytes(), figures.read_bytes()
    output = limited("evaluate", run.path)
    assert "cannot be written (File too large); what was there is as it was" in output
    assert before == (page.read_bytes(), figures.read_bytes())
    exported = tmp_path / "model.pt2"
    exported.write_text("good")
    assert f"{exported}: cannot be written" in limited("export", run.path, exported)
    assert exported.read_text() == "good"
    assert not list(tmp_path.glob(".export*"))


def test_an_export_that_has_no_place(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model.pt2").mkdir()
    with pytest.raises(TrainError, match=r"model\.pt2 is a folder; give a file"):
        export_run(run, tmp_path / "model.pt2")


def test_a_search_that_has_changed(world: tuple[list[Clip], Store], tmp_path: Path) -> None:
    file, folder = tmp_path / "s.toml", tmp_path / "sweep"
    file.write_text(SEARCH.format(1, 1, "4, 8"))
    sweep(*world, folder, Search.load(file))
    for epochs, channels, differing in (
        (1, "4, 16", "search.channels"),
        (2, "4, 8", "settings.epochs"),
    ):
        file.write_text(SEARCH.format(2, epochs, channels))
        with pytest.raises(TrainError, match=rf"begun otherwise \({differing} differ\)"):
            sweep(*world, folder, Search.load(file))
    with locked(folder), pytest.raises(TrainError, match="another process is training there"):
        sweep(*world, folder, Search.load(file))
    file.write_text(SEARCH.format(2, 1, "4, 8"))
    assert len(sweep(*world, folder, Search.load(file))) == 2


def test_a_search_that_was_killed(world: tuple[list[Clip], Store], tmp_path: Path) -> None:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    write(tmp_path / "m.jsonl", world[0])
    file, folder = tmp_path / "s.toml", tmp_path / "sweep"
    file.write_text(SEARCH.format(1, 100_000, "4, 8"))
    command = ["sweep", tmp_path / "m.jsonl", world[1].path, folder, file]
    process = subprocess.Popen([sys.executable, "-m", "avarnet", *map(str, command)])
    while not (folder / "trial-0" / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    journal = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "sweep.log")))
    study = optuna.load_study(study_name="sweep", storage=journal)
    assert [trial.state.name for trial in study.trials] == ["RUNNING"]
    study.set_user_attr("asked", None)  # so that a shorter search may go on
    file.write_text(SEARCH.format(1, 1, "4, 8"))
    (trial,) = sweep(*world, folder, Search.load(file))
    assert (trial.number, trial.state) == (1, "complete")
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]
    assert [path.name for path in sorted(folder.glob("trial-*"))] == ["trial-1"]
