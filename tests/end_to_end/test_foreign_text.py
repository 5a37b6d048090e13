"""Ids, labels, names and recipes from strangers, at a terminal: shown, never obeyed."""

from __future__ import annotations

import json
import re
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from command import as_json, at_a_terminal, avarnet
from markdown_it import MarkdownIt
from small_stores import RECIPE, clip

from avarnet import main
from extract.job.failures import Failure, add_failure, read_failures
from extract.job.log import log
from features import pack
from manifests import Clip, write

pytestmark = pytest.mark.slow

# markup of Rich, a tag never opened, a title, a cleared screen in C0 and C1, text turned round
EVIL = "[bold]x[/bold] \\[/foo] [/red] \x1b]0;owned\x07\x1b[2J\x9b2J\u202egnp\u2028<b>|`# *y*"
COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
LITERALLY = "[bold]x[/bold] \\[/foo] [/red] \\x1b]0;owned\\x07\\x1b[2J\\x9b2J\\u202egnp\\u2028"
# what an id of a store may have; it refuses the rest
EVIL_ID = "[bold]x[/bold] [/foo] [/red] <b>|`# *y*"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A manifest, a store and files, with such text wherever there can be any."""
    ids = [f"{EVIL_ID}{n}" for n in range(12)]
    recipe = replace(
        RECIPE,
        precision=EVIL,
        source={
            "video": {"name": EVIL, "weights": "random", "assumed": EVIL},
            "audio": {"name": EVIL, "weights": EVIL},
        },
    )
    pack(tmp_path / "store", ((id, clip(8, n + 1)) for n, id in enumerate(ids)), recipe)
    splits = ["train", "train", "val", "test"]
    labels = [EVIL, "Normal"]
    name = EVIL.replace("/", "")
    clips = [
        Clip(id, f"videos/{name}{n}.mp4", (labels[n % 2],), split=splits[n // 2 % 4])
        for n, id in enumerate(ids)
    ]
    write(tmp_path / "m.jsonl", clips)
    write(tmp_path / "unsplit.jsonl", [replace(one, split=None) for one in clips])
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / f"{name}.{EVIL[:6]}").touch()
    shard = f"{recipe.fingerprint}-0123456789abcdef.h5"
    (tmp_path / "store" / shard).write_text(EVIL)
    (tmp_path / "store" / f"{name}.h5").write_text(EVIL)
    return tmp_path


LINES = [
    "manifest check m.jsonl",
    "manifest split unsplit.jsonl -o split.jsonl --test 0.3 --val 0.3",
    "manifest folders videos -o new.jsonl",
    "manifest add new.jsonl videos",
    "features info store",
    "features list store",
    "features verify store",
    "features card store --manifest m.jsonl",
    "features push store there",
    "features pull store here",
    "features diff store other",
    "features join store -o joined",
    "features drop joined --ids ids.txt",
    "search store --like EVIL_ID0",
    "train m.jsonl store run --epochs 1",
    "train m.jsonl store run --epochs 1 --skip-unreadable",
    "evaluate run --skip-unreadable",
    "extract m.jsonl store --dry-run",
    "predict run EVIL",
    "features info EVIL",
    "train m.jsonl store run --epochs EVIL",
    "watch run more EVIL",
]


def test_every_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "ids.txt").write_text(f"{EVIL_ID}0\n", encoding="utf-8")
    pack(folder / "other", [("another", clip(4, 1))], replace(RECIPE, precision="fp16" + EVIL))
    shown = {}
    for line in LINES:
        words = [w.replace("EVIL_ID", EVIL_ID).replace("EVIL", EVIL) for w in line.split()]
        shown[line] = run(*words)
        found = COMMANDS.search(shown[line])
        assert not found, (line, shown[line][max(0, found.start() - 80) :][:200])
        assert "MarkupError" not in shown[line], line
    # and it is all there
    assert LITERALLY in shown["features info store"].replace("\n", "")
    assert EVIL_ID in shown["features list store"]
    assert LITERALLY in shown["evaluate run --skip-unreadable"]


def run(*words: str) -> str:
    """Return all that a command prints, whatever its exit code is."""
    printed = StringIO()
    with (
        patch("sys.argv", ["avarnet", *words]),
        redirect_stdout(printed),
        redirect_stderr(printed),
        suppress(SystemExit),
    ):
        main()
    assert "Traceback" not in printed.getvalue()
    assert "This is unexpected" not in printed.getvalue(), printed.getvalue()
    return printed.getvalue()


@pytest.mark.parametrize("line", ["features info store", "features list store"])
def test_json_is_whole_and_harmless(folder: Path, line: str) -> None:
    words = [str(folder / word) if word == "store" else word for word in line.split()]
    printed = avarnet(*words, "--json")
    assert not COMMANDS.search(printed)
    document = json.loads(printed)
    if isinstance(document, dict):
        assert document["recipe"]["precision"] == EVIL
        assert document["recipe"]["source"]["video"]["name"] == EVIL
    else:
        assert EVIL_ID in document[0]["clip"]


def test_at_a_terminal_no_title_is_set(folder: Path) -> None:
    shown = at_a_terminal("features", "info", folder / "store")
    assert "\x1b]0;" not in shown
    assert "\x1b[2J" not in shown
    assert "\x9b" not in shown


def test_the_card_shows_it_literally(folder: Path) -> None:
    """Compared with what a Markdown reader makes of it."""
    avarnet("features", "card", folder / "store", "--manifest", folder / "m.jsonl")
    card = (folder / "store" / "CARD.md").read_text()
    assert not COMMANDS.search(card)
    parsed = MarkdownIt("commonmark").enable("table").parse(card)
    cells: list[Any] = [token for token in parsed if token.type == "inline"]
    kinds = {child.type for cell in cells for child in cell.children}
    strong = {"strong_open", "strong_close"}
    assert kinds <= {"text", "code_inline", "softbreak", "text_special"} | strong
    texts = ["".join(child.content for child in cell.children) for cell in cells]
    expected = f"{LITERALLY}<b>|`# *y*"
    assert expected in texts  # the class
    assert f"{expected}, random" in texts
    assert as_json("features", "list", folder / "store")


def test_a_journal_and_a_log_are_harmless(tmp_path: Path) -> None:
    add_failure(tmp_path, Failure("a", EVIL, "read", 1, ""))
    log(tmp_path, EVIL)
    for name in ("failures.jsonl", "extract.log"):
        assert not COMMANDS.search((tmp_path / name).read_text())
    assert read_failures(tmp_path)["a"].reason == EVIL
