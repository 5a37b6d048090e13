"""Stores and manifests that are legal and unusual, through the commands of stage 2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import avarnet
from small_stores import clip, fill

from features import Features, Store
from manifests import Clip, write

SMALL = "epochs = 1\nstarts = 1\nchannels = 8\nstages = 1\n"


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the attention pooling beside each run; what it learns is tested with the baselines."""
    monkeypatch.setattr("train.baselines.snippet_pooling.STEPS", 50)


def lengths(*numbers: int) -> dict[str, Features]:
    """Clips of so many snippets, all of whose rows are real."""
    found = {}
    for number, length in enumerate(numbers):
        made = clip(length, number + 1)
        valid = {name: np.ones(length, bool) for name in made.streams}
        found[f"c{number}"] = replace(made, valid=valid)
    return found


def test_commands_say_which_stream_no_training_clip_has(tmp_path: Path) -> None:
    known, manifest, store = lengths(*[8] * 24), tmp_path / "m.jsonl", tmp_path / "store"
    for one in known.values():
        one.valid["audio"][:] = False
    fill(store, known)
    clips = [Clip(i, "x", ("AB"[n % 2],), split="train") for n, i in enumerate(known)]
    write(manifest, [*clips[:18], *(replace(c, split="test") for c in clips[18:])])
    little, search = tmp_path / "little.toml", tmp_path / "search.toml"
    little.write_text(SMALL)
    search.write_text(f"trials = 1\n[settings]\n{SMALL}[search]\ndropout = [0.1]\n")
    told = "trained without audio: no training clip (of one fold"
    settings = ("--config", little)
    assert told in avarnet("train", manifest, store, tmp_path / "run", *settings)
    assert told in avarnet("ablate", manifest, store, tmp_path / "all", *settings)
    assert told in avarnet("sweep", manifest, store, tmp_path / "sweep", search)
    assert not (tmp_path / "all" / "audio").exists()
    for streams in ("audio", "video,audio"):
        words = ("train", manifest, store, tmp_path / "named", "--streams", streams, "--json")
        assert "no training clip has audio" in avarnet(*words, code=1)


def test_classes_with_commas_are_chosen_and_named(tmp_path: Path) -> None:
    known, manifest = lengths(*[8] * 6), tmp_path / "m.jsonl"
    fill(tmp_path / "store", known)
    classes = ("Fire, smoke", "Fire", 'the "end"')
    write(manifest, [Clip(i, "x", (classes[n % 3],)) for n, i in enumerate(known)])
    url = f"file://{tmp_path}/store"
    for labels, expected in {
        '"Fire, smoke"': ["c0", "c3"],
        'Fire, "the ""end"""': ["c1", "c2", "c4", "c5"],
    }.items():
        pulled = tmp_path / labels
        words = ("features", "pull", url, pulled, "--manifest", manifest, "--labels", labels)
        avarnet(*words, "--trim")
        assert sorted(Store(pulled)) == expected
    words = ("features", "pull", url, tmp_path / "p", "--manifest", manifest, "--labels")
    error = avarnet(*words, "Fire, smoke", code=2)
    assert "is smoke" in " ".join(error.replace("│", "").split())
    assert "write commas between" in avarnet(*words, '"Fire', code=1)
