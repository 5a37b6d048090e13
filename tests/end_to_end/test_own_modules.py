"""A user's own train.py, extract.py, features.py and manifests.py in the current folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from own_modules import PARTS, write_own_modules

import avarnet

SCRIPT = [str(Path(sys.executable).parent / "avarnet")]
MODULE = [sys.executable, "-m", "avarnet"]
NETWORKS = ["--weights", "random", "--video-model", "mobilevit_xxs", "--audio-model", "../sound"]
ANY = object()  # exit code
COMMANDS: list[tuple[str, object]] = [
    ("manifest folders ../videos -o m.jsonl", 0),
    ("manifest add m.jsonl ../videos", 0),
    ("manifest csv clips.csv -o csv.jsonl", 0),
    ("manifest split m.jsonl --test 0.3 --val 0.3", 0),
    ("manifest check m.jsonl", 0),
    ("manifest xd-violence --lists . -o xd.jsonl", 1),
    ("manifest ucf-crime --lists . -o ucf.jsonl", 1),
    ("extract m.jsonl store --workers 1", 0),
    ("extract m.jsonl store --status", 0),
    ("features info store", 0),
    ("features list store", 0),
    ("features verify store", 0),
    ("features push store there", 0),
    ("features pull there here", 0),
    ("features merge store here -o both", 0),
    ("features join store -o joined", 0),
    ("features compact both", 0),
    ("features diff store here", 0),
    ("features drop here --ids ids.txt", 0),
    ("features card store", 0),
    ("features export store npy", 0),
    ("features import own --stream rgb=npy/{clip}.video.npy --snippet-seconds 0.25 --about x", ANY),
    ("search store --like Normal/0", 0),
    ("train m.jsonl store run --epochs 2 --seeds 2 --processes 2 --causal", 0),
    ("evaluate run", 0),
    ("report run", 0),
    ("stress run m.jsonl", 0),
    ("calibrate run store --false-alarms-per-hour 3600", ANY),
    ("compare run run", 0),
    ("sweep m.jsonl store sweep search.toml", 0),
    ("export run model.pt2", 0),
    ("predict run ../videos/Normal/0.mp4 --html page.html", 0),
    ("watch run ../videos/Normal/0.mp4 --retries 0", ANY),
    ("doctor", ANY),
    ("ablate nothing.jsonl store ablation", 1),  # trains as `train` does, for minutes
    ("demo file", 1),  # in test_demo.py
]


def each_command(group: typer.main.Group, *words: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*words, name)
        yield from each_command(command, *words, name) if hasattr(command, "commands") else ()


def run(folder: Path, command: list[str], code: object = 0) -> str:
    # which commands that run in this process set for those that they start
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert code is ANY or done.returncode == code, done.stdout + done.stderr
    assert not list(folder.glob("*.ran")), command
    return done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    write_own_modules(folder)
    return folder


@pytest.mark.slow
def test_help_imports_none_of_them(folder: Path) -> None:
    named = list(each_command(typer.main.get_command(avarnet.app)))
    assert {" ".join(words) for words in named if words not in {("manifest",), ("features",)}} == {
        " ".join(command.split()[: 1 + command.startswith(("manifest", "features"))])
        for command, _ in COMMANDS
    }
    # what a command imports when it runs is tried below
    for words in [(), ("manifest",), ("features",)]:
        run(folder, [*MODULE, *words, "--help"])
    run(folder, [*SCRIPT, "--help"])


@pytest.mark.slow
def test_no_command_imports_one_of_them(folder: Path, clips: Path, sound_model: str) -> None:
    (folder.parent / "videos").mkdir()
    for name in ("Brawling", "Normal"):
        (folder.parent / "videos" / name).symlink_to(clips / name)
    (folder.parent / "sound").symlink_to(sound_model)
    (folder / "clips.csv").write_text("path,label\n../videos/Normal/0.mp4,Normal\n")
    (folder / "ids.txt").write_text("Normal/0\n")
    search = "trials = 1\n[settings]\nepochs = 2\n[search]\nchannels = [8]\n"
    (folder / "search.toml").write_text(search)
    (folder / "file").touch()
    for words, code in COMMANDS:
        more = NETWORKS if words.startswith("extract") and "--status" not in words else []
        run(folder, [*MODULE, *words.split(), *more], code)
    run(folder, [*SCRIPT, "extract", "m.jsonl", "again", "--workers", "1", *NETWORKS])
    words = ["train", "m.jsonl", "again", "again-run", "--epochs", "1", "--seeds", "2"]
    run(folder, [*SCRIPT, *words, "--processes", "2"])


@pytest.mark.parametrize("part", PARTS)
def test_importing_avarnet_beside_one_names_it(folder: Path, part: str) -> None:
    for other in set(PARTS) - {part}:
        (folder / f"{other}.py").unlink()
    (folder / "mine.py").write_text("import avarnet\n")
    last = run(folder, [sys.executable, "mine.py"], 1).splitlines()[-1]
    assert last.startswith(f"ImportError: {folder / part}.py hides avarnet's part '{part}'")
    assert "Rename it" in last
    run(folder, [sys.executable, "-P", "mine.py"])  # the way out that the message gives
