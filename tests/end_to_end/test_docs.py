"""The pages of docs/ and README.md: their commands are run as they stand, and exist.

Of each page, the blocks marked ``sh`` run in one bash, and a block marked with a language and a
file's name is that file, written where it stands. A page becomes a script line by line, so that
bash's line numbers are the page's. A command that ends with ``# exit code 3`` must end so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
import timm
import torch
import typer
from cameras import transport_stream, whole
from safetensors.torch import save_file
from slurm import slurm
from small_networks import save_clip, save_wav2vec2
from small_stores import RECIPE, clip

import avarnet
import features
import manifests
import train
from extract.synthetic import make_clip
from features import Features, Recipe, pack
from manifests import Clip, write

pytestmark = pytest.mark.slow

ROOT = Path(avarnet.__file__).parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.md"  # which has no commands
REFERENCE = ROOT / "docs" / "reference.md"  # which is made from them
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {ARCHITECTURE, REFERENCE})]
CLASSES = ("Crash", "Explosion", "Normal", "Police siren")
OTHERS = {"--nthreads", "--index-url"}  # options of other programs that the pages name
NAMED = re.compile(r"(?m)(?:^ *|[`'(])avarnet +([a-z-][^`'#\n]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
FENCE = re.compile(r"^```(\S+)?(?: (\S+))?$")
EXIT_CODE = re.compile(r"^(.*\S)\s+# exit code (\d)\b.*$")
# in one line, as the page begins in the first one; `set -x` says each command and its line
BEFORE = "; ".join(
    (
        "set -euo pipefail",
        'ends_with() { local code=0; "${@:2}" || code=$?; [ $code = $1 ]; }',
        "PS4='+ line $LINENO (${SECONDS} s): '",
        """trap 'echo "FAILED line $LINENO: $BASH_COMMAND" >&2' ERR""",
        "set -x; ",
    )
)


def script(page: str) -> tuple[str, int]:
    """Return a page as a bash script with the same line numbers, and how many blocks it runs."""
    lines, block, blocks = [], None, 0
    for line in page.splitlines():
        fence = FENCE.match(line)
        if fence and block is None:
            block, file = fence[1] or "", fence[2]
            blocks += block == "sh"
            if file:
                block = "file"
            lines.append(f"cat > {file} <<'END OF FILE'" if file else "")
        elif fence:
            lines.append("END OF FILE" if block == "file" else "")
            block = None
        elif block == "sh":
            lines.append(EXIT_CODE.sub(r"ends_with \2 \1", line))
        else:
            lines.append(line if block == "file" else "")
    assert block is None, "a block is not closed"
    lines[0] = BEFORE + lines[0]
    return "\n".join(lines) + "\n", blocks


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of one who has installed avarnet and fetched the networks: little ones.

    MobileViT's architecture goes with its name, so it is the real one; its weights are random.
    """
    folder = tmp_path_factory.mktemp("machine")
    for program, words in {"avarnet": "-m avarnet", "pip": "-m pip", "python": ""}.items():
        file = folder / "bin" / program
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        file.chmod(0o755)

    def cached(name: str) -> Path:
        entry = folder / "hf" / "hub" / f"models--{name.replace('/', '--')}"
        snapshot = entry / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (entry / "refs").mkdir()
        (entry / "refs" / "main").write_text(snapshot.name)
        return snapshot

    torch.manual_seed(0)
    weights = timm.create_model("mobilevit_s").state_dict()
    save_file(weights, cached("timm/mobilevit_s.cvnets_in1k") / "model.safetensors")
    save_wav2vec2(cached("facebook/wav2vec2-base"))
    save_clip(cached("openai/clip-vit-base-patch32"))
    site = folder / "site"  # where pip puts what a page installs
    return {
        **os.environ,
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "PYTHONPATH": f"{site}:{ROOT}",
        "HOME": str(folder),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "COLUMNS": "100",
        "PIP_TARGET": str(site),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # for pip, 0 says that there is none
    }


def some_videos(folder: Path, each: int = 3) -> None:
    for kind, name in enumerate(CLASSES):
        for number in range(1, each + 1):
            seed = 10 * kind + number
            path = folder / "videos" / name / f"{number:03d}.mp4"
            make_clip(path, name, seed, seconds=1.0, sound=seed != 11)


def of_class(name: str, length: int, seed: int) -> Features:
    """Return made features that tell the class: near chance, models are trained three times."""
    made = clip(length, seed)
    mean = 3 * np.eye(len(CLASSES), dtype=np.float16)[CLASSES.index(name)]
    rows = {stream: row + mean[: row.shape[1]] for stream, row in made.streams.items()}
    return replace(made, streams=rows)


def readme(folder: Path, environment: dict[str, str], stack: ExitStack) -> None:
    some_videos(folder, 6)
    make_clip(folder / "new.mp4", "Crash", 91, seconds=1.0)


def tutorial(folder: Path, environment: dict[str, str], stack: ExitStack) -> None:
    some_videos(folder, 4)
    siren = make_clip(folder / "new" / "siren.mp4", "Police siren", 90, seconds=1.0)
    (folder / "camera.ts").write_bytes(whole(transport_stream(siren)))


def xd_violence(folder: Path, environment: dict[str, str], stack: ExitStack) -> None:
    """A few clips, named and annotated as the real ones, of narrower rows; violence is brighter."""
    rng = np.random.default_rng(0)
    for name in ("i3d", "vggish", "lists"):
        (folder / name).mkdir()
    lists: dict[str, list[str]] = {"train": [], "test": [], "annotations": []}
    for number in range(24):
        code, split = ("A", "B1-0-0", "A", "G-B2-0")[number % 4], ("train", "test")[number >= 16]
        name = f"v=film{number:02d}__#1_label_{code}"
        rows = 12 + number % 8
        violent = np.zeros(rows, bool)
        violent[4:8] = code != "A"
        for crop in range(5):
            rgb = rng.normal(violent[:, None], 1, (rows, 32)).astype(np.float32)
            np.save(folder / "i3d" / f"{name}__{crop}.npy", rgb)
        sound = rng.normal(violent[:-1, None], 1, (rows - 1, 8)).astype(np.float32)
        np.save(folder / "vggish" / f"{name}__vggish.npy", sound)
        lists[split].append(f"{name}.mp4")
        if split == "test" and code != "A":
            lists["annotations"].append(f"{name} {4 * 16} {8 * 16}")
    for title, lines in lists.items():
        (folder / "lists" / f"{title}.txt").write_text("\n".join(lines) + "\n")


def on_slurm(folder: Path, environment: dict[str, str], stack: ExitStack) -> None:
    some_videos(folder, 2)
    broken = folder / "videos" / "Crash" / "001.mp4"
    (folder / "originals" / "Crash").mkdir(parents=True)
    broken.rename(folder / "originals" / "Crash" / "001.mp4")
    broken.write_bytes((folder / "originals" / "Crash" / "001.mp4").read_bytes()[:2000])
    daemons = folder.parent / "slurm"
    daemons.mkdir()
    stack.enter_context(slurm(daemons))
    environment["SLURM_CONF"] = os.environ["SLURM_CONF"]


def sharing(folder: Path, environment: dict[str, str], stack: ExitStack) -> None:
    clips = {
        f"{name}/{number:03d}": of_class(name, 8, 10 * kind + number)
        for kind, name in enumerate(CLASSES)
        for number in range(1, 7)
    }
    others = {f"Crash/{number:03d}": clip(8, 100 + number) for number in range(11, 14)}
    pack(folder / "store", clips.items(), RECIPE)
    pack(folder / "theirs", others.items(), RECIPE)
    flow = Recipe(0.25, "fp32", {"flow": {"features": 3}}, {})
    renamed = {i: replace_streams(c) for i, c in clips.items()}
    pack(folder / "flow-store", renamed.items(), flow)
    splits = ("train", "train", "train", "train", "val", "test")
    listed = {i: splits[int(i[-1]) - 1] for i in clips} | dict.fromkeys(others, "train")
    write(
        folder / "videos.jsonl",
        [Clip(i, f"{i}.mp4", (i.split("/")[0],), split=side) for i, side in listed.items()],
    )
    (folder.parent / "served" / "team").mkdir(parents=True)
    port = stack.enter_context(servers.s3(folder.parent / "served"))
    environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    environment["AWS_ACCESS_KEY_ID"] = servers.KEY
    environment["AWS_SECRET_ACCESS_KEY"] = servers.SECRET


def replace_streams(features: Features) -> Features:
    """Return a clip whose picture is called flow, without its sound."""
    return replace(
        features,
        streams={"flow": features.streams["video"]},
        valid={"flow": features.valid["video"]},
    )


def backbones(folder: Path, environment: dict[str, str], stack: ExitStack) -> None:
    some_videos(folder)
    make_clip(folder / "new.mp4", "Crash", 91, seconds=1.0)
    clips = manifests.from_folders(folder / "videos", folder).clips
    write(folder / "videos.jsonl", clips)
    extracted = {one.id: of_class(one.label, 4, number) for number, one in enumerate(clips)}
    pack(folder / "old-store", ((i, replace(c, source="")) for i, c in extracted.items()), RECIPE)


def own_models(folder: Path, environment: dict[str, str], stack: ExitStack) -> None:
    shutil.copytree(ROOT / "examples" / "own_model", folder / "examples" / "own_model")
    listed = [
        Clip(f"{name}/{n}", f"{name}/{n}.mp4", (name,), split=("train", "val", "test")[n % 3])
        for name in CLASSES
        for n in range(6)
    ]
    extracted = {one.id: of_class(one.label, 6, number) for number, one in enumerate(listed)}
    pack(folder / "store", extracted.items(), RECIPE)
    write(folder / "videos.jsonl", listed)


def security(folder: Path, environment: dict[str, str], stack: ExitStack) -> None:
    pack(folder / "theirs", {"Crash/001": clip(8, 1), "Crash/002": clip(8, 2)}.items(), RECIPE)


PREPARE: dict[str, Callable[[Path, dict[str, str], ExitStack], None]] = {
    "README.md": readme,
    "backbones.md": backbones,
    "own-models.md": own_models,
    "security.md": security,
    "sharing.md": sharing,
    "slurm.md": on_slurm,
    "tutorial.md": tutorial,
    "xd-violence.md": xd_violence,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_runs(page: Path, machine: dict[str, str], tmp_path: Path) -> None:
    text, blocks = script(page.read_text(encoding="utf-8"))
    assert blocks > 0, f"{page.name} has no block that runs"
    work = tmp_path / "work"
    work.mkdir()
    environment = dict(machine)
    with ExitStack() as stack:
        PREPARE[page.name](work, environment, stack)
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    output = done.stdout
    assert done.returncode == 0, (
        f"{page.name}: {output[output.rfind('FAILED line') :]}{output[-6000:]}"
    )
    assert "Traceback" not in output, f"{page.name}:\n{output}"


def test_the_notebook_runs(machine: dict[str, str], tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    some_videos(tmp_path, 4)
    make_clip(tmp_path / "new.mp4", "Police siren", 90, seconds=1.0)
    book = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells)  # as it is kept
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=600, resources=where).execute(env=machine)
    kinds: list[list[str]] = []
    for cell in book.cells:
        for output in cell.get("outputs", []):
            kinds.append(list(output.get("data", {})))
            assert "\r" not in output.get("text", "")  # which draws bars at terminals
    assert sum("application/vnd.plotly.v1+json" in kind for kind in kinds) == 3
    # each bar is one output, as it is at the end
    bars = re.findall(
        r'<progress value="([\d.]+)" max="([\d.]+)"></progress> (\w+)', str(book.cells)
    )
    assert [what for *_, what in bars] == ["extracting", "training"]
    assert [float(done) for done, *_ in bars] == [
        16.0,
        len(train.Run.load(tmp_path / "run").epochs()),
    ]
    assert (tmp_path / "run" / "report.html").is_file()


def commands_below(command: Any, name: str = "avarnet") -> Iterator[tuple[str, set[str]]]:
    """Yield the name and the options of a command and of all below it."""
    options = [option for one in command.params for option in (*one.opts, *one.secondary_opts)]
    yield name, {"--help", *options}
    for word, below in getattr(command, "commands", {}).items():
        yield from commands_below(below, f"{name} {word}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    """In blocks and in the text: the commands, and the options that are shown with them."""
    options_of = dict(commands_below(typer.main.get_command(avarnet.app)))
    text = page.read_text(encoding="utf-8").replace("\\\n", " ").replace(r"\|", "|")
    shown = [words.split() for words in NAMED.findall(text)]
    assert shown
    for words in shown:
        deep = 1 + (words[0] in ("features", "manifest"))
        for last in words[deep - 1].split("|"):
            name = " ".join(["avarnet", *words[: deep - 1], last])
            if name.startswith("avarnet --"):
                name = "avarnet"
            assert name in options_of, f"{page.name}: there is no {name!r}"
            for option in OPTION.findall(" ".join(words)):
                assert option in options_of[name], f"{page.name}: {name!r} has no {option}"
    everywhere = set().union(*options_of.values()) | OTHERS
    unknown = set(OPTION.findall(text)) - everywhere
    assert not unknown, f"{page.name}: no command has {', '.join(sorted(unknown))}"


def test_the_architecture_names_every_file() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    parts = re.findall(r"(?m)^`(\w+)/`: .*\n\n\|.*\|\n\|.*\|\n((?:\| `.*\|\n)+)", text)
    for part, rows in parts:
        named = re.findall(r"(?m)^\| `([^`]+)` \|", rows)
        files = {str(file.relative_to(ROOT / part)) for file in (ROOT / part).rglob("*.py")}
        files = {file for file in files if not file.endswith("__init__.py")}
        assert set(named) == files, part
        assert len(named) == len(files), part
    assert [part for part, _ in parts] == ["avarnet", "manifests", "features", "extract", "train"]


def test_the_pages_of_the_api_name_all_that_is_public(tmp_path: Path) -> None:
    subprocess.run(
        ["make", "-o", ".venv/installed-test", "docs", f"SITE={tmp_path}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for package in (features, manifests, train):
        page = (tmp_path / f"{package.__name__}.html").read_text()
        for name in package.__all__:
            assert f'id="{name}"' in page, f"{package.__name__}.{name}"
