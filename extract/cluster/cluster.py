"""Where the work is done: processes here, a running Dask cluster, or a batch system's queue."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import dask
import torch
from dask.distributed import Client, LocalCluster, WorkerPlugin
from distributed.core import Status
from distributed.security import Security
from distributed.utils import get_ip

from extract.cluster import slurm
from extract.cluster.versions import ClusterError, need_same_versions
from extract.device import pick_device
from manifests import reason

QUEUES = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "lsf": "LSFCluster",
    "sge": "SGECluster",
    "htcondor": "HTCondorCluster",
}
GPU_REQUESTS = {  # a line of the job script
    "slurm": "--gres=gpu:{}",
    "pbs": "-l ngpus={}",
    "lsf": "-gpu num={}",
    "sge": "-l gpu={}",
}
FIRST_WORKER = 60.0  # seconds to wait for one of a running cluster
SILENCE = 300.0  # seconds that jobs may run before the first worker comes
LOOK = 2.0  # seconds between two looks at the queue
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
NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
# what a worker of a job is started with: it listens on the address that it tells others alone
LISTEN = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
OWN_ADDRESS = "-c 'from distributed.utils import get_ip; print(get_ip())'"
ROUTES = dask.config.get("distributed.scheduler.http.routes")  # those of a dashboard
# the batch system watches the memory; Dask's own limits would stop or kill workers long before
PROLOGUE = [
    "export PYTHONSAFEPATH=1",  # no modules from the current folder
    "export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES=[]",
] + [
    f"export DASK_DISTRIBUTED__WORKER__{what}=False"
    for what in (
        "MEMORY__TARGET",
        "MEMORY__SPILL",
        "MEMORY__PAUSE",
        "MEMORY__TERMINATE",
        "PROFILE__ENABLED",
    )
]


@dataclass(frozen=True)
class Cluster:
    """What to ask for.

    Attributes:
        scheduler: ``local``, the address of a running Dask scheduler (``tls://host:8786``), or a
            batch system: one of `QUEUES`.
        workers: processes here, or jobs in the queue; 0 takes one for each processor core, or for
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
            return os.cpu_count() or 1
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
                    client.register_plugin(_IgnoreSignals())
                    yield client
            elif self.queued:
                with self._queue() as cluster, Client(cluster) as client:
                    self._submit(cluster)
                    self._wait(cluster, client, stopped)
                    if self.adapt:
                        cluster.adapt(minimum_jobs=self.adapt[0], maximum_jobs=self.adapt[1])
                    yield client
            else:
                with self._running(stopped) as client:
                    yield client

    def jobs(self) -> dict[str, str] | None:
        """Return the state of each job in the queue that is not over; None if that is unknown."""
        return slurm.states() if self.scheduler == "slurm" else None

    def job_script(self) -> str:
        """Return the script of one job in the queue."""
        with dask.config.set(SETTINGS), self._queue() as cluster:
            return str(cluster.job_script())

    def _submit(self, cluster: Any) -> None:
        refusals: list[str] = []

        def keep_refusal(record: logging.LogRecord) -> bool:
            refusals.append(str(record.exc_info[1] if record.exc_info else record.msg))
            return False

        tornado = logging.getLogger("tornado.application")
        tornado.addFilter(keep_refusal)  # it is only logged there, with a traceback
        try:
            cluster.scale(jobs=max(1, self.adapt[0] if self.adapt else self.workers))
            with suppress(RuntimeError):
                cluster.sync(cluster._correct_state)
        finally:
            tornado.removeFilter(keep_refusal)
        # a job that is refused only leaves a line in a log: without this, one would wait for ever
        if not any(getattr(job, "job_id", None) for job in cluster.workers.values()):
            for job in cluster._created:
                job.status = Status.failed  # the cluster cannot close with jobs that never began
            why = " ".join("".join(refusals[:1]).rpartition("stderr:")[2].split())
            raise ClusterError(
                f"{self.scheduler} refuses the job ({why}); look at its script with --dry-run, and "
                "change --queue, --walltime, --cores, --memory, --gpus or the --cluster-config"
            )

    def _wait(self, cluster: Any, client: Client, stopped: Callable[[], bool]) -> None:
        """Wait for the first worker, as long as a job may bring one.

        A job whose worker does not reach this machine ends after a while, without a notice.
        """
        jobs = [str(job.job_id) for job in cluster.workers.values() if job.job_id]
        began: float | None = None
        while not stopped():
            with suppress(TimeoutError):
                client.wait_for_workers(1, timeout=LOOK)
                return
            states = self.jobs()
            if states is None or any(states.get(job, "RUNNING") != "RUNNING" for job in jobs):
                began = None
                continue  # not known, or some jobs wait for their turn
            began = began or time.monotonic()
            running = [job for job in jobs if job in states]
            if not running or time.monotonic() - began > SILENCE:
                raise ClusterError(_no_worker(jobs, bool(running), cluster.scheduler_address))

    def _running(self, stopped: Callable[[], bool]) -> Client:
        security = None
        try:
            if self.scheduler.startswith("tls://"):
                security = Security(require_encryption=True, **self._tls_files)
                if security.get_connection_args("client")["ssl_context"] is None:
                    raise ClusterError(
                        f"{self.scheduler} needs certificates: give --tls-ca, --tls-cert and "
                        "--tls-key, or name them in Dask's configuration (distributed.comm.tls)"
                    )
        except (OSError, ValueError) as error:
            files = ", ".join(self._tls_files.values()) or "those of Dask's configuration"
            raise ClusterError(
                f"these are no certificates and key: {files} ({error}); give files in PEM format"
            ) from error
        try:
            client = Client(self.scheduler, timeout=FIRST_WORKER, security=security)
            until = time.monotonic() + FIRST_WORKER
            while not stopped():
                try:
                    client.wait_for_workers(1, timeout=min(LOOK, FIRST_WORKER))
                    break
                except TimeoutError:
                    if time.monotonic() > until:
                        client.close()
                        raise
        except (OSError, TimeoutError, ValueError) as error:
            raise ClusterError(
                f"no worker of a Dask cluster answers at {self.scheduler} ({error}); start "
                f"'dask scheduler' and 'dask worker {self.scheduler} --nthreads 1' on its machines"
            ) from error
        try:
            need_same_versions(client, client.scheduler_info(n_workers=-1)["workers"])
        except ClusterError:
            client.close()
            raise
        return client

    @contextmanager
    def _queue(self) -> Iterator[Any]:
        """Yield dask-jobqueue's cluster; with the block, the files of its keys end too."""
        cluster = self._new_queue()
        try:
            with cluster:
                yield cluster
        finally:
            for file in ("ca_file", "cert", "key"):
                if key_file := getattr(cluster, f"_job_{file}", None):
                    key_file.close()

    def _new_queue(self) -> Any:
        import dask_jobqueue

        settings: dict[str, Any] = {"cores": 1, "memory": "4GB", "walltime": "04:00:00"}
        if self.config:
            try:
                settings |= tomllib.loads(Path(self.config).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ClusterError(
                    f"{self.config}: {reason(error)}; give a file of TOML"
                ) from error
        given = {"queue": self.queue, "walltime": self.walltime, "interface": self.interface}
        given |= {"cores": self.cores, "memory": self.memory}  # type: ignore[dict-item]
        settings |= {name: value for name, value in given.items() if value is not None}
        options = settings.get("scheduler_options", {})
        if asked := str(options.get("dashboard_address", "")):
            host, _, port = asked.rpartition(":")
            options = {**options, "dashboard_address": f"{host or '127.0.0.1'}:{port}"}
            dask.config.set({"distributed.scheduler.http.routes": ROUTES})
        if not {"host", "interface", "contact_address"} & options.keys():
            # Dask would listen everywhere, and tell the jobs this address
            options = {**options, **({} if "interface" in settings else {"host": get_ip()})}
        settings["scheduler_options"] = {**NO_DASHBOARD, "dashboard": bool(asked), **options}
        settings["security"] = Security.temporary()
        if not dask.config.get(f"jobqueue.{self.scheduler}.shared-temp-directory", None):
            settings.setdefault("shared_temp_directory", str(_key_folder()))
        python = shlex.quote(str(settings.get("python", sys.executable)))
        own = [] if "interface" in settings else ["--host", f"$({python} {OWN_ADDRESS})"]
        settings["worker_extra_args"] = [*LISTEN, *own, *settings.get("worker_extra_args", [])]
        settings.setdefault("processes", self.gpus or settings["cores"])
        settings["job_script_prologue"] = [*PROLOGUE, *settings.get("job_script_prologue", [])]
        if self.gpus and self.scheduler in GPU_REQUESTS:
            request = GPU_REQUESTS[self.scheduler].format(self.gpus)
            settings["job_extra_directives"] = [
                *settings.get("job_extra_directives", []),
                request,
            ]
        if self.scheduler == "htcondor":
            del settings["walltime"]  # it knows none
        try:
            return getattr(dask_jobqueue, QUEUES[self.scheduler])(**settings)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ClusterError(
                f"dask-jobqueue's {QUEUES[self.scheduler]} refuses these settings: {error}"
            ) from error


def _no_worker(jobs: list[str], running: bool, address: str) -> str:
    """Return the message that no worker came of jobs in Slurm, with the way out."""
    fate = f"has been running for {SILENCE:g} s" if running else "is over"
    what = "job" if len(jobs) == 1 else f"{len(jobs)} jobs"
    names = ", ".join(name for _, name in socket.if_nameindex())
    return (
        f"no worker of the {what} has come: job {jobs[0]} {fate}. {slurm.log_end(jobs[0])}\n"
        f"If it did not reach this machine at {address}, name the network by which the nodes do: "
        f"--interface NAME (there are {names})"
    )


def _key_folder() -> Path:
    """Return the user's own folder for the keys of jobs, which all nodes must see."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "avarnet" / "keys"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise ClusterError(
            f"{folder}: {reason(error)}; it is for the keys of jobs. Name another folder of yours "
            'that all nodes see in the --cluster-config: shared_temp_directory = "..."'
        ) from error
    return folder


@contextmanager
def _children_get_no_signals() -> Iterator[None]:
    """Keep the signals of a terminal or a batch system from processes that are started within.

    They reach the whole process group. Workers would end while they start, with tracebacks, before
    `_IgnoreSignals` is set. This process gets them all the same.
    """
    resource_tracker.ensure_running()  # where it is started, multiprocessing unblocks the signals
    # threads and children inherit it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _IgnoreSignals(WorkerPlugin):  # type: ignore[misc]
    """The signals of a terminal or a batch system reach the workers too; the job handles them."""

    def setup(self, worker: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
