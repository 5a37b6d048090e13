"""Who reaches the ports of a job runs nothing: tried by processes without its certificate."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dask
import psutil
import pytest
from distributed.security import Security
from fake_extractor import Instant
from servers import free_port
from small_stores import RECIPE

from extract import Cluster, ClusterError, Task, extract
from extract.cluster.batch_system import queue

pytestmark = pytest.mark.slow

# what an attacker runs: Dask's own client, and its plain protocol, which workers speak too
ATTACK = """
import asyncio, sys
from distributed import Client, Security, rpc
from distributed.core import connect

async def attack(address, security):
    client = await Client(address, security=security, timeout=5, asynchronous=True)
    print("CONNECTED", await client.submit(abs, -1))

async def ask(address, arguments):
    comm = await asyncio.wait_for(connect(address, timeout=5, **arguments), 10)
    await comm.write({"op": "identity", "reply": True})
    print("CONNECTED", await asyncio.wait_for(comm.read(), 10))

plain, tls = sys.argv[1].replace("tls://", "tcp://"), sys.argv[1]
own = Security.temporary()
for attempt in (
    lambda: attack(plain, None),
    lambda: attack(tls, own),
    lambda: ask(plain, {}),
    lambda: ask(tls, own.get_connection_args("client")),
):
    try:
        asyncio.run(asyncio.wait_for(attempt(), 30))
    except (OSError, TimeoutError, RuntimeError, TypeError) as error:
        print("refused", type(error).__name__)
"""


def attacked(address: str) -> list[str]:
    """Return what became of each attempt to use a scheduler or worker from another process."""
    command = [sys.executable, "-c", ATTACK, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return [line.split()[0] for line in done.stdout.splitlines()]


def listening(process: psutil.Process) -> set[str]:
    """Return the addresses at which a process and its children listen."""
    found = set()
    for one in [process, *process.children(recursive=True)]:
        for connection in one.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found.add(connection.laddr.ip)
    return found


def test_local_processes() -> None:
    with Cluster(workers=1).client(1) as client:
        client.wait_for_workers(1)
        assert client.submit(abs, -1).result() == 1  # with the certificate
        scheduler = client.scheduler.address
        (worker,) = client.scheduler_info()["workers"]
        for address in (scheduler, worker):
            assert address.startswith("tls://127.0.0.1:")
            assert attacked(address) == ["refused"] * 4
        assert listening(psutil.Process()) == {"127.0.0.1"}
        # what listens for HTTP has nothing to say
        port = client.scheduler_info()["services"]["dashboard"]
        with socket.create_connection(("127.0.0.1", port)) as web:
            web.sendall(b"GET /info/main/workers.html HTTP/1.0\r\n\r\n")
            assert web.recv(100).startswith(b"HTTP/1.1 404")


class Running:
    """A Dask cluster started by hand, with a certificate or without."""

    def __init__(self, folder: Path, tls: bool) -> None:
        own = Security.temporary()
        self.ca, self.key = folder / "ca.pem", folder / "key.pem"
        self.ca.write_text(own.tls_ca_file)
        self.key.write_text(own.tls_client_key)
        port = free_port()
        self.address = f"{'tls' if tls else 'tcp'}://127.0.0.1:{port}"
        files = ["--tls-ca-file", str(self.ca), "--tls-cert", str(self.ca)]
        files = [*files, "--tls-key", str(self.key)] if tls else []
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        host = self.address.rpartition(":")[0]
        self.processes = [
            self._start("scheduler", "--host", host, "--port", str(port), *files),
            self._start("worker", self.address, "--nthreads", "1", "--host", "127.0.0.1", *files),
        ]

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", *words, "--no-dashboard"]
        return subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL)

    def end(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait(60)


@pytest.fixture
def running(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    cluster = Running(tmp_path, request.param)
    yield cluster
    cluster.end()


def extracted(cluster: Cluster, tmp_path: Path) -> tuple[int, str]:
    """Extract a clip, and return how many were, and all that was printed."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    (folder / "0.mp4").write_text("")
    output: list[str] = []
    task = Task("0", folder / "0.mp4")
    summary = extract(
        [task], folder / "s", RECIPE, cluster=cluster, make=Instant, say=output.append
    )
    return len(summary.extracted), "\n".join(output)


@pytest.mark.parametrize("running", [True], indirect=True)
def test_a_running_cluster_with_tls(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = {"tls_ca": running.ca, "tls_cert": running.ca, "tls_key": running.key}
    number, output = extracted(Cluster(running.address, **mine), tmp_path)
    assert number == 1
    assert "no TLS" not in output
    assert attacked(running.address) == ["refused"] * 4
    # another one's certificate is refused, and none at all is an error that says what to give
    other = Security.temporary()
    (tmp_path / "other.pem").write_text(other.tls_ca_file)
    (tmp_path / "other.key").write_text(other.tls_client_key)
    theirs = {"tls_cert": tmp_path / "other.pem", "tls_key": tmp_path / "other.key"}
    monkeypatch.setattr("extract.cluster.running_cluster.FIRST_WORKER", 3.0)
    with pytest.raises(ClusterError, match="no worker of a Dask cluster answers at tls://"):
        extracted(Cluster(running.address, tls_ca=running.ca, **theirs), tmp_path)
    with pytest.raises(ClusterError, match="needs certificates: give --tls-ca"):
        extracted(Cluster(running.address), tmp_path)
    (tmp_path / "none.pem").write_text("no certificate")
    with pytest.raises(ClusterError, match=r"none\.pem.*PEM"):
        extracted(Cluster(running.address, **{**mine, "tls_ca": tmp_path / "none.pem"}), tmp_path)
    # Dask's own configuration will do
    names = {"ca-file": str(running.ca), "client.cert": str(running.ca)}
    names["client.key"] = str(running.key)
    with dask.config.set({f"distributed.comm.tls.{key}": value for key, value in names.items()}):
        assert extracted(Cluster(running.address), tmp_path)[0] == 1


@pytest.mark.parametrize("running", [False], indirect=True)
def test_a_running_cluster_without_tls(running: Running, tmp_path: Path) -> None:
    number, output = extracted(Cluster(running.address), tmp_path)
    assert number == 1
    assert f"{running.address} has no TLS: whoever reaches its ports" in output
    assert "CONNECTED" in attacked(running.address)  # the attack is one


def test_certificates_for_what_has_none() -> None:
    with pytest.raises(ClusterError, match="certificates are for a running cluster with TLS"):
        Cluster("local", tls_ca=Path("ca.pem"))
    with pytest.raises(ClusterError, match="certificates are for a running cluster with TLS"):
        Cluster("tcp://127.0.0.1:9", tls_key=Path("key.pem"))


@pytest.mark.parametrize("kind", ["slurm", "pbs", "lsf", "sge", "htcondor"])
@pytest.mark.parametrize("interface", [None, "lo"])
def test_the_key_of_jobs_is_the_users_alone(
    kind: str, interface: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    site = tmp_path / "site.toml"
    site.write_text('disk = "1GB"\n' if kind == "htcondor" else "")
    cluster = Cluster(kind, config=site, interface=interface)
    with dask.config.set({"distributed.scheduler.http.routes": []}), queue(cluster) as started:
        script = started.job_script()
        keys = list((tmp_path / "cache" / "avarnet" / "keys").iterdir())
        assert len(keys) == 3  # of the authority, the certificate and its key
        assert {file.stat().st_mode & 0o777 for file in keys} == {0o600}
        assert {file.parent.stat().st_mode & 0o777 for file in keys} == {0o700}
        for file in keys:
            assert file.name in script
        assert "PRIVATE KEY" not in script
        assert started.scheduler_address.startswith("tls://")
        assert "0.0.0.0" not in listening(psutil.Process())
        assert "::" not in listening(psutil.Process())
        assert attacked(started.scheduler_address) == ["refused"] * 4
    assert "--no-dashboard --dashboard-address 127.0.0.1:0" in script
    assert ("--interface lo" if interface else "--host") in script
    assert list((tmp_path / "cache" / "avarnet" / "keys").iterdir()) == []


def test_a_shell_takes_the_command_that_finds_the_address(tmp_path: Path) -> None:
    """The part of a job's script by which a worker finds where to listen."""
    script = Cluster("slurm").job_script()
    found = re.search(r"--host (\$\(.*?\)'\))", script)
    assert found
    printed = subprocess.check_output(["bash", "-c", f"echo {found[1]}"], text=True)
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+\n", printed)
