"""Whether this machine and the workers of a job see the same disks."""

from __future__ import annotations

import os
import platform
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from features import RECIPE_FILE, Store
from features.pending_clips import Spool

MARKER_VISIBLE = 5.0  # seconds until a new file is visible to every machine that shares its disk
CLIPS_VISIBLE = 60.0  # seconds until this machine must find in the store what a worker wrote there
STORE_AWAY = 300.0  # seconds that a store's folder may be away, as network folders are at times
MARKER_POLL = 0.5  # seconds between two looks for a marker
STORE_POLL = 2.0  # seconds between two looks for a store's folder


class Marker(NamedTuple):
    """What is sent to the workers: a file in the store, and what is in it."""

    file: Path
    content: str

    def mismatch(self, patience: float = MARKER_VISIBLE) -> str:
        """Return what is at the store's path instead; "" if the file is found within `patience`.

        Its name is new, so that no network file system has an old answer in its cache.
        """
        until = time.monotonic() + patience
        while True:
            try:
                if self.file.read_text(encoding="utf-8") == self.content:
                    return ""
            except OSError as error:
                why = (error.strerror or str(error)).lower()
            else:
                why = "it has another content"
            if time.monotonic() >= until:
                break
            time.sleep(MARKER_POLL)
        store = self.file.parent.parent
        if not store.is_dir():
            return "there is no such folder"
        has = "a store" if (store / RECIPE_FILE).exists() else "no store"
        return f"{has} there, without the mark of this job ({self.file.name}: {why})"


class StoreMarker:
    """A marker in a store for as long as a job runs, in a spool of its own.

    That is so that a killed job's is removed as other spools are.

    Args:
        store: folder of the store.

    Raises:
        WriteError: the store cannot be written.
    """

    def __init__(self, store: Path) -> None:
        self._spool = Spool(store.resolve())
        self.marker = Marker(self._spool.path / "mark", uuid.uuid4().hex)
        try:
            self.marker.file.write_text(self.marker.content, encoding="utf-8")
        except OSError:
            self._spool.remove()
            raise

    def keep_alive(self) -> None:
        """Show that the job lives, where the file system knows no locks."""
        with suppress(OSError):
            os.utime(self._spool.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.remove()


def unreadable(path: Path) -> str:
    """Return why a file cannot be read on this machine; "" if it can."""
    try:
        os.stat(path)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "" if os.access(path, os.R_OK) else "permission denied"


def wait_for_store(store: Path) -> bool:
    """Wait for a store whose folder is away; return whether it came back."""
    until = time.monotonic() + STORE_AWAY
    while not (store / RECIPE_FILE).exists():
        if time.monotonic() > until:
            return False
        time.sleep(STORE_POLL)
    return True


def missing_clips(store: Path, clips: dict[str, str]) -> set[str]:
    """Return which clips this machine does not find in a store, though workers wrote them there.

    A network file system shows what another machine has written after some seconds, and a folder
    may be away for a while.

    Args:
        store: folder of the store.
        clips: id -> the file in the store that is the clip's until it is sealed.
    """
    missing = {clip_id for clip_id, file in clips.items() if not (file and (store / file).exists())}
    began = time.monotonic()
    while missing:
        is_store = (store / RECIPE_FILE).exists()
        if is_store:
            missing -= set(Store(store))  # sealed since
        if not missing or time.monotonic() - began > (CLIPS_VISIBLE if is_store else STORE_AWAY):
            break
        time.sleep(STORE_POLL)
        missing = {i for i in missing if not (store / (clips[i] or ".")).is_file()}
    return missing


def machine() -> str:
    """Return the name of this machine."""
    return platform.node()
