"""Folders of stores from strangers: nothing outside them is read, written, waited for or sent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from memory import resident
from small_stores import RECIPE, SIZES, clip, fill, same

import features
from extract.job.failures import Failure, add_failure, read_failures, write_failures
from extract.job.log import log
from extract.job.refusal import earlier_refusal
from extract.job.timings import add_timing, mean_speed
from features import FeatureError, Shard, Store, pull, push, recover, verify, write_card

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
SECRET = "a secret\n"
FAILURE = Failure("clip", "why", "read", 1, "")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    fill(tmp_path / "store", {"one": clip(4, 1), "two": clip(5, 2)})
    return tmp_path / "store"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    file = tmp_path / "outside"
    file.write_text(SECRET)
    return file


def plant(file: Path, kind: str, outside: Path) -> None:
    """Put something at a file's place that is none."""
    file.unlink(missing_ok=True)
    if kind == "link":
        file.symlink_to(outside)
    elif kind == "link to nothing":
        file.symlink_to(outside.parent / "made")
    elif kind == "endless":
        file.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()


ACTS: dict[str, Callable[[Path], object]] = {
    "write_card": write_card,
    "push": lambda store: push(store, str(store.parent / "there")),
    "pull from it": lambda store: pull(str(store), store.parent / "here"),
    "pull into it": lambda store: pull(str(store.parent / "good"), store),
    "verify": verify,
    "repair": lambda store: features.repair(store, verify(store)[1]),
    "recover": recover,
    "compact": features.compact,
    "merge": lambda store: features.merge([store], store.parent / "merged"),
    "add_failure": lambda store: add_failure(store, FAILURE),
    "write_failures": lambda store: write_failures(store, [FAILURE]),
    "read_failures": read_failures,
    "log": lambda store: log(store, "a line"),
    "earlier_refusal": lambda store: earlier_refusal(store, "0"),
    "add_timing": lambda store: add_timing(store, 1.0, 1.0),
    "mean_speed": mean_speed,
}
NAMES = ["CARD.md", "failures.jsonl", ".failures.jsonl", "extract.log", "timings.jsonl"]


@pytest.mark.parametrize("kind", ["link", "link to nothing", "endless", "pipe", "folder"])
@pytest.mark.parametrize("name", [*NAMES, "recipe.json", "a shard", ".partial-"])
def test_what_is_no_file_is_not_opened(store: Path, outside: Path, name: str, kind: str) -> None:
    features.merge([store], store.parent / "good")
    shard = next(store.glob("*.h5"))
    if name == ".partial-":
        name += shard.name
        shard.unlink()
    plant(store / (shard.name if name == "a shard" else name), kind, outside)
    # of a folder where a file is to be
    expected = (FeatureError, IsADirectoryError) if kind == "folder" else FeatureError
    messages = []
    for act in ACTS.values():
        try:
            act(store)
        except expected as error:
            messages.append(str(error))
    assert SECRET.strip() not in "".join(messages)
    assert outside.read_text() == SECRET
    assert not (store.parent / "made").exists()
    for place in ("there", "here", "merged"):
        for file in store.parent.joinpath(place).glob("*"):
            assert not file.is_symlink()
            assert SECRET.encode() not in file.read_bytes()


def test_push_reports_that_a_card_is_a_link(store: Path, outside: Path) -> None:
    plant(store / "CARD.md", "link", outside)
    with pytest.raises(FeatureError, match=r"CARD\.md: not a regular file but a link.*delete"):
        push(store, str(store.parent / "there"))
    assert not (store.parent / "there").exists()


def test_a_shard_that_is_a_link_is_unreadable(store: Path, tmp_path: Path) -> None:
    shard = next(store.glob("*.h5"))
    shard.rename(tmp_path / shard.name)
    shard.symlink_to(tmp_path / shard.name)
    assert "links are not followed" in Store(store).unreadable[shard]
    with pytest.raises(FeatureError):
        Shard(shard)


def test_a_store_behind_a_link_is_one(store: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(store)
    assert set(Store(tmp_path / "linked")) == {"one", "two"}
    write_card(tmp_path / "linked")
    log(tmp_path / "linked", "a line")
    assert (store / "CARD.md").is_file()


def spooled(folder: Path, content: bytes, order: int = 0) -> Path:
    """Put a file into a spool under the name that its content has there."""
    digest = hashlib.sha256(content).hexdigest()[:16]
    file = folder / f"{RECIPE.fingerprint}-{order:08d}-{digest}.safetensors"
    file.write_bytes(content)
    return file


def content_of(clip_id: str, change: dict[str, Any] | None = None) -> bytes:
    some = clip(4, 7)
    arrays = {f"{name}/rows": np.ascontiguousarray(rows) for name, rows in some.streams.items()}
    arrays |= {f"{name}/valid": mask for name, mask in some.valid.items()}
    about = {"id": clip_id, "snippet_seconds": "0.25", "duration": "1.0", "flags": "0"}
    for name, value in (change or {}).items():
        (about if isinstance(value, str) else arrays)[name] = value
    return bytes(safetensors.numpy.save(arrays, {"source": "", **about}))


HOSTILE: dict[str, dict[str, Any]] = {
    "no end": {"duration": "nan"},
    "endless": {"duration": "inf"},
    "before its start": {"duration": "-1.0"},
    "flags beyond a byte": {"flags": "256"},
    "source that is no hash": {"source": "x"},
    "source of another length": {"source": "ab"},
    "source in capitals": {"source": "AB" * 32},
    "rows in float32": {"video/rows": np.ones((4, 3), np.float32)},
    "rows of integers": {"video/rows": np.ones((4, 3), np.int16)},
    "rows of one dimension": {"video/rows": np.ones(4, np.float16)},
    "rows of three": {"video/rows": np.ones((4, 3, 1), np.float16)},
    "a single value": {"video/rows": np.ones((), np.float16)},
    "validity in bytes": {"video/valid": np.full(4, 2, np.uint8)},
    "validity of neither": {"video/valid": np.full(4, 2, np.uint8).view(bool)},
    "validity in columns": {"video/valid": np.ones((4, 3), bool)},
    "no rows": {
        f"{name}/{part}": np.ones((0, width)[: 1 + (part == "rows")], dtype)
        for name, width in SIZES.items()
        for part, dtype in (("rows", np.float16), ("valid", bool))
    },
    "valid, and not finite": {
        "video/rows": np.full((4, 3), np.nan, np.float16),
        "video/valid": np.ones(4, bool),
    },
    "an id that leads out": {"id": "../x"},
    "an id too long": {"id": "x" * 201},
    "a stream more": {"flow/rows": np.ones((4, 3), np.float16), "flow/valid": np.ones(4, bool)},
    "another grid": {"snippet_seconds": "0.5"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_writer_put_into_a_spool_is_not_sealed(store: Path, name: str) -> None:
    """Nor does it hinder anything, now or later."""
    (store / ".spool-0").mkdir()
    spooled(store / ".spool-0", content_of("planted", HOSTILE[name]), 1)
    spooled(store / ".spool-0", content_of("left by a killed writer"), 2)
    assert features.compact(store).after == 1
    assert set(Store(store)) == {"one", "two", "left by a killed writer"}
    assert verify(store) == (3, [])
    assert not (store / ".spool-0").exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_planted_in_a_live_spool_is_left_out(store: Path, name: str) -> None:
    with features.Writer(store, RECIPE) as writer:
        mine = writer.add("three", clip(4, 3))
        spooled(mine.parent, content_of("three", HOSTILE[name]), 9)
    assert set(Store(store)) == {"one", "two", "three"}
    assert same(Store(store)["three"], clip(4, 3))
    assert verify(store) == (3, [])


def test_a_spool_that_is_a_link_is_left_alone(store: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    spooled(theirs, content_of("planted"))
    (store / ".spool-0").symlink_to(theirs)
    assert recover(store) == []
    assert {file.suffix for file in theirs.iterdir()} == {".safetensors"}  # no lock either


@pytest.mark.parametrize("kind", ["link", "link to nothing", "endless", "pipe", "folder"])
def test_a_lock_that_is_no_file(store: Path, outside: Path, kind: str) -> None:
    (store / ".spool-0").mkdir()
    spooled(store / ".spool-0", content_of("planted"))
    plant(store / ".spool-0" / "lock", kind, outside)
    assert recover(store) == []
    assert not (outside.parent / "made").exists()


@pytest.mark.parametrize("kind", ["link", "endless", "pipe", "folder"])
def test_clips_in_a_spool_that_are_no_files(store: Path, outside: Path, kind: str) -> None:
    spool = store / ".spool-0"
    spool.mkdir()
    spooled(spool, content_of("left by a killed writer"), 1)
    whole = spooled(spool, content_of("elsewhere"), 2)
    content = whole.read_bytes()
    outside.write_bytes(content)
    plant(whole, kind, outside)
    assert recover(store) == ["left by a killed writer"]
    assert outside.read_bytes() == content


def test_a_file_of_holes_in_a_spool_takes_no_memory(store: Path) -> None:
    (store / ".spool-0").mkdir()
    file = spooled(store / ".spool-0", b"")
    with open(file, "wb") as hole:
        hole.truncate(2**40)
    before = resident()
    assert recover(store) == []
    assert resident() - before < 2**20 * 100
