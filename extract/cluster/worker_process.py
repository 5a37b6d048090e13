"""What the processes of a local cluster have set before they import the networks."""

from __future__ import annotations

import signal

from dask.distributed import WorkerPlugin

from features.garbage import collect_seldom


class WorkerProcess(WorkerPlugin):  # type: ignore[misc]
    """The signals of a terminal or a batch system reach the workers too; the job handles them."""

    def setup(self, worker: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        collect_seldom()
