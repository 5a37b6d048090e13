"""How far an extraction is, as its store shows it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from extract.job.failures import read_failures
from features import Store
from features.pending_clips import CLIP, SPOOL


class Status(NamedTuple):
    """How far an extraction is.

    Attributes:
        clips: in the manifest.
        done: of these, in the store.
        unsealed: finished by workers that run, or were killed; not yet in the store.
        failed: clip id -> reason.
        left: not begun, or in progress.
    """

    clips: int
    done: int
    unsealed: int
    failed: dict[str, str]
    left: int


def status(clip_ids: Iterable[str], store: str | Path) -> Status:
    """Return how far the extraction of some clips into a store is, also while it runs.

    Args:
        clip_ids: of the manifest.
        store: folder of the store.
    """
    store = Path(store)
    wanted = set(clip_ids)
    done = wanted & set(Store(store))
    failures = read_failures(store)
    failed = {i: f.reason for i, f in failures.items() if i in wanted and i not in done}
    unsealed = len(list(store.glob(f"{SPOOL}*/*{CLIP}")))
    left = max(0, len(wanted) - len(done) - len(failed) - unsealed)
    return Status(len(wanted), len(done), unsealed, failed, left)
