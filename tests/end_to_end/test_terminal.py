"""What a terminal, a pipe and a shell make of the command line."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import PLAIN, at_a_terminal, drawn, in_a_process
from rich.progress import Progress
from small_stores import clip, fill

from avarnet.console import _Console, bytes_bar, plain, progress_bar
from avarnet.output import training_progress
from manifests import Clip, write
from train.export import SHORTEST
from train.fitting.history import Epoch

# the escape sequences that set a colour, of letters or of what is behind them
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9;]*)?m")
BAR = "━" * 10
IPYKERNEL = {"TERM": "xterm-color", "GIT_PAGER": "cat"}
HEAVY = {"torch", "sklearn", "scipy", "matplotlib", "timm", "transformers", "av", "dask", "s3fs"}


def in_a_pipe(*words: object) -> str:
    command = [sys.executable, "-m", "avarnet", *map(str, words)]
    environment = PLAIN | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal") / "store"
    fill(folder, {"one": clip(4, 1)})
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--help"], "extract"),
        (["features", "push", "--help"], "URL"),
        (["extract"], "Missing argument"),
        (["evaluate", "nowhere"], "error:"),
        (["manifest", "check", "bad.jsonl"], "missing-file"),
        (["features", "info", "{store}"], "RANDOM WEIGHTS"),
        (["features", "verify", "{store}"], "intact"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else None,
)
def test_colours_only_where_they_are_wanted(
    words: list[str], message: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.jsonl", [Clip("a", "a.mp4", ("x",))])
    words = [word.format(store=store) for word in words]
    coloured, plain = at_a_terminal(*words), at_a_terminal(*words, NO_COLOR="1")
    piped = in_a_pipe(*words)
    assert all(message in output for output in (coloured, plain, piped))
    assert COLOUR.search(coloured)
    assert not COLOUR.search(plain)
    assert "\x1b" not in piped


def test_bars_only_at_a_terminal(store: Path) -> None:
    assert BAR in COLOUR.sub("", at_a_terminal("features", "verify", store)).replace("\x1b[0m", "")
    assert in_a_pipe("features", "verify", store) == "1 clip intact, 0 damaged shards\n"


# a row of training as a line of its own
ROW = re.compile(r" +\d+ +\d\.\d{4} +\d\.\d{4} +\d\.\d{3} +\d\.\d{3}(  best)?")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A manifest, and a store of its clips."""
    folder = tmp_path_factory.mktemp("training")
    ids = [f"{label}/{number}" for label in ("crash", "normal") for number in range(6)]
    fill(folder / "store", {clip_id: clip(8, seed) for seed, clip_id in enumerate(ids, 1)})
    sides = ("train", "train", "train", "val", "val", "test")
    write(
        folder / "m.jsonl",
        [Clip(i, i, (i[:5],), split=sides[n % 6]) for n, i in enumerate(ids)],
    )
    return folder / "m.jsonl", folder / "store"


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {"JPY_PARENT_PID": "1"}, IPYKERNEL], ids=len)
def test_rows_and_bar_of_training_are_apart(
    environment: dict[str, str], trained: tuple[Path, Path], tmp_path: Path
) -> None:
    output = at_a_terminal("train", *trained, tmp_path / "run", "--epochs", "6", **environment)
    lines = drawn(output)
    assert len([line for line in lines if ROW.fullmatch(line)]) >= 6  # more, if started again
    assert not [line for line in lines if ROW.search(line) and not ROW.fullmatch(line)]
    bars = [line for line in lines if line.startswith("training ")]
    assert bool(bars) is not bool(environment)  # in a notebook's page, each bar would remain


def test_no_bar_in_a_pipe_where_colours_are_forced(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLAIN, "FORCE_COLOR", "1")
    assert drawn(in_a_pipe("features", "verify", store)) == ["1 clip intact, 0 damaged shards", ""]


def test_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("avarnet.console.LINE_SECONDS", 0.01)
    with bytes_bar("pushing", quiet=False) as show, training_progress(20) as on_epoch:
        show(1_500, 3_000_000)
        on_epoch(1, 2, Epoch(1, 0, 0, 0, 0), True)
        output = ""
        while not all(
            line in (output := output + capsys.readouterr().err)
            for line in ("pushing: 1.5 kB of 3.0 MB\n", "training: 1 of 40 epochs at most\n")
        ):
            time.sleep(0.01)


def test_lines_that_are_due_before_there_is_a_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("avarnet.console.LINE_SECONDS", 0.01)
    with progress_bar(line=lambda bar: f"{bar.tasks[0].completed:.0f} done") as bar:
        time.sleep(0.2)
        bar.add_task("", completed=3)
        for _ in range(1000):
            if capsys.readouterr().err.startswith("3 done\n"):
                return
            time.sleep(0.01)
    pytest.fail("no line")


@pytest.mark.parametrize("command", ["extract", "train"])
def test_options_are_in_panels_by_theme(command: str) -> None:
    shown = in_a_pipe(command, "--help")
    options = shown.split("─ Options ")[1].split("╰")[0]
    assert re.findall(r"│ (--[a-z-]+)", options) == ["--json", "--help"]
    panels = re.findall(r"╭─ ([A-Z][a-z ]+) ─", shown)
    assert (
        panels[2:]
        == {
            "extract": ["Networks", "Streams", "This machine", "Cluster", "Job"],
            "train": ["Task", "Model", "Training", "This machine"],
        }[command]
    )
    assert max(map(len, shown.splitlines())) <= 80


def test_the_contract_of_an_exported_file_is_in_the_help() -> None:
    shown = " ".join(in_a_pipe("export", "--help").split())
    for words in (
        f"{SHORTEST} snippets or more",
        "video_valid",
        "not be normalised",
        "fingerprint",
    ):
        assert words in shown


def test_sentences_are_wrapped_and_names_whole(store: Path, tmp_path: Path) -> None:
    for line in in_a_pipe("features", "info", store).splitlines():
        assert len(line) <= 80
    long_name = "n" * 100  # which a shell can take from the line
    console = _Console(file=io.StringIO())
    console.print_sentences(f"[yellow]{plain('of ' * 30 + long_name)}[/] is a name.")
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == ["of " * 26 + "of", "of of of", long_name, "is a name."]


def test_an_unexpected_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "av.py").write_text("raise ImportError('libavcodec.so.99: [no] such file')")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    )
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "m.jsonl", [Clip("a", "a.mp4", ("x",))])
    output = in_a_process("manifest", "check", "m.jsonl", code=1)
    assert output.startswith("error: ImportError: libavcodec.so.99: [no] such file. ")
    assert "'avarnet --debug manifest check m.jsonl'" in output
    assert "avarnet doctor" in output
    assert output.count("\n") == 1
    debugged = in_a_pipe("--debug", "manifest", "check", "m.jsonl")
    assert "Traceback" in debugged
    assert debugged.endswith("ImportError: libavcodec.so.99: [no] such file\n")
    # of an expected one, too
    assert "Traceback" in in_a_pipe("--debug", "features", "info", "nowhere")


COMPLETE = """
source "$HOME/.bashrc"
complete -p avarnet
for line in "avarnet man" "avarnet features pu" "avarnet train m s r --fusion " "avarnet train v"
do
    IFS=' ' read -ra COMP_WORDS <<< "$line"
    [[ $line == *' ' ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _avarnet_completion avarnet
    echo "$line: ${COMPREPLY[*]}"
done
"""


def test_bash_completes(tmp_path: Path) -> None:
    scripts = Path(sys.executable).parent
    environment = PLAIN | {"HOME": str(tmp_path), "PATH": f"{scripts}:{PLAIN['PATH']}"}

    def bash(script: str) -> str:
        done = subprocess.run(
            ["bash", "--norc"], input=script, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = bash("avarnet --show-completion\ntrue")
    assert "complete -o default -F _avarnet_completion avarnet" in shown
    assert "installed" in bash("avarnet --install-completion\ntrue")
    assert bash(COMPLETE).splitlines() == [
        "complete -o default -F _avarnet_completion avarnet",
        "avarnet man: manifest",
        "avarnet features pu: push pull",
        "avarnet train m s r --fusion : early gated bottleneck cross late",
        "avarnet train v: ",  # nothing of ours: -o default makes bash complete files
    ]


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["--help"], {}),
        (["train", "--help"], {}),
        (["--version"], {}),
        (
            [],
            {"_AVARNET_COMPLETE": "complete_bash", "COMP_WORDS": "avarnet ex", "COMP_CWORD": "1"},
        ),
    ],
    ids=["help", "train-help", "version", "completion"],
)
def test_little_is_imported_to_answer(words: list[str], environment: dict[str, str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "avarnet", *words]
    done = subprocess.run(command, env=PLAIN | environment, capture_output=True, text=True)
    assert done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not HEAVY & imported


def test_epochs_of_further_starts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is started again has as many epochs more, and the bar never passes its end."""
    bars: list[Progress] = []
    add_task = Progress.add_task

    def noted(bar: Progress, *args: Any, **settings: Any) -> Any:
        bars.append(bar)
        return add_task(bar, *args, **settings)

    monkeypatch.setattr(Progress, "add_task", noted)
    with training_progress(2, quiet=True) as show:
        for start in (0, 1):
            for number in (1, 2):
                for model in (0, 1) if start == 0 else (1,):
                    show(model, 2, Epoch(number, 1.0, 1.0, 0.5, 0.5, start=start), False)
    (task,) = bars[0].tasks
    assert (task.completed, task.total) == (6, 6)
