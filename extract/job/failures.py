"""The journal of clips that could not be extracted: ``failures.jsonl`` in the store."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from features import json_text
from features.store_files import append_line, read_file, replace_file

FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class Failure:
    """A clip that could not be extracted.

    Attributes:
        id: the clip's.
        reason: in one line.
        stage: ``read`` (the file) or ``worker`` (the process that had it died).
        attempts: how often it was tried.
        file: size and time of change of the video, to notice that it is another one now.
    """

    id: str
    reason: str
    stage: str
    attempts: int
    file: str


def file_state(video: Path) -> str:
    """Return what changes when a file does; empty if there is none."""
    try:
        found = os.stat(video)
    except OSError:
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"


def read_failures(store: Path) -> dict[str, Failure]:
    """Return clip id -> failure of the runs so far; lines that are damaged are left out."""
    found: dict[str, Failure] = {}
    try:
        lines = read_file(store / FAILURES).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            failure = Failure(**json.loads(line))
        except (ValueError, TypeError):
            continue  # the last line of a run that was killed
        found[failure.id] = failure
    return found


def add_failure(store: Path, failure: Failure) -> None:
    """Write one line at the end of ``failures.jsonl``.

    Args:
        store: folder of the store.
        failure: of a clip.
    """
    append_line(store / FAILURES, json_text(asdict(failure)))


def write_failures(store: Path, failures: Iterable[Failure]) -> None:
    """Replace ``failures.jsonl``; without any failures there is no file.

    Args:
        store: folder of the store.
        failures: all that are known.
    """
    lines = [json_text(asdict(failure)) + "\n" for failure in failures]
    file = store / FAILURES
    if lines:
        replace_file(file, "".join(lines).encode())
    else:
        file.unlink(missing_ok=True)
