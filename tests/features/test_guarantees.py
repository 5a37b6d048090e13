"""What a store promises: through kills, full disks, several writers, flipped bits."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_stores import RECIPE, clip, fill, same, write_some, write_until_killed

from features import (
    FeatureError,
    Features,
    Shard,
    Store,
    WriteError,
    Writer,
    compact,
    pack,
    recover,
    repair,
    verify,
)

pytestmark = pytest.mark.slow

# a clean server process that has the imports and forks the writers, which `small_stores` holds as
# this module's own imports would slow their start
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["features", "small_stores"])


def only_a_store(path: Path) -> bool:
    return {file.suffix for file in path.iterdir()} <= {".h5", ".json", ".md"}


@pytest.mark.parametrize("kills", [200, pytest.param(5000, marks=pytest.mark.soak)])
def test_killed_at_any_moment(kills: int, tmp_path: Path) -> None:
    """Kill a writer at random moments; the next one goes on after its last clip."""
    rng = np.random.default_rng(0)
    expected = 0
    for _ in range(kills):
        receiving, sending = SERVER.Pipe(duplex=False)
        writer = SERVER.Process(target=write_until_killed, args=(tmp_path, expected, sending))
        writer.start()
        sending.close()
        if rng.random() < 0.8:  # else it is killed while it starts
            expected = receiving.recv() + 1
        time.sleep(rng.uniform(0, 0.06))
        if (tmp_path / "recipe.json").exists():
            assert Store(tmp_path).unreadable == {}  # while it writes: never half a shard
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        while True:  # what it had said to be safe
            try:
                expected = receiving.recv() + 1
            except EOFError:
                break
        if not (tmp_path / "recipe.json").exists():
            continue  # killed before it had begun
        recover(tmp_path)
        assert only_a_store(tmp_path)
        store = Store(tmp_path)
        assert store.unreadable == {}
        assert len(store) in (expected, expected + 1)  # one may be safe, but not yet said to be
        expected = len(store)
        if len(store.shards) > 20:
            compact(tmp_path)  # or opening all of them would take most of the time
        assert set(store) == {f"clip-{number}" for number in range(expected)}
    assert expected > kills
    store = Store(tmp_path)
    assert sum(map(len, store.shards)) == expected  # none is there twice
    assert verify(tmp_path) == (expected, [])
    assert all(same(store[f"clip-{number}"], clip(5, number)) for number in range(expected))


def test_two_writers_and_a_reader_at_once(tmp_path: Path) -> None:
    """The writers overlap in half of their clips; recovery beside them leaves them alone."""
    Writer(tmp_path, RECIPE).seal()
    writers = [SERVER.Process(target=write_some, args=(tmp_path, first, 100)) for first in (0, 50)]
    for writer in writers:
        writer.start()
    seen: set[str] = set()
    while any(writer.is_alive() for writer in writers):
        store = Store(tmp_path)
        assert store.unreadable == {}
        assert seen <= set(store)  # what was there once is there for good
        seen = set(store)
        assert all(same(store[i], clip(3, int(i[5:]))) for i in seen)
        assert recover(tmp_path) == []
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    recover(tmp_path)  # the spool of the first `Writer` above, which was never closed
    assert set(Store(tmp_path)) == {f"clip-{number}" for number in range(150)}
    assert verify(tmp_path) == (150, [])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with room for 1 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk can only be mounted by root: {done.stderr}")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_disk_full(small_disk: Path) -> None:
    path = small_disk / "store"
    safe: list[str] = []

    def write_until_full() -> None:
        with Writer(path, RECIPE, shard_bytes=100_000) as writer:
            for number in range(1000):
                writer.add(f"clip-{number}", clip(2000, number))
                safe.append(f"clip-{number}")

    with pytest.raises(WriteError, match=r"store.*no space left on device.*run the same command"):
        write_until_full()
    assert len(safe) > 5
    sealed = set(Store(path))
    assert Store(path).unreadable == {}
    assert sealed <= set(safe)
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    recover(path)
    assert set(safe) <= set(Store(path))
    assert verify(path) == (len(Store(path)), [])
    assert only_a_store(path)


def test_folder_vanishes(tmp_path: Path) -> None:
    path = tmp_path / "store"
    writer = Writer(path, RECIPE)
    writer.add("a", clip(3))
    shutil.rmtree(path)
    with pytest.raises(WriteError, match="the folder is gone"):
        writer.add("b", clip(3))
    assert not path.exists()


def test_read_only_folder(tmp_path: Path) -> None:
    """Tried as a user who is not root, for whom no folder is read-only."""
    fill(tmp_path / "store", {"a": clip(4)})
    (tmp_path / "store").chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == Path(tmp_path).owner():
            folder.chmod(folder.stat().st_mode | 0o055)
    process = SERVER.Process(target=write_as_nobody, args=(tmp_path / "store",))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert only_a_store(tmp_path / "store")
    assert verify(tmp_path / "store") == (1, [])


def write_as_nobody(path: Path) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)
    assert same(Store(path)["a"], clip(4))
    with pytest.raises(WriteError, match=r"store: cannot write there \(permission denied\)"):
        write_some(path, 0, 1)


def test_damage_on_a_read_only_disk_is_named(small_disk: Path) -> None:
    store = small_disk / "store"
    pack(store, {"a": clip(4), "b": clip(5, 1), "c": clip(6, 2)}.items(), RECIPE, shard_bytes=40)
    cut, flipped = (Store(store).locate(clip_id).shard.path for clip_id in "bc")
    content = bytearray(flipped.read_bytes())
    content[content.index(clip(6, 2).video.tobytes())] ^= 1
    flipped.write_bytes(content)
    os.truncate(cut, 1000)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    intact, damages = verify(store)
    assert intact == 1
    assert {damage.shard: damage.clips for damage in damages} == {cut: [], flipped: ["c"]}
    with pytest.raises(WriteError, match="read-only file system"):
        repair(store, damages)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    repair(store, damages)
    assert list(Store(store)) == ["a"]


def test_a_shard_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    """Tried as a user who is not root, whom no file is closed to."""
    fill(tmp_path, {"a": clip(4)})
    fill(tmp_path, {"b": clip(5, 1)})
    closed = Store(tmp_path).locate("b").shard.path
    closed.chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == tmp_path.owner():
            folder.chmod(folder.stat().st_mode | 0o055)
    receiving, sending = SERVER.Pipe(duplex=False)
    SERVER.Process(target=verify_as_nobody, args=(tmp_path, sending)).start()
    sending.close()
    (damage,) = receiving.recv()
    assert damage.shard == closed
    assert "permission denied" in damage.reason
    assert "permission denied" in receiving.recv()
    closed.chmod(0o644)
    assert verify(tmp_path) == (2, [])  # it was not taken out


def verify_as_nobody(path: Path, sending: Connection) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)
    damages = verify(path).damages
    sending.send(damages)
    with pytest.raises(FeatureError) as caught:
        repair(path, damages)
    sending.send(str(caught.value))


CLIPS = {f"clip-{number}": clip(4 + number, number) for number in range(12)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "store"
    pack(path, CLIPS.items(), RECIPE, 250)
    assert len(Store(path).shards) > 3
    return path


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_damage_is_found_named_and_repaired(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "store"
    shutil.copytree(sound, path)
    shards = sorted(path.glob("*.h5"))
    victim = data.draw(st.sampled_from(shards))
    content = bytearray(victim.read_bytes())
    inside = set(Shard(victim).ids)
    kind = data.draw(st.sampled_from(["bit", "cut", "name"]))
    if kind == "bit":
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        victim.write_bytes(content)
    elif kind == "cut":
        victim.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    else:
        other = data.draw(st.sampled_from([s for s in shards if s != victim]))
        inside |= set(Shard(other).ids)
        swap = victim.read_bytes()
        victim.write_bytes(other.read_bytes())
        other.write_bytes(swap)
    intact, damages = verify(path)
    assert {damage.shard for damage in damages} >= {victim}
    hurt = {clip_id for damage in damages for clip_id in damage.clips}
    store = Store(path)
    for clip_id in CLIPS.keys() - inside:
        assert same(store[clip_id], CLIPS[clip_id])  # the rest stay readable
    for clip_id in set(store):
        if clip_id in hurt:
            with pytest.raises(FeatureError, match=clip_id):
                store[clip_id]
        else:
            assert same(store[clip_id], CLIPS[clip_id])
    repair(path, damages)
    missing = CLIPS.keys() - set(Store(path))
    # what is missing is what was named, or all of a shard of which nothing could be told
    assert missing <= inside
    if all(damage.readable for damage in damages):
        assert len(missing) == len(hurt)
        assert intact >= len(CLIPS) - len(inside)
    pack(path, ((clip_id, CLIPS[clip_id]) for clip_id in missing), RECIPE)
    assert verify(path) == (len(CLIPS), [])
    assert all(same(Store(path)[clip_id], CLIPS[clip_id]) for clip_id in CLIPS)


class Rows(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, store: Store) -> None:
        self.store, self.ids = store, sorted(store)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(self.store[self.ids[index]].video)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_with_four_workers(sound: Path, start: str) -> None:
    store = Store(sound)
    first = next(iter(store))
    assert same(store[first], CLIPS[first])  # its maps are open before the workers start
    loader = torch.utils.data.DataLoader(
        Rows(store),
        batch_size=None,
        num_workers=4,
        multiprocessing_context=start,
        persistent_workers=True,
    )
    for _ in range(2):
        for rows, clip_id in zip(loader, sorted(store), strict=True):
            assert (rows.numpy() == CLIPS[clip_id].video).all()


def test_threads_share_a_store(sound: Path) -> None:
    store = Store(sound)
    wrong: list[str] = []

    def read(seed: int) -> None:
        for clip_id in np.random.default_rng(seed).permutation(list(CLIPS)):
            if not same(store[clip_id], CLIPS[clip_id]):
                wrong.append(clip_id)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_reader_keeps_what_it_opened(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "store")
    store = Store(tmp_path / "store")
    rows: dict[str, Features] = {clip_id: store[clip_id] for clip_id in store}
    shutil.rmtree(tmp_path / "store")
    assert all(same(rows[clip_id], CLIPS[clip_id]) for clip_id in CLIPS)
