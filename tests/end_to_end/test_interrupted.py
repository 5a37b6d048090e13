"""Extraction as a terminal, a pipe and a batch system's signals find it, in real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command import as_json, avarnet
from small_stores import clip, fill

from avarnet import console as terminal
from extract.synthetic import make_clip
from features import Features, Recipe, Store, Writer, verify
from manifests import Clip, write
from train import Run

pytestmark = pytest.mark.slow

CLIPS = 12
NOISE = re.compile(r"Traceback|Error\b|Exception|distributed|asyncio|tornado|never retrieved")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted")
    for number in range(CLIPS):
        make_clip(folder / "v" / "Crash" / f"{number}.mp4", "Crash", number, seconds=1.0)
    avarnet("manifest", "folders", folder / "v", "-o", folder / "m.jsonl")
    return folder / "m.jsonl"


class Job:
    """`avarnet extract` in a process group of its own, as a terminal starts it."""

    def __init__(self, manifest: Path, store: Path, sound_model: str) -> None:
        words = ("extract", manifest, store, "--workers", 2, "--weights", "random")
        models = ("--video-model", "mobilevit_xxs", "--audio-model", sound_model)
        self.store = store
        self.words = list(map(str, (*words, *models)))
        self.output = store.with_suffix(".err")
        with open(self.output, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "avarnet", *self.words],
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**os.environ, "COLUMNS": "300", "PYTHONUNBUFFERED": "1"},
            )

    def until(self, text: str = "", finished: int = 0) -> None:
        """Wait until it has printed something, and so many clips are finished."""
        while (
            text not in self.output.read_text()
            or len(list(self.store.glob(".spool-*/*.safetensors"))) < finished
        ):
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> str:
        self.process.wait(timeout=300)
        return self.output.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize(
    ("text", "wait", "finished"),
    [("starting 2 processes", 0.0, 0), ("starting 2 processes", 1.0, 0), ("starting", 0.0, 2)],
    ids=["at-the-start-of-the-cluster", "while-it-starts", "in-work"],
)
def test_the_first_signal_ends_it_in_order(
    videos: Path,
    sound_model: str,
    tmp_path: Path,
    number: signal.Signals,
    text: str,
    wait: float,
    finished: int,
) -> None:
    job = Job(videos, tmp_path / "s", sound_model)
    job.until(text, finished)
    time.sleep(wait)
    job.send(number)
    output = job.end()
    assert not NOISE.search(output), output
    assert job.process.returncode == 1
    assert "finishing the clips in work" in output
    assert ("press again to stop" in output) == (number == signal.SIGINT)
    left = re.search(r"error: interrupted with (\d+) clips? left; what is finished is in", output)
    assert left, output
    store = Store(tmp_path / "s")
    assert len(store) == CLIPS - int(left[1])
    assert len(store) >= finished
    assert verify(tmp_path / "s") == (len(store), [])
    assert not list((tmp_path / "s").glob(".spool*"))
    if finished:  # it goes on when it is run again
        again = as_json(*job.words)
        assert len(again["already"]) == len(store)
        assert len(again["already"]) + len(again["extracted"]) == CLIPS


@pytest.mark.parametrize("finished", [0, 2], ids=["while-the-cluster-starts", "in-work"])
def test_a_second_ctrl_c_stops_at_once_without_a_traceback(
    videos: Path, sound_model: str, tmp_path: Path, finished: int
) -> None:
    job = Job(videos, tmp_path / "s", sound_model)
    job.until("starting 2 processes", finished)
    job.send(signal.SIGINT)
    job.until("press again to stop")
    job.send(signal.SIGINT)
    output = job.end()
    assert not NOISE.search(output), output
    assert "error: interrupted" in output
    assert job.process.returncode == 1
    again = as_json(*job.words)
    assert len(again["already"]) >= finished
    assert len(again["already"]) + len(again["extracted"]) == CLIPS


def test_ctrl_c_while_the_networks_are_loaded(
    videos: Path, sound_model: str, tmp_path: Path
) -> None:
    for wait in (0.0, 1.0):
        job = Job(videos, tmp_path / f"{wait}", sound_model)
        job.until("loading the networks: mobilevit_xxs, ")
        time.sleep(wait)
        job.send(signal.SIGINT)
        output = job.end()
        assert not NOISE.search(output), output
        assert output.endswith("\nerror: interrupted before anything was started\n")
        assert job.process.returncode == 1
        assert not (tmp_path / f"{wait}").exists()


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def imports_torch(pid: str) -> bool:
    process = Path("/proc", pid)
    try:
        started = "spawn_main" in (process / "cmdline").read_text()  # before, it is as its parent
        return started and "libtorch" in (process / "maps").read_text()
    except OSError:  # another one, which has ended
        return False


def test_ctrl_c_while_the_processes_of_a_training_start(tmp_path: Path) -> None:
    """They import torch for seconds, in which a Ctrl-C is theirs too."""
    clips = [Clip(f"{k}", f"{k}.mp4", ("AB"[k % 2],)) for k in range(12)]
    fill(tmp_path / "store", {c.id: clip(8, int(c.id)) for c in clips})
    write(tmp_path / "m.jsonl", clips)
    words = ("train", tmp_path / "m.jsonl", tmp_path / "store", tmp_path / "run", "--folds", 2)
    words = (*words, "--seeds", 2, "--epochs", 1, "--processes", 2)
    command = [sys.executable, "-m", "avarnet", *map(str, words)]
    output = tmp_path / "output"
    with open(output, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        while process.poll() is None and not any(map(imports_torch, children(process.pid))):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=300)
    assert process.returncode == 130, output.read_text()
    assert not NOISE.search(output.read_text()), output.read_text()
    told = "error: interrupted; run the same command again with --resume\n"
    assert output.read_text().endswith(told)
    avarnet(*words, "--resume")
    assert len(Run.load(tmp_path / "run").all_models()) == 4


def test_ctrl_c_waits_for_no_thread_that_is_left_behind(tmp_path: Path) -> None:
    """It may hold a lock for which Python, at its end, would wait for ever."""
    code = """
import atexit, sys, threading
import features
from avarnet import main
from features.transfer.stall_timeout import in_a_thread

def interrupted(*args):
    raise KeyboardInterrupt

in_a_thread(threading.Event().wait)
atexit.register(threading.Event().wait)
features.verify = interrupted
sys.argv = ["avarnet", "features", "verify", sys.argv[1]]
main()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr == "error: interrupted; run the same command again\n"


def files_of(folder: Path) -> set[str]:
    """Return the names of a folder but for the recipe's, without which it is no store yet."""
    names = {file.name for file in folder.glob("*")}
    return {name for name in names if "recipe.json" not in name}


@pytest.mark.parametrize(
    "words", ["push {0} {1}", "pull {0} {1}", "merge {0} -o {1}", "compact {0}"]
)
def test_ctrl_c_while_shards_are_made_or_sent(tmp_path: Path, words: str) -> None:
    """Nothing half-written is taken for whole; the message says how to go on."""
    url, copy = tmp_path / "url", tmp_path / "copy"
    rows = np.random.default_rng(0).normal(size=(400, 700)).astype(np.float16)
    recipe = Recipe(0.25, "fp32", {"video": {"features": 700}})
    one = Features({"video": rows}, {"video": np.ones(400, bool)}, 0.25, 100.0)
    with Writer(url, recipe, shard_bytes=2_000_000) as writer:
        for number in range(240):
            writer.add(f"c{number}", one)
    known = files_of(url) if "compact" in words else set()
    command = [sys.executable, "-m", "avarnet", "features", *words.format(url, copy).split()]
    with open(tmp_path / "output", "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        place = url if "compact" in words else copy
        while process.poll() is None and not files_of(place) - known:
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=300)
    output = (tmp_path / "output").read_text()
    if process.returncode:  # it was not as fast as that
        assert process.returncode == 130, output
        assert output == "error: interrupted; run the same command again\n"
    _, damaged = verify(place)
    assert not damaged
    assert len(Store(place)) <= 240
    if "compact" in words:
        assert len(Store(place)) == 240
    avarnet(*command[3:])
    assert len(Store(place)) == 240
    assert verify(place) == (240, [])
    assert not [f.name for f in place.iterdir() if f.name.startswith(".")]


def test_a_line_a_minute_where_there_is_no_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The minute is a short one; the times are those of a clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(terminal.err, "get_time", lambda: now[0])
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.05)
    with terminal.footage_bar("extracting", lambda: 3) as show:
        show(0.0, 7200.0)
        output = ""
        while not output:
            output = capsys.readouterr().err
            time.sleep(0.01)
        assert output.splitlines()[0] == (
            "extracting: 0:00:00 of 2:00:00 of video, 0.0 x real time, 3 failed"
        )
        now[0] += 60  # in which it has done 20 minutes
        show(1200.0, 7200.0)
        expected = (
            "extracting: 0:20:00 of 2:00:00 of video, 20.0 x real time, about "
            "0:05:00 left, 3 failed"
        )
        while expected not in output.splitlines():
            output += capsys.readouterr().err
            time.sleep(0.01)
