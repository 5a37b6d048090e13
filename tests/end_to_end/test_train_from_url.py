"""`avarnet train MANIFEST URL RUN`: what it needs is pulled, once, and named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import servers
from command import as_json, avarnet, in_a_process
from small_stores import RECIPE, clip

from avarnet.stores import pulled_folder
from features import Recipe, Store, Writer, pack, push
from manifests import Clip, assign_split, write

pytestmark = pytest.mark.slow

SMALL = ("--epochs", 1)


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store of two shards, a manifest of the clips of one, and a cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for first in (0, 12):
        own = {f"c{n:02}": clip(8, n) for n in range(first, first + 12)}
        pack(tmp_path / "store", own.items(), RECIPE)
    assert len(Store(tmp_path / "store").shards) == 2
    listed = [Clip(f"c{n:02}", "x.mp4", (("Crash", "Normal")[n % 2],)) for n in range(12)]
    write(tmp_path / "m.jsonl", assign_split(listed, test=0.3, val=0.3))
    return tmp_path


@pytest.fixture
def url(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (shared / "served" / "team").mkdir(parents=True)
    with ExitStack() as stack:
        port = stack.enter_context(servers.s3(shared / "served"))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET)
        push(shared / "store", "s3://team/vaar")
        yield "s3://team/vaar"


def test_what_a_manifest_needs_is_pulled_once(shared: Path, url: str) -> None:
    output = avarnet("train", shared / "m.jsonl", url, shared / "run", *SMALL)
    folder = pulled_folder(url)
    assert folder.is_relative_to(shared / "cache")
    assert f"{url}: 1 shard (" in output
    assert f"pulled into {folder}, 0 clips already there" in output
    assert set(Store(folder)) == {f"c{n:02}" for n in range(12)}
    again = avarnet("train", shared / "m.jsonl", url, shared / "again", *SMALL)
    assert f"0 shards (0 bytes) pulled into {folder}, 12 clips already there" in again
    # from there the run is as from the store itself
    avarnet("train", shared / "m.jsonl", shared / "store", shared / "direct", *SMALL)
    found, expected = as_json("evaluate", shared / "run"), as_json("evaluate", shared / "direct")
    assert found == expected


def test_without_its_server(shared: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    avarnet("train", shared / "m.jsonl", url, shared / "run", *SMALL)
    folder = pulled_folder(url)
    way_out = f"What was pulled before is in {folder}: give that folder instead of the URL"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{servers.free_port()}")
    words = ("train", shared / "m.jsonl", url, shared / "b", *SMALL)
    assert way_out in in_a_process(*words, code=1)
    avarnet("train", shared / "m.jsonl", folder, shared / "b", *SMALL)


def test_where_another_recipe_was_pulled_before(shared: Path, url: str) -> None:
    other = Recipe(0.25, "fp32", {**RECIPE.streams, "audio": {"features": 2, "layers": "3"}}, {})
    folder = pulled_folder(url)
    with Writer(folder, other) as writer:
        writer.add("c00", clip(8, 0))
    output = in_a_process("train", shared / "m.jsonl", url, shared / "run", *SMALL, code=1)
    assert f"What was pulled before is in {folder}" in output
    assert "or delete it to pull anew" in output


def test_streams_are_joined_from_urls_too(shared: Path, url: str) -> None:
    flow = Recipe(0.25, "fp32", {"flow": {"features": 3}}, {})
    own = {}
    for clip_id, features in Store(shared / "store").items():
        streams = {"flow": np.array(features.streams["video"])}
        own[clip_id] = replace(features, streams=streams, valid={"flow": features.valid["video"]})
    pack(shared / "flow", own.items(), flow)
    push(shared / "flow", "s3://team/flow")
    words = ("--join", "s3://team/flow", *SMALL)
    result = as_json("train", shared / "m.jsonl", url, shared / "run", *words)
    assert result["config"]["streams"] == ["video", "audio", "flow"]


def test_the_folder_of_a_url_has_no_secret_in_its_name() -> None:
    folder = pulled_folder("sftp://ann:pw1@host.example/data/vaar/")
    assert "pw1" not in str(folder)
    assert folder == pulled_folder("sftp://ben:pw2@host.example/data/vaar")
    assert folder != pulled_folder("sftp://ann:pw1@host.example/data/other")
    assert folder.name.startswith("host.example-data-vaar-") or "host.example" in folder.name
