"""Shards that cannot be read are named by every command; none is passed over in training."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from command import as_json, avarnet, in_a_process
from small_stores import RECIPE, clip

from avarnet import console, pipelines
from features import Store, UnreadableShard, Writer
from manifests import Clip, assign_split, write
from train import Config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of several shards, its manifest and a run."""
    folder = tmp_path_factory.mktemp("whole")
    with Writer(folder / "store", RECIPE, shard_bytes=300) as writer:
        for n in range(24):
            writer.add(f"c{n}", clip(8, n + 1))
    clips = [Clip(f"c{n}", "x.mp4", (("Normal", "Crash")[n % 2],)) for n in range(24)]
    clips = assign_split(clips, test=0.3, val=0.3)
    write(folder / "m.jsonl", clips)
    config = Config(channels=4, layers=1, epochs=1, starts=1)
    pipelines.train(clips, Store(folder / "store"), folder / "run", config, processes=1)
    return folder


@pytest.fixture
def hurt(whole: Path, tmp_path: Path) -> Path:
    """A shard of a copy of the store, cut short."""
    store = shutil.copytree(whole / "store", tmp_path / "store")
    shard = sorted(store.glob("*.h5"))[1]
    os.truncate(shard, 700)
    return shard


def test_nothing_is_trained_or_judged_unasked(whole: Path, hurt: Path, tmp_path: Path) -> None:
    manifest, store = whole / "m.jsonl", hurt.parent
    search = tmp_path / "s.toml"
    search.write_text("trials = 1\n[search]\nchannels = [4]\n")
    commands: list[list[Any]] = [
        ["train", manifest, store, tmp_path / "new"],
        ["ablate", manifest, store, tmp_path / "new"],
        ["sweep", manifest, store, tmp_path / "new", search],
        ["evaluate", whole / "run", "--store", store],
        ["report", whole / "run", "--store", store],
    ]
    for words in commands:
        output = avarnet(*words, code=1)
        assert f"error: {hurt}: " in output
        assert "--skip-unreadable" in output
    assert not (tmp_path / "new").exists()
    assert not (whole / "run" / "evaluation.json").exists()


def test_if_asked_the_rest_is_trained_on(whole: Path, hurt: Path, tmp_path: Path) -> None:
    options = ["--skip-unreadable", "--processes", 2, "--seeds", 2, "--epochs", 1, "--json"]
    output = in_a_process("train", whole / "m.jsonl", hurt.parent, tmp_path / "run", *options)
    with pytest.warns(UnreadableShard, match=hurt.name):
        lost = Store(whole / "store").keys() - Store(hurt.parent).keys()
    assert set(json.loads(output)["left_out"]) == lost != set()


@pytest.mark.parametrize("command", ["list", "card", "diff", "compact", "export"])
def test_commands_name_it_once(
    hurt: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"diff": [hurt.parent], "export": [tmp_path / "out"]}
    printed: list[str] = []
    monkeypatch.setattr(console.err, "print", lambda text, **_: printed.append(text))
    avarnet("features", command, hurt.parent, *more.get(command, []))
    (line,) = printed
    assert line.startswith(f"[yellow]left out:[/] {hurt}: ")


def test_a_shard_of_a_later_format_is_not_called_damaged(hurt: Path) -> None:
    with h5py.File(sorted(hurt.parent.glob("*.h5"))[2], "r+") as later:
        later.attrs["version"] = np.bytes_("3")
    hurt.unlink()
    output = avarnet("features", "verify", hurt.parent, code=1) + avarnet(
        "features", "info", hurt.parent
    )
    assert "1 shard of another version of the format\n" in output
    assert "clips intact, 0 damaged shards\n" in output
    assert "lost" not in output
    assert output.count("format version 3, this program reads 2") == 2


def test_a_store_that_has_moved(whole: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(whole, tmp_path / "moved")
    run = json.loads((moved / "run" / "run.json").read_text())
    run["stores"] = [str(tmp_path / "elsewhere")]
    (moved / "run" / "run.json").write_text(json.dumps(run))
    output = avarnet("evaluate", moved / "run", code=1)
    assert "elsewhere is no store, but " in output
    assert output.rstrip().endswith("give where it is now with --store")
    assert as_json("evaluate", moved / "run", "--store", moved / "store")["model"]["clips"] > 0
