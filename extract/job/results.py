"""What a job has finished so far: its summary, its failures and its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from extract.finite import MOST, Tally
from extract.job.batching import Task
from extract.job.failures import Failure, add_failure, file_state
from extract.job.log import log
from extract.job.refusal import log_refusal, refusal
from extract.job.summary import Summary
from extract.job.worker import Outcome
from features import Recipe

SLOWEST = 5  # clips that the summary names


@dataclass(frozen=True)
class Callbacks:
    """What is called with what happens; see `extract.job.client.extract`."""

    progress: Callable[[float, float], None] | None = None
    say: Callable[[str], None] = lambda text: None
    on_failure: Callable[[str, str], None] = lambda clip_id, reason: None


class Results:
    """Counts what becomes of the clips.

    Args:
        store: folder of the store.
        recipe: of the features.
        summary: gets the counts.
        callbacks: are called.

    Attributes:
        failures: clip id -> failure.
    """

    def __init__(self, store: Path, recipe: Recipe, summary: Summary, callbacks: Callbacks) -> None:
        self.failures: dict[str, Failure] = {}
        self._store, self._recipe, self._callbacks = store, recipe, callbacks
        self._summary = summary
        self._lengths: Mapping[str, float] = {}
        self._tally = Tally(0)
        self._times: list[tuple[str, float]] = []
        self._done = self._total = 0.0  # seconds of footage

    def start(self, lengths: Mapping[str, float]) -> None:
        """Begin at nothing done.

        Args:
            lengths: clip id -> seconds, of all clips of the job.
        """
        self._lengths, self._total = lengths, sum(lengths.values())
        rows_per_second = len(self._recipe.streams) / self._recipe.snippet_seconds
        self._tally = Tally(self._total * rows_per_second)
        self.show_progress()

    def extracted(self, clip_id: str, seconds: float, outcome: Outcome | None = None) -> None:
        """Count a clip that is in the store.

        Args:
            clip_id: the clip's.
            seconds: its footage.
            outcome: as its worker reported it; None if that died later.
        """
        self._summary.extracted.append(clip_id)
        self._summary.footage += seconds
        self._done += self._lengths[clip_id]
        if outcome is not None:
            self._times.append((clip_id, outcome.seconds))
            self._count_rows(outcome)

    def failed(self, task: Task, reason: str, stage: str, attempts: int = 1) -> None:
        """Count a clip that failed; see `Failure`.

        Args:
            task: the clip.
            reason, stage, attempts: of the failure.
        """
        self._summary.failed[task.clip_id] = reason
        self._callbacks.on_failure(task.clip_id, reason)
        failure = Failure(task.clip_id, reason, stage, attempts, file_state(task.video))
        self.failures[task.clip_id] = failure
        with suppress(OSError):  # the folder may be away; at the end all are written
            add_failure(self._store, failure)
        self._done += self._lengths[task.clip_id]

    def _count_rows(self, outcome: Outcome) -> None:
        counts = outcome.counts
        rows = sum(counts.rows.values())
        lost = sum(counts.broken.values()) + sum(counts.not_finite.values())
        self._summary.rows += rows
        self._summary.not_finite += lost
        self._tally.add(counts.rows, counts.not_finite)
        if lost:
            log(self._store, f"clip {outcome.clip_id}: {lost} of {rows} rows are not finite")
        if lost > MOST * rows:
            self._summary.not_finite_clips[outcome.clip_id] = lost / rows

    def check_finite(self, over: bool) -> None:
        """Refuse a recipe under which too many rows are not finite.

        Args:
            over: no more clips come.

        Raises:
            NotFiniteError: it is one.
        """
        if why := self._tally.verdict(over):
            log_refusal(self._store, self._recipe.fingerprint, why)
            raise refusal(self._store, why)

    def show_progress(self) -> None:
        """Call the callback of progress."""
        if self._callbacks.progress:
            self._callbacks.progress(self._done, self._total)

    def finish(self) -> None:
        """Name the slowest clips, and check all rows, unless clips are left."""
        self._summary.slowest = sorted(self._times, key=lambda row: -row[1])[:SLOWEST]
        self.check_finite(over=not self._summary.left)
