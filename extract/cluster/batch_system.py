"""Jobs in a batch system's queue, by dask-jobqueue: settings, submission, the first worker."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from dask.distributed import Client
from distributed.core import Status
from distributed.security import Security
from distributed.utils import get_ip

from extract.cluster import slurm
from extract.cluster.versions import ClusterError
from manifests import reason

if TYPE_CHECKING:
    from extract.cluster.cluster import Cluster

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
SILENCE = 300.0  # seconds that jobs may run before the first worker comes
POLL_SECONDS = 2.0  # between two looks at the queue
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


@contextmanager
def queue(asked: Cluster) -> Iterator[Any]:
    """Yield dask-jobqueue's cluster; with the block, the files of its keys end too.

    Raises:
        ClusterError: dask-jobqueue refuses the settings.
    """
    cluster = _new_queue(asked)
    try:
        with cluster:
            yield cluster
    finally:
        for file in ("ca_file", "cert", "key"):
            if key_file := getattr(cluster, f"_job_{file}", None):
                key_file.close()


def submit(asked: Cluster, cluster: Any) -> None:
    """Submit the first jobs.

    Args:
        asked: what was asked for.
        cluster: of `queue`.

    Raises:
        ClusterError: the batch system refuses them.
    """
    refusals: list[str] = []

    def keep_refusal(record: logging.LogRecord) -> bool:
        refusals.append(str(record.exc_info[1] if record.exc_info else record.msg))
        return False

    tornado = logging.getLogger("tornado.application")
    tornado.addFilter(keep_refusal)  # it is only logged there, with a traceback
    try:
        cluster.scale(jobs=max(1, asked.adapt[0] if asked.adapt else asked.workers))
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
            f"{asked.scheduler} refuses the job ({why}); look at its script with --dry-run, and "
            "change --queue, --walltime, --cores, --memory, --gpus or the --cluster-config"
        )


def wait_for_worker(
    asked: Cluster, cluster: Any, client: Client, stopped: Callable[[], bool]
) -> None:
    """Wait for the first worker, as long as a job may bring one.

    A job whose worker does not reach this machine ends after a while, without a notice.

    Args:
        asked: what was asked for.
        cluster: of `queue`.
        client: of that cluster.
        stopped: whether to wait no longer.

    Raises:
        ClusterError: no worker came.
    """
    jobs = [str(job.job_id) for job in cluster.workers.values() if job.job_id]
    began: float | None = None
    while not stopped():
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=POLL_SECONDS)
            return
        states = asked.jobs()
        if states is None or any(states.get(job, "RUNNING") != "RUNNING" for job in jobs):
            began = None
            continue  # not known, or some jobs wait for their turn
        began = began or time.monotonic()
        running = [job for job in jobs if job in states]
        if not running or time.monotonic() - began > SILENCE:
            raise ClusterError(_no_worker(jobs, bool(running), cluster.scheduler_address))


def _new_queue(asked: Cluster) -> Any:
    import dask_jobqueue

    settings: dict[str, Any] = {"cores": 1, "memory": "4GB", "walltime": "04:00:00"}
    if asked.config:
        try:
            settings |= tomllib.loads(Path(asked.config).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ClusterError(f"{asked.config}: {reason(error)}; give a file of TOML") from error
    given = {"queue": asked.queue, "walltime": asked.walltime, "interface": asked.interface}
    given |= {"cores": asked.cores, "memory": asked.memory}  # type: ignore[dict-item]
    settings |= {name: value for name, value in given.items() if value is not None}
    options = settings.get("scheduler_options", {})
    if dashboard := str(options.get("dashboard_address", "")):
        host, _, port = dashboard.rpartition(":")
        options = {**options, "dashboard_address": f"{host or '127.0.0.1'}:{port}"}
        dask.config.set({"distributed.scheduler.http.routes": ROUTES})
    if not {"host", "interface", "contact_address"} & options.keys():
        # Dask would listen everywhere, and tell the jobs this address
        options = {**options, **({} if "interface" in settings else {"host": get_ip()})}
    settings["scheduler_options"] = {**NO_DASHBOARD, "dashboard": bool(dashboard), **options}
    settings["security"] = Security.temporary()
    if not dask.config.get(f"jobqueue.{asked.scheduler}.shared-temp-directory", None):
        settings.setdefault("shared_temp_directory", str(_key_folder()))
    python = shlex.quote(str(settings.get("python", sys.executable)))
    own = [] if "interface" in settings else ["--host", f"$({python} {OWN_ADDRESS})"]
    settings["worker_extra_args"] = [*LISTEN, *own, *settings.get("worker_extra_args", [])]
    settings.setdefault("processes", asked.gpus or settings["cores"])
    settings["job_script_prologue"] = [*PROLOGUE, *settings.get("job_script_prologue", [])]
    if asked.gpus and asked.scheduler in GPU_REQUESTS:
        request = GPU_REQUESTS[asked.scheduler].format(asked.gpus)
        settings["job_extra_directives"] = [
            *settings.get("job_extra_directives", []),
            request,
        ]
    if asked.scheduler == "htcondor":
        del settings["walltime"]  # it knows none
    try:
        return getattr(dask_jobqueue, QUEUES[asked.scheduler])(**settings)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"dask-jobqueue's {QUEUES[asked.scheduler]} refuses these settings: {error}"
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
