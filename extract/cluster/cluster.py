"""Where the work is done: processes here, a running Dask cluster, or a batch system's queue."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

import dask
import joblib
import torch
from dask.distributed import Client, LocalCluster
from distributed.security import Security

from extract.cluster import slurm
from extract.cluster.batch_system import NO_DASHBOARD, QUEUES, queue, submit, wait_for_worker
from extract.cluster.running_cluster import connect
from extract.cluster.versions import ClusterError
from extract.cluster.worker_setup import WorkerSetup
from extract.device import pick_device

SETTINGS = {
    # when a worker dies, the job itself tries again what was not finished (see `extract`)
    "distributed.scheduler.allowed-failures": 0,
    # no worker hoards tasks that another could begin
    "distributed.scheduler.worker-saturation": 1.0,
    # a worker keeps an hour of call stacks: 2 GB of them when networks are at work
    "distributed.worker.profile.enabled": False,
    # nothing is served over HTTP; what listens for it all the same listens here
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # workers never import a module from the current folder, such as a user's train.py
    "distributed.nanny.pre-spawn-environ.PYTHONSAFEPATH": "1",
}


@dataclass(frozen=True)
class Cluster:
    """What to ask for.

    Attributes:
        scheduler: ``local``, the address of a running Dask scheduler (``tls://host:8786``), or a
            batch system: one of `QUEUES`.
        workers: processes here, or jobs in the queue; 0 takes one for each core it may use, or for
            each GPU.
        adapt: (fewest, most) jobs in the queue, as there is work; instead of `workers`.
        queue, walltime, cores, memory: of a job; None leaves it to the site's configuration of
            dask-jobqueue. A job has one process for each core, or for each GPU.
        gpus: of a job.
        interface: the network by which jobs reach this machine, such as ``ib0``.
        config: a TOML file of further arguments of dask-jobqueue's cluster.
        device: see `Extractor`.
        tls_ca, tls_cert, tls_key: files of the certificates of a running cluster; what is None is
            as in Dask's own configuration.
    """

    scheduler: str = "local"
    workers: int = 0
    adapt: tuple[int, int] | None = None
    queue: str | None = None
    walltime: str | None = None
    cores: int | None = None
    memory: str | None = None
    gpus: int = 0
    interface: str | None = None
    config: str | Path | None = None
    device: str = "auto"
    tls_ca: str | Path | None = None
    tls_cert: str | Path | None = None
    tls_key: str | Path | None = None

    def __post_init__(self) -> None:
        if self.scheduler not in ("local", *QUEUES) and "://" not in self.scheduler:
            raise ClusterError(
                f"no scheduler {self.scheduler!r}; there are local, {', '.join(QUEUES)} and the "
                "address of a running one (tls://host:8786)"
            )
        if self._tls_files and not self.scheduler.startswith("tls://"):
            raise ClusterError(
                f"--scheduler {self.scheduler}: certificates are for a running cluster with TLS; "
                "give its address, tls://host:8786"
            )

    @property
    def queued(self) -> bool:
        """Whether the work waits in a batch system's queue."""
        return self.scheduler in QUEUES

    @property
    def processes(self) -> int:
        """How many processes work at once, as far as that is known before."""
        if self.queued:
            jobs = self.adapt[1] if self.adapt else max(1, self.workers)
            return jobs * (self.gpus or self.cores or 1)
        if self.workers:
            return self.workers
        device = pick_device(self.device)
        if device.type == "cpu":
            return int(joblib.cpu_count())
        return torch.cuda.device_count() if device == torch.device("cuda") else 1

    @property
    def on_gpus(self) -> bool:
        """Whether the networks run on GPUs, as far as that is known before."""
        if self.scheduler == "local":
            return pick_device(self.device).type != "cpu"
        return self.gpus > 0 or self.device.startswith("cuda")

    @property
    def warning(self) -> str:
        """What users should know before they use it; "" if there is nothing."""
        if "://" not in self.scheduler or self.scheduler.startswith("tls://"):
            return ""
        return (
            f"{self.scheduler} has no TLS: whoever reaches its ports can run programs as you. "
            "Start it with certificates, and give its address as tls://host:8786"
        )

    @property
    def _tls_files(self) -> dict[str, str]:
        files = {
            "tls_ca_file": self.tls_ca,
            "tls_client_cert": self.tls_cert,
            "tls_client_key": self.tls_key,
        }
        return {name: str(file) for name, file in files.items() if file}

    def beginning(self, tasks: int) -> str:
        """Return in words what `client` does first."""
        if self.scheduler == "local":
            number = min(self.processes, tasks)
            return f"starting {number} {'process' if number == 1 else 'processes'}"
        if self.queued:
            return f"asking {self.scheduler} for workers, and waiting for the first one"
        return f"asking {self.scheduler} for its workers"

    @contextmanager
    def client(self, tasks: int, stopped: Callable[[], bool] = lambda: False) -> Iterator[Client]:
        """Yield a client of the cluster, which ends with the block unless it ran before.

        Args:
            tasks: that there are; no more processes are started here.
            stopped: whether to wait for workers no longer; then there may be none.

        Raises:
            ClusterError: it cannot be used.
        """
        with dask.config.set(SETTINGS):
            if self.scheduler == "local":
                with _children_get_no_signals():
                    local = LocalCluster(
                        n_workers=min(self.processes, tasks),
                        threads_per_worker=1,
                        host="127.0.0.1",
                        security=Security.temporary(),
                        dashboard_address=None,
                        scheduler_kwargs=NO_DASHBOARD,
                        silence_logs=logging.CRITICAL,
                        memory_limit=0,
                    )
                with local as cluster, Client(cluster) as client:
                    client.register_plugin(WorkerSetup())
                    yield client
            elif self.queued:
                with queue(self) as cluster, Client(cluster) as client:
                    submit(self, cluster)
                    wait_for_worker(self, cluster, client, stopped)
                    if self.adapt:
                        cluster.adapt(minimum_jobs=self.adapt[0], maximum_jobs=self.adapt[1])
                    yield client
            else:
                with connect(self.scheduler, self._tls_files, stopped) as client:
                    yield client

    def jobs(self) -> dict[str, str] | None:
        """Return the state of each job in the queue that is not over; None if that is unknown."""
        return slurm.states() if self.scheduler == "slurm" else None

    def job_script(self) -> str:
        """Return the script of one job in the queue."""
        with dask.config.set(SETTINGS), queue(self) as cluster:
            return str(cluster.job_script())


@contextmanager
def _children_get_no_signals() -> Iterator[None]:
    """Keep the signals of a terminal or a batch system from processes that are started within.

    They reach the whole process group. Workers would end while they start, with tracebacks, before
    `WorkerSetup` is run. This process gets them all the same.
    """
    resource_tracker.ensure_running()  # where it is started, multiprocessing unblocks the signals
    # threads and children inherit it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
