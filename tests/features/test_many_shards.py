"""Stores of more shards than a process may hold files open."""

from __future__ import annotations

import multiprocessing
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from small_stores import RECIPE, clip, same

from features import (
    FeatureError,
    Store,
    compact,
    create,
    entries,
    overview,
    pack,
    recover,
    search,
    verify,
)
from features.format.mapped_file import map_file

pytestmark = pytest.mark.slow
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["features", "small_stores"])


def use(path: Path, count: int, files: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    os.environ["XDG_CACHE_HOME"] = str(path.parent)
    clips = {f"clip-{number}": clip(3, number) for number in range(count)}
    store = Store(path)
    assert len(store.shards) == count
    about = overview(store)
    assert (about.clips, about.shards, about.snippets) == (count, count, 3 * count)
    none = sum(not features.video_valid.any() for features in clips.values())
    assert about.lacking["video"] == none
    assert len(entries(store)) == count
    loaded = dict(store)  # all at once, as training holds them
    assert all(same(loaded[clip_id], clips[clip_id]) for clip_id in clips)
    assert len(search(store, "clip-1")) > 1
    assert len(search(store, "clip-1")) > 1  # from the means that were kept
    assert verify(path) == (count, [])
    assert compact(path) == (count, 1)
    assert set(Store(path)) == set(clips)


@pytest.mark.parametrize(
    ("count", "files"), [(200, 64), pytest.param(20_000, 1024, marks=pytest.mark.soak)]
)
def test_more_shards_than_descriptors(tmp_path: Path, count: int, files: int) -> None:
    clips = ((f"clip-{number}", clip(3, number)) for number in range(count))
    pack(tmp_path / "store", clips, RECIPE, shard_bytes=1)
    process = SERVER.Process(target=use, args=(tmp_path / "store", count, files))
    process.start()
    process.join()
    assert process.exitcode == 0


def recover_with(path: Path, files: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    assert recover(path) == []
    assert not list(path.glob(".spool-*"))


def test_more_spools_than_descriptors(tmp_path: Path) -> None:
    create(tmp_path, RECIPE)
    for number in range(300):
        (tmp_path / f".spool-{number}").mkdir()
    process = SERVER.Process(target=recover_with, args=(tmp_path, 150))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_mapped_bytes_are_those_of_the_file_and_outlive_it(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(100_001)
    file = tmp_path / "file"
    file.write_bytes(content)
    mapped = map_file(file)
    file.unlink()
    part = mapped[10:20].view("<f2")
    assert mapped.tobytes() == content
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        mapped.flags.writeable = True
    del mapped
    assert part.tobytes() == content[10:20]


def test_what_cannot_be_mapped(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        map_file(tmp_path / "empty")
    with pytest.raises(FeatureError, match="a folder"):
        map_file(tmp_path)


def test_memory_is_given_back(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(2**20))

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(file))

    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc here")
    parts = [map_file(file)[:10] for _ in range(3)]
    assert mapped() == 3
    del parts[1:]
    assert mapped() == 1
