"""Looks after the workers of a cluster while they work."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from dask.distributed import Client

from extract.cluster import slurm
from extract.cluster.cluster import SILENCE, Cluster, ClusterError, need_same_versions

LOST = 60.0  # seconds without its workers after which a job is over, if its queue cannot be asked
RENEWALS = 3  # of a job whose workers finish nothing


class Lookout:
    """Knows which workers there are, and what to do when there are too few.

    A batch system's jobs end, at their wall time if not before: the queue is asked for others in
    their place. Elsewhere a worker must be there, or come back.
    """

    def __init__(self, cluster: Cluster, client: Client) -> None:
        self.cluster = cluster
        self.client = client
        self._same: set[str] = set()  # addresses of workers that have our version
        self._seen = time.monotonic()  # when there was a worker
        self._seen_of: dict[str, float] = {}  # job -> the same, of its own
        self._renewed: dict[str, int] = {}  # job -> how often, since it finished something
        self._numbers: dict[str, str] = {}  # job -> its number in the queue

    def workers(self) -> list[str]:
        """Return the names of the workers that there are.

        Raises:
            ClusterError: as `addresses`.
        """
        return list(self.addresses().values())

    def addresses(self) -> dict[str, str]:
        """Return address -> name of the workers that there are.

        Raises:
            ClusterError: the scheduler is gone for good, or a worker has another version of this
                program.
        """
        found: dict[str, Any] = {}
        with suppress(OSError):  # it does not answer
            found = self.client.scheduler_info(n_workers=-1).get("workers", {})
        if self.client.status in ("closing", "closed"):
            raise self.gone("the scheduler")
        if new := found.keys() - self._same if self.cluster.scheduler != "local" else ():
            need_same_versions(self.client, new)
            self._same |= new
        return {address: str(worker["name"]) for address, worker in found.items()}

    def gone(self, who: str) -> ClusterError:
        """Return the error that says so, and the way out."""
        return ClusterError(
            f"{who} of {self.cluster.scheduler} cannot be reached any more. What is finished is in "
            "the store: start it anew, and run the same command again"
        )

    def worked(self, worker: str) -> None:
        """Take notice that a worker has finished something."""
        for job in [job for job in self._renewed if _is_of(worker, job)]:
            del self._renewed[job]

    def look(self) -> list[str]:
        """Return the jobs that have ended, and were asked for again.

        Raises:
            ClusterError: no worker is there, and none will come.
        """
        names, now = self.workers(), time.monotonic()
        if self.cluster.queued:
            return self._renew(names, now)
        if names:
            self._seen = now
        elif now - self._seen > SILENCE:
            raise self.gone("every worker")
        return []

    def _renew(self, names: list[str], now: float) -> list[str]:
        queue = self.client.cluster
        self._numbers |= {name: job.job_id for name, job in queue.workers.items() if job.job_id}
        without = [job for job in queue.worker_spec if not any(_is_of(n, job) for n in names)]
        self._seen_of |= dict.fromkeys(set(queue.worker_spec) - set(without), now)
        states = self.cluster.jobs() if without else None
        over = [job for job in without if self._is_over(job, states, now)]
        again = [job for job in over if self._renewed.get(job, 0) < RENEWALS]
        if over and not again and len(over) == len(queue.worker_spec):
            number = self._numbers.get(over[0], over[0])
            end = slurm.log_end(number) if self.cluster.scheduler == "slurm" else ""
            raise ClusterError(
                f"the jobs end before they finish anything, {1 + RENEWALS} times each; the last "
                f"was {number}. {end}"
            )
        for job in again:
            self._renewed[job] = self._renewed.get(job, 0) + 1
            self._seen_of.pop(job, None)
        if again:
            with suppress(RuntimeError):  # refused for now; the next look will find that
                queue.sync(_submit_again, queue, again)
        return again

    def _is_over(self, job: str, states: dict[str, str] | None, now: float) -> bool:
        """Return whether a job without workers brings none any more."""
        submitted = self.client.cluster.workers.get(job)
        if submitted is None or not submitted.job_id:
            return True  # dask-jobqueue gave it up, or it was refused
        if states is not None:
            return submitted.job_id not in states
        return now - self._seen_of.get(job, now) > LOST  # if none ever came, they may yet


async def _submit_again(queue: Any, jobs: list[str]) -> None:
    for job in jobs:
        if job in queue.workers:
            await queue.workers.pop(job).close()
    await queue._correct_state()


def _is_of(worker: str, job: str) -> bool:
    """Return whether a worker is of a job, which may have several."""
    return worker == job or worker.startswith(f"{job}-")
