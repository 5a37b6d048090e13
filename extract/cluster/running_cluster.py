"""A Dask cluster that somebody runs: its client, with TLS."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from dask.distributed import Client
from distributed.security import Security

from extract.cluster.batch_system import POLL_SECONDS
from extract.cluster.versions import ClusterError, need_same_versions

FIRST_WORKER = 60.0  # seconds to wait for one of a running cluster


def connect(address: str, tls_files: Mapping[str, str], stopped: Callable[[], bool]) -> Client:
    """Return a client of a cluster that runs, once it has a worker.

    Args:
        address: of its scheduler.
        tls_files: of certificates and key, as `distributed.security.Security` names them; what is
            absent is as in Dask's own configuration.
        stopped: whether to wait no longer.

    Raises:
        ClusterError: it cannot be used.
    """
    security = None
    try:
        if address.startswith("tls://"):
            security = Security(require_encryption=True, **tls_files)
            if security.get_connection_args("client")["ssl_context"] is None:
                raise ClusterError(
                    f"{address} needs certificates: give --tls-ca, --tls-cert and "
                    "--tls-key, or name them in Dask's configuration (distributed.comm.tls)"
                )
    except (OSError, ValueError) as error:
        files = ", ".join(tls_files.values()) or "those of Dask's configuration"
        raise ClusterError(
            f"these are no certificates and key: {files} ({error}); give files in PEM format"
        ) from error
    try:
        client = Client(address, timeout=FIRST_WORKER, security=security)
        until = time.monotonic() + FIRST_WORKER
        while not stopped():
            try:
                client.wait_for_workers(1, timeout=min(POLL_SECONDS, FIRST_WORKER))
                break
            except TimeoutError:
                if time.monotonic() > until:
                    client.close()
                    raise
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"no worker of a Dask cluster answers at {address} ({error}); start "
            f"'dask scheduler' and 'dask worker {address} --nthreads 1' on its machines"
        ) from error
    try:
        need_same_versions(client, client.scheduler_info(n_workers=-1)["workers"])
    except ClusterError:
        client.close()
        raise
    return client
