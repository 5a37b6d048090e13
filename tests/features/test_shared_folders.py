"""Stores that a group of users shares: two real users, whatever their umask."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_stores import RECIPE, clip, fill, same

from extract.job.failures import Failure, add_failure, read_failures, write_failures
from extract.job.log import LOG, log
from features import Store, Writer, compact, create, drop, import_npy, pull, push, recover, verify
from features.store_files import append_line, open_regular

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users"),
]
GROUP, ALICE, BOB = 54320, 54321, 54322  # no accounts are needed
# with all that is imported
FORK = multiprocessing.get_context("fork")


def be(user: int, umask: int, report: Connection, work: Callable[..., Any], args: Any) -> None:
    os.setgroups([GROUP])
    os.setgid(user)
    os.setuid(user)
    os.umask(umask)
    try:
        report.send(work(*args))
    except Exception:
        report.send(AssertionError(traceback.format_exc()))


def as_user(user: int, work: Callable[..., Any], *args: Any, umask: int = 0o022) -> Any:
    """Return what a function returns that a user runs in a process of its own."""
    receiving, sending = FORK.Pipe(duplex=False)
    process = FORK.Process(target=be, args=(user, umask, sending, work, args))
    process.start()
    sending.close()
    try:
        result = receiving.recv()
    except EOFError:
        result = None  # it ended itself
    process.join()
    if isinstance(result, Exception):
        raise result
    return result


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import what is imported where it is used: only root may reach Python's own files."""
    path = tmp_path_factory.mktemp("imported")
    fill(path / "a", {"a": clip(4)})
    push(path / "a", str(path / "b"))
    pull(str(path / "b"), path / "c")
    np.save(path / "x.npy", np.ones((4, 3), np.float32))
    import_npy(path / "d", {"rgb": f"{path}/{{clip}}.npy"}, 0.25, "a test")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place that all users reach."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def store(folder: Path) -> Path:
    """A store's folder, as docs/sharing.md says to set up one that is shared."""
    path = folder / "store"
    path.mkdir()
    os.chown(path, 0, GROUP)
    path.chmod(0o2775)
    return path


def assert_shared(store: Path) -> None:
    for path in store.rglob("*"):
        status = path.stat()
        wanted = 0o2070 if path.is_dir() else 0o060
        assert status.st_gid == GROUP, path
        assert status.st_mode & wanted == wanted, (path, stat.filemode(status.st_mode))
        assert not status.st_mode & stat.S_IWOTH, path


def write(path: Path, *numbers: int) -> None:
    fill(path, {f"clip-{number}": clip(4, number) for number in numbers})


def write_and_die(path: Path, number: int) -> None:
    writer = Writer(path, RECIPE)
    writer.add(f"clip-{number}", clip(4, number))
    os._exit(9)


def write_slowly(path: Path, number: int) -> None:
    with Writer(path, RECIPE) as writer:
        writer.add(f"clip-{number}", clip(4, number))
        (path.parent / "written").touch()
        while not (path.parent / "go on").exists():
            time.sleep(0.01)


def keep_books(path: Path, name: str) -> set[str]:
    log(path, name)
    add_failure(path, Failure(name, "why", "read", 1, ""))
    write_failures(path, read_failures(path).values())
    return set(read_failures(path))


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_one_resumes_what_the_other_began(folder: Path, store: Path, umask: int) -> None:
    as_user(ALICE, write, store, 1, 2, umask=umask)
    as_user(ALICE, write_and_die, store, 3, umask=umask)
    assert_shared(store)
    assert as_user(BOB, recover, store, umask=umask) == ["clip-3"]
    as_user(BOB, write, store, 4, umask=umask)
    assert_shared(store)
    assert as_user(ALICE, compact, store, umask=umask).after == 1
    assert as_user(BOB, drop, store, ["clip-1"], umask=umask) == ["clip-1"]
    assert as_user(ALICE, keep_books, store, "alice", umask=umask) == {"alice"}
    assert as_user(BOB, keep_books, store, "bob", umask=umask) == {"alice", "bob"}
    assert len((store / LOG).read_text().splitlines()) == 2
    assert_shared(store)
    assert verify(store) == (3, [])
    assert all(same(Store(store)[f"clip-{n}"], clip(4, n)) for n in (2, 3, 4))
    assert not list(store.glob(".spool-*"))


def test_what_the_other_is_at_work_on_is_left_alone(folder: Path, store: Path) -> None:
    folder.chmod(0o777)
    writer = FORK.Process(target=as_user, args=(ALICE, write_slowly, store, 1))
    writer.start()
    while not (folder / "written").exists():
        time.sleep(0.01)
    (spool,) = store.glob(".spool-*")
    as_user(BOB, write, store, 2)
    as_user(BOB, write, store, 3)
    assert as_user(BOB, compact, store).after == 1
    assert as_user(BOB, drop, store, ["clip-3"]) == ["clip-3"]
    assert spool.exists()
    (folder / "go on").touch()
    writer.join()
    assert set(Store(store)) == {"clip-1", "clip-2"}
    assert verify(store) == (2, [])


def test_import_beside_the_others(folder: Path, store: Path) -> None:
    for name in ("one", "two"):
        np.save(folder / f"{name}.npy", np.ones((4, 3), np.float32))
    options = (store, {"rgb": f"{folder}/{{clip}}.npy"}, 0.25, "a test")
    as_user(ALICE, import_npy, *options)
    np.save(folder / "three.npy", np.ones((4, 3), np.float32))
    assert as_user(BOB, import_npy, *options).imported == ["three"]
    assert_shared(store)


def test_transfers_that_the_other_began(folder: Path, store: Path) -> None:
    fill(folder / "source", {"a": clip(4), "b": clip(5, 1)})
    for path in (folder / "source", *folder.joinpath("source").iterdir()):
        path.chmod(0o755)
    (shard,) = folder.joinpath("source").glob("*.h5")
    as_user(ALICE, create, store, RECIPE, umask=0o077)
    as_user(ALICE, begin, store / f".partial-{shard.name}", shard, umask=0o077)
    assert as_user(BOB, pull, str(folder / "source"), store).nbytes == shard.stat().st_size - 1000
    assert_shared(store)
    (store / shard.name).unlink()
    as_user(ALICE, begin, store / f".partial-{shard.name}", shard, umask=0o077)
    assert as_user(BOB, push, folder / "source", str(store)).nbytes == shard.stat().st_size - 1000
    assert_shared(store)
    assert verify(store) == (2, [])


def begin(partial: Path, shard: Path) -> None:
    with os.fdopen(open_regular(partial, os.O_WRONLY | os.O_CREAT), "wb") as file:
        file.write(shard.read_bytes()[:1000])


def test_a_folder_that_is_not_shared_stays_so(folder: Path) -> None:
    """Neither a folder of one's own, nor one whose group the user is not in."""
    for name, owner, group, mode in (("own", ALICE, ALICE, 0o755), ("foreign", ALICE, 0, 0o775)):
        path = folder / name
        path.mkdir()
        os.chown(path, owner, group)
        path.chmod(mode)
        as_user(ALICE, write, path, 1)
        as_user(ALICE, write_and_die, path, 2)
        for made in path.rglob("*"):
            assert not made.stat().st_mode & 0o022, made
    # what another does not share is not recovered, and hinders nobody
    os.chown(folder / "own", ALICE, GROUP)
    (folder / "own").chmod(0o2775)
    as_user(BOB, write, folder / "own", 3)
    assert as_user(BOB, compact, folder / "own").after == 1
    assert as_user(ALICE, recover, folder / "own") == ["clip-2"]


def test_what_has_another_name_elsewhere_is_not_opened_to_the_group(
    folder: Path, store: Path
) -> None:
    secret = folder / "secret"
    secret.write_text("a secret\n")
    secret.chmod(0o600)
    os.chown(secret, ALICE, ALICE)
    os.link(secret, store / LOG)
    as_user(ALICE, append_line, store / LOG, "a line")
    assert (secret.stat().st_mode & 0o777, secret.stat().st_gid) == (0o600, ALICE)
