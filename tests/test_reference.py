"""docs/reference.md is what the code says, and what the commands leave is what it lists."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from command import at_a_terminal, avarnet
from small_stores import RECIPE, clip

import avarnet as cli
from extract import Cluster, Task, extract
from features import Recipe, pack, write_card
from manifests import Clip, assign_split, write

ROOT = Path(cli.__file__).parents[1]
PARTS = ("avarnet", "extract", "features", "manifests", "train")
READ = re.compile(r"""environ(?:\.get\(|\[)"([A-Z_]+)"|"([A-Z_]+)" in os\.environ""")
NOT_ALWAYS = ("while", "until", "where", "--")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(reference: ModuleType) -> None:
    text = reference.PAGE.read_text(encoding="utf-8")
    assert text == reference.page(), "run 'python docs/reference.py' and commit its page"
    assert text.count("\nExit codes: ") == text.count("\n### `avarnet ") > 30


def test_exit_codes_are_those_that_a_command_ends_with(reference: ModuleType) -> None:
    commands = dict(reference.commands(reference.typer.main.get_command(cli.app)))
    expected = {
        "avarnet predict": [0, 1, 2, 3, 4],
        "avarnet stress": [0, 1, 2, 3],
        "avarnet manifest folders": [0, 1, 2, 3],
        "avarnet train": [0, 1, 2],
        "avarnet features verify": [0, 1, 2],
    }
    assert {name: reference.exit_codes(commands[name]) for name in expected} == expected


def test_every_variable_that_the_code_reads_is_named(reference: ModuleType) -> None:
    texts = (file.read_text("utf-8") for part in PARTS for file in (ROOT / part).rglob("*.py"))
    found = {name for text in texts for pair in READ.findall(text) for name in pair if name}
    assert found == reference.VARIABLES.keys()


def check(files: dict[str, tuple[str, str]], made: Path, *commands: str) -> None:
    """Compare what commands have left in a folder with what is listed of it."""
    names = {file.name for file in made.iterdir()}
    may = {f: by for f, (_, by) in files.items() if any(command in by for command in commands)}
    always = {f for f, by in may.items() if not any(word in by for word in NOT_ALWAYS)}
    assert [name for name in names if not any(fnmatch(name, one) for one in may)] == []
    assert [one for one in always if not any(fnmatch(name, one) for name in names)] == []


@pytest.mark.slow
def test_what_training_leaves_is_listed(reference: ModuleType, tmp_path: Path) -> None:
    own = {f"c{n:02}": clip(8, n) for n in range(12)}
    pack(tmp_path / "store", own.items(), RECIPE)
    write_card(tmp_path / "store")
    clips = [Clip(i, "x.mp4", (("Crash", "Fire")[n % 2],)) for n, i in enumerate(own)]
    write(tmp_path / "m.jsonl", assign_split(clips, test=0.3, val=0.3))
    words = ("train", tmp_path / "m.jsonl", tmp_path / "store", tmp_path / "run", "--epochs", 1)
    output = " ".join(at_a_terminal(*words).split())
    assert "no class is known as normal" in output
    assert "--normal LABEL names it" in output
    check(reference.FILES["RUN"], tmp_path / "run", "train")
    avarnet("evaluate", tmp_path / "run")
    check(reference.FILES["RUN"], tmp_path / "run", "train", "evaluate")


@pytest.mark.slow
def test_what_extraction_leaves_is_listed(
    reference: ModuleType, clips: Path, recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    tasks = [Task("a", clips / "Normal" / "0.mp4"), Task("b", tmp_path / "broken.mp4")]
    extract(tasks, tmp_path / "store", recipe, cluster=Cluster(workers=1))
    write_card(tmp_path / "store")
    check(reference.FILES["STORE"], tmp_path / "store", "extract")
