"""Adding clips to a store so that no kill, full disk or second writer loses or doubles one."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from features.clip import Features
from features.recipe import FeatureError, Recipe
from features.shard import Shard, write_error, write_shard
from features.store import UNFINISHED, Store, create

SHARD_BYTES = 256 * 2**20
SPOOL = ".spool-"  # a writer's own folder, in the store's
LOCK = "lock"  # in a spool: held by its writer as long as that lives
IDLE_SECONDS = 3600.0  # after which a spool is abandoned, where the file system knows no locks


class Writer:
    """Adds clips to a store; use it as a context manager.

    Each clip is put at once into the writer's spool as a sealed file of its own, so that a killed
    process loses no finished clip, and the clips of the spool are sealed together when they fill a
    shard. What a killed writer left in its spool is sealed by `recover`. Several writers may be at
    work on one store.

    Args:
        path: the store's folder; see `create`.
        recipe: the recipe of every clip that will be added.
        shard_bytes: how much to gather before sealing a shard.

    Raises:
        WriteError: the store cannot be written.
    """

    def __init__(self, path: Path, recipe: Recipe, shard_bytes: int = SHARD_BYTES) -> None:
        create(path, recipe)
        self.path = path
        self.recipe = recipe
        self.shard_bytes = shard_bytes
        self._spool = Spool(path)
        self._waiting: dict[str, Features] = {}
        self._bytes = 0

    def add(self, clip_id: str, features: Features) -> None:
        """Add one clip; when this returns, a kill of the process cannot lose it."""
        write_shard(self._spool.path, self.recipe, {clip_id: features})
        self._waiting[clip_id] = features
        self._bytes += _nbytes(features)
        if self._bytes >= self.shard_bytes:
            self.seal()

    def seal(self) -> None:
        """Seal what has been added so far."""
        if self._waiting:
            write_shard(self.path, self.recipe, self._waiting, self._spool.path)
            self._spool.clear()
        self._waiting, self._bytes = {}, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.seal()
        except BaseException:
            self._spool.release()  # `recover` finds what it holds
            raise
        self._spool.remove()


def pack(
    path: Path,
    clips: Iterable[tuple[str, Features]],
    recipe: Recipe,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Seal clips that are at hand already into a store, without a spool; return the new shards.

    Raises:
        WriteError: the store cannot be written; the shards sealed so far stay.
    """
    create(path, recipe)
    sealed: list[Path] = []
    waiting: dict[str, Features] = {}
    size = 0
    with Spool(path) as scratch:
        for clip_id, features in clips:
            waiting[clip_id] = features
            size += _nbytes(features)
            if size >= shard_bytes:
                sealed.append(write_shard(path, recipe, waiting, scratch.path))
                waiting, size = {}, 0
        if waiting:
            sealed.append(write_shard(path, recipe, waiting, scratch.path))
    return sealed


def recover(path: Path) -> list[str]:
    """Seal the finished clips that killed writers left in their spools, and return their ids.

    The spools of living writers are left alone.

    Raises:
        WriteError: the store cannot be written.
    """
    for stray in path.glob(f"{UNFINISHED}*"):
        stray.unlink(missing_ok=True)
    abandoned = list(_abandoned(path))
    if not abandoned:
        return []
    held = Store(path)
    recovered: dict[str, None] = {}

    def finished() -> Iterator[tuple[str, Features]]:
        for spool in abandoned:
            for file in sorted(spool.path.glob("*.h5")):
                try:
                    shard = Shard(file)
                    clip_id, features = shard.ids[0], shard.read(0)
                except FeatureError:
                    continue  # damaged: its clip is done again
                known = clip_id in held or clip_id in recovered
                if not known and shard.recipe.fingerprint == held.recipe.fingerprint:
                    recovered[clip_id] = None
                    # a copy, since each mapped file holds one of the few open files of a process
                    streams = {name: rows.copy() for name, rows in features.streams.items()}
                    valid = {name: there.copy() for name, there in features.valid.items()}
                    yield clip_id, replace(features, streams=streams, valid=valid)

    pack(path, finished(), held.recipe)
    for spool in abandoned:
        spool.remove()
    return list(recovered)


class Spool:
    """A folder of one writer in a store, locked while the writer lives.

    The lock only tells the living from the dead; no reader needs it.

    Args:
        store: the store's folder.
        adopt: the folder of a dead writer to take over; a new one is made if None.

    Raises:
        BlockingIOError: the writer of `adopt` lives.
        FileNotFoundError: `adopt` is gone.
        WriteError: the store cannot be written.
    """

    def __init__(self, store: Path, adopt: Path | None = None) -> None:
        while True:
            self.path = adopt or store / f"{SPOOL}{uuid.uuid4().hex}"
            try:
                if adopt is None:
                    self.path.mkdir()
                self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:
                if store.is_dir():
                    if adopt:
                        raise
                    continue
                raise write_error(store, None) from None
            except OSError as error:
                raise write_error(store, error) from error
            if self._hold(adopt is not None) and (self.path / LOCK).exists():
                return
            os.close(self._lock)
            if adopt:
                raise BlockingIOError
            # else another process took the new folder for an abandoned one: make another

    def _hold(self, adopted: bool) -> bool:
        """Take the lock; return whether that succeeded."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # some network file systems know no locks: there, only time tells
            return not adopted or time.time() - self.path.stat().st_mtime > IDLE_SECONDS
        return True

    def clear(self) -> None:
        """Delete the files in it."""
        for file in self.path.iterdir():
            if file.name != LOCK:
                file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder and let go of the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Let go of the lock and leave the folder to `recover`."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _abandoned(store: Path) -> Iterator[Spool]:
    for folder in sorted(store.glob(f"{SPOOL}*")):
        try:
            yield Spool(store, adopt=folder)
        except (BlockingIOError, FileNotFoundError):
            continue


def _nbytes(features: Features) -> int:
    return sum(rows.nbytes for rows in features.streams.values())
