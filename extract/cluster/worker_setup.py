"""What workers on this machine set before they import the networks."""

from __future__ import annotations

import signal

from dask.distributed import WorkerPlugin

from features.garbage import collect_seldom


class WorkerSetup(WorkerPlugin):  # type: ignore[misc]
    """Prepares a worker. This module imports no networks, whose import becomes faster by it."""

    def setup(self, worker: object) -> None:
        # those of a terminal or a batch system reach the workers too; the job handles them
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        collect_seldom()
