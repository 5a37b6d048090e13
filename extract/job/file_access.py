"""Which workers do not see the files of which clips: they have other disks than this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from extract.job.batching import Task
from extract.job.worker import Report


class FileAccess:
    """What workers have reported, by their addresses.

    Attributes:
        problems: worker -> the first thing that it does not see.
        last_problem: when the newest was reported (`time.monotonic`).
    """

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self.last_problem = 0.0
        self._excluded: dict[str, set[str]] = {}  # clip -> workers

    def excluded(self, batch: Sequence[Task]) -> set[str]:
        """Return the workers that cannot do a batch."""
        return set().union(*(self._excluded.get(task.clip_id, ()) for task in batch))

    def note(self, report: Report, reason: str) -> str:
        """Note that a worker does not see something.

        Args:
            report: of the worker.
            reason: what it does not see.

        Returns:
            A sentence, or "" if one was returned for this worker before.
        """
        self.last_problem = time.monotonic()
        if report.address in self.problems:
            return ""
        sentence = f"worker {report.worker} on {report.machine}: {reason}; this machine does"
        self.problems[report.address] = sentence
        return sentence

    def exclude(self, worker: str, tasks: Iterable[Task]) -> list[list[Task]]:
        """Give some clips to a worker no more.

        Args:
            worker: its address.
            tasks: the clips.

        Returns:
            The clips in batches, each of which the same workers cannot do.
        """
        by_excluded: dict[frozenset[str], list[Task]] = {}
        for task in tasks:
            excluded = self._excluded.setdefault(task.clip_id, set())
            excluded.add(worker)
            by_excluded.setdefault(frozenset(excluded), []).append(task)
        return list(by_excluded.values())
