"""A writer's own folder in a store, where finished clips wait until they fill a shard."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import struct
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from features.clip_features import Features, Flag
from features.format.shard_writer import write_error
from features.recipe import UNREADABLE, FeatureError
from features.store_files import (
    open_regular,
    read_file,
    replace_file,
    share,
    share_folder,
)

SPOOL = ".spool-"  # how the folder's name begins
CLIP = ".safetensors"
LOCK = "lock"  # a file that the folder's writer keeps locked while it runs
MOST_CLIP = 2**30  # bytes of a clip, a day of video; the file of a stranger takes no more memory
IDLE_SECONDS = 3600.0  # after which a spool is abandoned, where the file system knows no locks


class Spool:
    """A folder of one writer in a store, locked while the writer runs.

    The lock only shows whether the writer still runs; no reader needs it.

    Args:
        store: the store's folder.
        adopt: the folder of a killed writer to take over; a new one is made if None.

    Raises:
        BlockingIOError: the writer of `adopt` still runs.
        PermissionError: `adopt` is another user's, who does not share it.
        FileNotFoundError: `adopt` no longer exists.
        FeatureError: the lock of `adopt` is no regular file.
        WriteError: the store cannot be written.
    """

    def __init__(self, store: Path, adopt: Path | None = None) -> None:
        self._files: list[Path] = []  # those of its own writer
        while True:
            self.path = adopt or store / f"{SPOOL}{uuid.uuid4().hex}"
            try:
                if adopt is None:
                    self.path.mkdir()
                self._lock = open_regular(self.path / LOCK, os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:
                if store.is_dir():
                    if adopt:
                        raise
                    continue
                raise write_error(store, None) from None
            except OSError as error:
                if adopt and isinstance(error, PermissionError):
                    raise  # another user's
                raise write_error(store, error) from error
            if self._try_lock(adopt is not None) and (self.path / LOCK).exists():
                if adopt is None:  # others see it from now on, locked
                    share_folder(self.path)
                    share(self._lock, self.path)
                return
            os.close(self._lock)
            if adopt:
                raise BlockingIOError
            # else another process took the new folder for an abandoned one: make another

    def _try_lock(self, adopted: bool) -> bool:
        """Try to take the lock; return whether that succeeded."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # some network file systems have no locks: an old folder is taken for abandoned
            return not adopted or time.time() - self.path.stat().st_mtime > IDLE_SECONDS
        return True

    def add(self, clip_id: str, features: Features, fingerprint: str) -> Path:
        """Put a clip into a file of its own, named after its recipe, its turn and its content.

        Args:
            clip_id: its id.
            features: of the clip.
            fingerprint: of the recipe.

        Returns:
            The file.

        Raises:
            FeatureError: the clip is too large.
            WriteError: the disk is full, or the folder no longer exists.
        """
        arrays: dict[str, NDArray[Any]] = {
            f"{name}/rows": rows for name, rows in features.streams.items()
        }
        arrays |= {f"{name}/valid": valid for name, valid in features.valid.items()}
        about = {
            "id": clip_id,
            "snippet_seconds": repr(features.snippet_seconds),
            "duration": repr(features.duration),
            "flags": str(int(features.flags)),
            "source": features.source,
        }
        # of a view, such as some columns of an array, safetensors writes other numbers
        whole = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        content = safetensors.numpy.save(whole, about)
        if len(content) > MOST_CLIP:
            raise FeatureError(
                f"clip {clip_id}: {len(content)} bytes of features, more than the {MOST_CLIP} that "
                "a clip can have; cut the video into parts"
            )
        file = self.path / f"{fingerprint}-{len(self._files):08d}-{_hash(content)}{CLIP}"
        try:
            replace_file(file, content)
        except OSError as error:
            raise write_error(self.path.parent, error) from error
        self._files.append(file)
        return file

    def clips(self, fingerprint: str) -> Iterator[tuple[str, Features]]:
        """Yield its clips of a recipe in the order in which they were added.

        Files that a power cut left incomplete are skipped, and those that others put into it while
        its writer runs.
        """
        for file in self._files or sorted(self.path.glob(f"{fingerprint}-*{CLIP}")):
            try:
                content = read_file(file, MOST_CLIP)
            except (FeatureError, OSError):
                continue  # not written by a writer of ours
            if not file.stem.endswith(f"-{_hash(content)}"):
                continue
            try:
                arrays = safetensors.numpy.load(content)
                (length,) = struct.unpack("<Q", content[:8])
                about = json.loads(content[8 : 8 + length])["__metadata__"]
                names = [name.removesuffix("/rows") for name in arrays if name.endswith("/rows")]
                yield (
                    about["id"],
                    Features(
                        {name: arrays[f"{name}/rows"] for name in names},
                        {name: arrays[f"{name}/valid"] for name in names},
                        float(about["snippet_seconds"]),
                        float(about["duration"]),
                        Flag(int(about["flags"])),
                        about["source"],
                    ),
                )
            except (*UNREADABLE, FeatureError, SafetensorError):
                continue

    def clear(self) -> None:
        """Delete the files in it."""
        for file in self.path.iterdir():
            if file.name != LOCK:
                file.unlink(missing_ok=True)
        self._files = []

    def remove(self) -> None:
        """Delete the folder and release the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Release the lock and leave the folder to `recover`."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def abandoned_spools(store: Path) -> Iterator[Spool]:
    """Yield the spools of killed writers, taken over."""
    for folder in sorted(store.glob(f"{SPOOL}*")):
        if folder.is_symlink() or not folder.is_dir():
            continue  # not made by a writer of ours
        try:
            yield Spool(store, adopt=folder)
        except (BlockingIOError, PermissionError, FileNotFoundError, FeatureError):
            continue


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
