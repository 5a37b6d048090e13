"""What is to be done, in pieces of like size; and what failed before."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

FAILURES = "failures.jsonl"
PIECES = 8  # for each process, so that none waits long for the last one
MOST_FOOTAGE = 600.0  # seconds in a batch: what is at stake when a worker dies
MOST_FOOTAGE_GPU = 7200.0  # so that many processes read side by side for one GPU
LEAST_FOOTAGE = 5.0  # counted for a clip, however short: opening it takes time too
MOST_CLIPS = 500


class Task(NamedTuple):
    """One clip to extract."""

    clip_id: str
    video: Path
    audio: Path | None = None
    duration: float | None = None  # seconds, if known


def batches(
    tasks: Sequence[Task],
    durations: Sequence[float],
    processes: int,
    most_footage: float = MOST_FOOTAGE,
) -> list[list[Task]]:
    """Divide clips into batches of about the same footage, the longest clips first.

    >>> [len(batch) for batch in batches([Task("a", Path("a"))] * 5, [10, 10, 10, 30, 10], 1)]
    [1, 1, 1, 1, 1]
    """
    weights = [max(LEAST_FOOTAGE, seconds) for seconds in durations]
    target = min(most_footage, sum(weights) / (PIECES * processes))
    order = sorted(range(len(tasks)), key=lambda number: -weights[number])
    done: list[list[Task]] = []
    batch: list[Task] = []
    footage = 0.0
    for number in order:
        if batch and (footage + weights[number] > target or len(batch) == MOST_CLIPS):
            done.append(batch)
            batch, footage = [], 0.0
        batch.append(tasks[number])
        footage += weights[number]
    return [*done, batch] if batch else done


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


def stamp(video: Path) -> str:
    """Return what changes when a file does; empty if there is none."""
    try:
        status = os.stat(video)
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def read_failures(store: Path) -> dict[str, Failure]:
    """Return clip id -> failure of the runs so far; lines that are none are left out."""
    found: dict[str, Failure] = {}
    try:
        lines = (store / FAILURES).read_text(encoding="utf-8").splitlines()
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
    """Write one line at the end of ``failures.jsonl``."""
    with open(store / FAILURES, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(failure), ensure_ascii=False) + "\n")


def write_failures(store: Path, failures: Iterable[Failure]) -> None:
    """Replace ``failures.jsonl`` by these; without any there is no file."""
    lines = [json.dumps(asdict(failure), ensure_ascii=False) + "\n" for failure in failures]
    file = store / FAILURES
    if lines:
        new = file.with_name(f".{FAILURES}")
        new.write_text("".join(lines), encoding="utf-8")
        new.replace(file)
    else:
        file.unlink(missing_ok=True)


class Status(NamedTuple):
    """How far an extraction is.

    Attributes:
        clips: in the manifest.
        done: of these, in the store.
        unsealed: finished by workers that run, or were killed; not yet in the store.
        failed: clip id -> reason.
        left: not begun, or in work.
    """

    clips: int
    done: int
    unsealed: int
    failed: dict[str, str]
    left: int


def status(clip_ids: Iterable[str], store: Path) -> Status:
    """Tell how far the extraction of some clips into a store is, also while it runs."""
    from features import Store
    from features.pending_clips import CLIP, SPOOL

    wanted = set(clip_ids)
    done = wanted & set(Store(store))
    failures = read_failures(store)
    failed = {i: f.reason for i, f in failures.items() if i in wanted and i not in done}
    unsealed = len(list(store.glob(f"{SPOOL}*/*{CLIP}")))
    left = max(0, len(wanted) - len(done) - len(failed) - unsealed)
    return Status(len(wanted), len(done), unsealed, failed, left)
