"""Kills (-9) of what works on whole stores: nothing is lost or wrong, and the next run ends it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kills import run_and_kill
from small_stores import RECIPE, clip, same

from features import Store, Writer, compact, merge, pack, pull, push, verify
from features.format.shard_name import ShardName, file_hash
from features.store import UNFINISHED

pytestmark = pytest.mark.slow
CLIPS = {f"clip-{number}": clip(2000 + number, number) for number in range(24)}  # 24 kB each
LEFT = clip(50, 99)  # in the spool of a killed writer
Act = Callable[[Path, Path], object]


def pull_all(ours: Path, theirs: Path) -> None:
    pull(str(theirs), ours)


def pull_clips(ours: Path, theirs: Path) -> None:
    pull(str(theirs), ours, list(CLIPS), trim=True)


def merge_all(ours: Path, theirs: Path) -> None:
    merge([theirs], ours)


def push_all(ours: Path, theirs: Path) -> None:
    push(theirs, str(ours))


def compact_all(ours: Path, theirs: Path) -> None:
    compact(ours)


def check(path: Path, every: bool) -> None:
    """Hold what is in a store against the right answers."""
    for file in path.glob("[!.]*.h5"):
        name = ShardName.parse(file.name)
        assert name is not None
        assert file_hash(file) == name.content
    if not (path / "recipe.json").exists():
        assert not every
        return
    store = Store(path)
    assert store.unreadable == {}
    right = CLIPS | {"left": LEFT}
    assert all(same(store[clip_id], right[clip_id]) for clip_id in store)
    assert not every or CLIPS.keys() <= store.keys()


def prepare(path: Path, theirs: Path) -> None:
    """A store of many small shards, and what a killed writer left in it."""
    pack(path, (), RECIPE)
    for shard in theirs.glob("*.h5"):
        os.link(shard, path / shard.name)
    writer = Writer(path, RECIPE)
    writer.add("left", LEFT)
    writer._spool.release()


@pytest.mark.parametrize("kills", [20, pytest.param(300, marks=pytest.mark.soak)])
@pytest.mark.parametrize("act", [pull_all, pull_clips, push_all, merge_all, compact_all])
def test_killed_at_any_moment(kills: int, act: Act, tmp_path: Path) -> None:
    rng = np.random.default_rng(kills)
    theirs = tmp_path / "theirs"
    assert len(pack(theirs, CLIPS.items(), RECIPE, shard_bytes=1)) == len(CLIPS)
    compacting = act is compact_all

    def fresh(number: int) -> Path:
        path = tmp_path / f"ours-{number}"
        if compacting:
            prepare(path, theirs)
        return path

    started = time.monotonic()
    act(fresh(0), theirs)
    usual = time.monotonic() - started
    killed, number, path = 0, 1, fresh(1)
    while killed < kills:
        cut = run_and_kill(act, (path, theirs), rng.uniform(0, usual))
        killed += cut
        check(path, every=compacting or not cut)
        if compacting or not cut or killed == kills:
            act(path, theirs)  # the next run ends it
            check(path, every=True)
            assert verify(path) == (len(CLIPS) + compacting, [])
            left = [file.name for file in path.glob(".*")]
            assert all(name.startswith(UNFINISHED) for name in left), left
            number += 1
            path = fresh(number)
