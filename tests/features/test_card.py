"""What people add to a store's card stays when it is written again."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from command import avarnet
from small_stores import clip, fill

from features import write_card

HOSTILE = "<script>alert(1)</script>\x1b[1m\n---\nlicence: none"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    fill(tmp_path / "store", {"one": clip(4, 1)})
    return tmp_path / "store"


def test_licence_contact_and_notes_are_kept(store: Path) -> None:
    words = ["--licence", "CC-BY-4.0", "--contact", "Ann <ann@lab.example>"]
    avarnet("features", "card", store, *words, "--note", "Camera 3 is out of focus.")
    avarnet("features", "card", store, "--note", "So is camera 4: a little.")
    avarnet("features", "compact", store)
    card = write_card(store, {"one": "Crash"})
    text = card.read_text()
    head, body = text.removeprefix("---\n").split("---\n", 1)
    assert head.splitlines() == [
        'licence: "CC-BY-4.0"',
        'contact: "Ann <ann@lab.example>"',
        'note: "Camera 3 is out of focus."',
        'note: "So is camera 4: a little."',
    ]
    assert f"Written on {date.today().isoformat()}." in body
    assert body.count("\nLicence: CC-BY-4.0\n") == 1
    assert "Note: So is camera 4: a little.\n" in body
    assert "| Crash | 1 |" in body
    avarnet("features", "card", store, "--licence", "CC0-1.0")
    assert "CC-BY" not in card.read_text()
    assert write_card(store).read_text() == card.read_text()


def test_what_was_written_by_hand_is_kept_too(store: Path) -> None:
    card = write_card(store)
    card.write_text("---\nlicence: our own\nsomething: else\n---\n" + card.read_text())
    assert "\nLicence: our own\n" in write_card(store).read_text()
    card.write_text("# no head\n---\nlicence: none of ours\n---\n")
    assert "none of ours" not in write_card(store).read_text()


def test_a_store_that_lost_its_last_clip_has_a_card(store: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("one\n")
    output = avarnet("features", "drop", store, "--ids", tmp_path / "ids.txt")
    assert "1 clip dropped, 0 not there" in output
    text = (store / "CARD.md").read_text()
    assert "Features of 0 clips" in text
    assert "one" not in text.split()


def test_a_note_of_a_stranger_is_only_text(store: Path) -> None:
    text = write_card(store, note=HOSTILE).read_text()
    assert write_card(store).read_text() == text  # it is read as it was written
    head, body = text.removeprefix("---\n").split("---\n", 1)
    assert len(head.splitlines()) == 1
    assert "<script>" not in body
    assert "\x1b" not in text
    assert "\nLicence:" not in body
