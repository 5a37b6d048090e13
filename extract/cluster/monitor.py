"""Which workers a cluster has while a job runs, and how lost ones are replaced."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from dask.distributed import Client

from extract.cluster import slurm
from extract.cluster.batch_system import SILENCE
from extract.cluster.cluster import Cluster
from extract.cluster.versions import ClusterError, need_same_versions

LOST = 60.0  # seconds without its workers after which a job is over, if its queue cannot be asked
RENEWALS = 3  # of a job whose workers finish nothing


class WorkerMonitor:
    """Knows which workers there are, and replaces those that are lost.

    A batch system's jobs end, at their wall time if not before: others are submitted in their
    place. Elsewhere one worker at least must be present, or come back.

    Args:
        cluster: as it was asked for.
        client: of it.
    """

    def __init__(self, cluster: Cluster, client: Client) -> None:
        self.cluster = cluster
        self.client = client
        self._checked: set[str] = set()  # addresses of workers that have our version
        self._last_seen = time.monotonic()  # when there was a worker
        self._last_seen_of: dict[str, float] = {}  # job -> when it had a worker
        self._renewed: dict[str, int] = {}  # job -> how often, since its workers finished a clip
        self._numbers: dict[str, str] = {}  # job -> its number in the queue

    def names(self) -> list[str]:
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
        with suppress(OSError):  # the scheduler does not answer
            found = self.client.scheduler_info(n_workers=-1).get("workers", {})
        if self.client.status in ("closing", "closed"):
            raise self.unreachable("the scheduler")
        if new := found.keys() - self._checked if self.cluster.scheduler != "local" else ():
            need_same_versions(self.client, new)
            self._checked |= new
        return {address: str(worker["name"]) for address, worker in found.items()}

    def unreachable(self, who: str) -> ClusterError:
        """Return the error of a scheduler or workers that are lost, with the way out."""
        return ClusterError(
            f"{who} of {self.cluster.scheduler} cannot be reached any more. What is finished is in "
            "the store: start it anew, and run the same command again"
        )

    def note_progress(self, worker: str) -> None:
        """Note that a worker has finished something."""
        for job in [job for job in self._renewed if _is_of(worker, job)]:
            del self._renewed[job]

    def check(self) -> list[str]:
        """Replace jobs that have ended; return their names.

        Raises:
            ClusterError: there is no worker, and none will come.
        """
        names, now = self.names(), time.monotonic()
        if self.cluster.queued:
            return self._renew(names, now)
        if names:
            self._last_seen = now
        elif now - self._last_seen > SILENCE:
            raise self.unreachable("every worker")
        return []

    def _renew(self, names: list[str], now: float) -> list[str]:
        queue = self.client.cluster
        self._numbers |= {name: job.job_id for name, job in queue.workers.items() if job.job_id}
        without = [job for job in queue.worker_spec if not any(_is_of(n, job) for n in names)]
        self._last_seen_of |= dict.fromkeys(set(queue.worker_spec) - set(without), now)
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
            self._last_seen_of.pop(job, None)
        if again:
            with suppress(RuntimeError):  # refused for now; the next check will find that
                queue.sync(_submit_again, queue, again)
        return again

    def _is_over(self, job: str, states: dict[str, str] | None, now: float) -> bool:
        """Return whether a job without workers will have none any more."""
        submitted = self.client.cluster.workers.get(job)
        if submitted is None or not submitted.job_id:
            return True  # dask-jobqueue gave it up, or it was refused
        if states is not None:
            return submitted.job_id not in states
        return now - self._last_seen_of.get(job, now) > LOST  # none has come yet


async def _submit_again(queue: Any, jobs: list[str]) -> None:
    for job in jobs:
        if job in queue.workers:
            await queue.workers.pop(job).close()
    await queue._correct_state()


def _is_of(worker: str, job: str) -> bool:
    """Return whether a worker is of a job, which may have several."""
    return worker == job or worker.startswith(f"{job}-")
