"""How a worker knows that it sees the store of its job, and not another disk at the same path."""

from __future__ import annotations

import os
import platform
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from features import RECIPE_FILE
from features.pending_clips import Spool

PATIENCE = 5.0  # seconds in which a new file must be seen by every machine that shares its disk
AGAIN = 0.5  # seconds between two looks for it


class Mark(NamedTuple):
    """What is sent to the workers: a file of the store, and what is in it."""

    file: Path
    content: str

    def unseen(self, patience: float = PATIENCE) -> str:
        """Return what is at the store's path instead; "" if the file is seen within `patience`.

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
            time.sleep(AGAIN)
        store = self.file.parent.parent
        if not store.is_dir():
            return "there is no such folder"
        has = "a store" if (store / RECIPE_FILE).exists() else "no store"
        return f"{has} there, without the mark of this job ({self.file.name}: {why})"


class Witness:
    """A mark in a store for as long as a job runs, in a spool of its own.

    That is so that a killed job's is removed as other spools are.

    Raises:
        WriteError: the store cannot be written.
    """

    def __init__(self, store: Path) -> None:
        self._spool = Spool(store.resolve())
        self.mark = Mark(self._spool.path / "mark", uuid.uuid4().hex)
        try:
            self.mark.file.write_text(self.mark.content, encoding="utf-8")
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


def unseen(path: Path) -> str:
    """Return why a file cannot be read on this machine; "" if it can."""
    try:
        os.stat(path)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "" if os.access(path, os.R_OK) else "permission denied"


def machine() -> str:
    """Return the name of this machine."""
    return platform.node()
