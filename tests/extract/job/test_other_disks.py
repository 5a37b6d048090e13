"""A running cluster whose workers see other disks than the client, or have another avarnet."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dask.distributed import Client
from fake_extractor import Instant
from slurm import free_ports
from small_stores import RECIPE, clip, same

from extract import Cluster, ClusterError, Task, extract
from extract.job.failures import FAILURES
from features import Store, verify

pytestmark = pytest.mark.slow


class Site:
    """A scheduler, and workers each of which may have another disk at some folder."""

    def __init__(self) -> None:
        (port,) = free_ports(1)
        self.address = f"tcp://127.0.0.1:{port}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start(sys.executable, "scheduler", "--host", "127.0.0.1", "--port", str(port))

    def start(self, python: str, *words: str, path: tuple[str, ...] = ()) -> None:
        paths = {"PYTHONPATH": os.pathsep.join((*path, *sys.path))}
        # -P: what an installation has left in the current folder is not the worker's
        command = [python, "-P", "-m", "dask", *words, "--no-dashboard"]
        if python != sys.executable:
            command = [*python.split(" "), sys.executable, *command[1:]]
        self.processes.append(
            subprocess.Popen(command, env={**os.environ, **paths}, stderr=subprocess.DEVNULL)
        )

    def worker(self, name: str, other_disk_at: Path | None = None, path: str = "") -> None:
        python = sys.executable
        if other_disk_at:  # in a name space of mounts of its own
            (other_disk_at.parent / "mounted").write_text(
                f'#!/bin/sh\nmount -t tmpfs none "{other_disk_at}" && exec "$@"\n'
            )
            python = f"unshare -r -m sh {other_disk_at.parent / 'mounted'}"
        words = ("worker", self.address, "--nthreads", "1", "--no-nanny", "--name", name)
        self.start(python, *words, path=(path,) if path else ())

    @contextmanager
    def client(self) -> Iterator[Client]:
        with Client(self.address, timeout=60) as client:
            yield client

    def end(self) -> None:
        for process in self.processes:
            process.kill()  # asked to end, a Dask worker may wait for its scheduler for ever
        for process in self.processes:
            process.wait()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.end()


@pytest.fixture
def mounts() -> None:
    """Skip where a process may not have mounts of its own."""
    command = ["unshare", "-r", "-m", "sh", "-c", "mount -t tmpfs none /tmp"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare here, which gives a worker another disk")
    if done.returncode:
        pytest.skip(f"no mounts of one's own here, for a worker with other disks: {done.stderr}")


def tasks(folder: Path, count: int, words: str = "") -> list[Task]:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.mp4").write_text(words)
    return [Task(str(n), folder / f"{n}.mp4", None, 1.0) for n in range(count)]


def complete(store: Path, count: int) -> bool:
    opened = Store(store)
    assert all(same(opened[i], clip(4, int(i))) for i in opened)
    assert verify(store) == (count, [])
    assert not list(store.glob(".*"))  # the job's mark neither
    return set(opened) == {str(n) for n in range(count)}


@pytest.mark.usefixtures("mounts")
def test_another_disk_at_the_stores_path(site: Site, tmp_path: Path) -> None:
    some = tasks(tmp_path / "v", 6)
    store = tmp_path / "disk" / "s"
    store.mkdir(parents=True)
    site.worker("blind", tmp_path / "disk")
    began = time.monotonic()
    with pytest.raises(ClusterError) as caught:
        extract(some, store, RECIPE, cluster=Cluster(site.address), make=Instant)
    took = time.monotonic() - began
    message = str(caught.value)
    assert f"worker blind on {platform.node()}: it does not see the store {store}" in message
    assert "there is no such folder" in message
    assert "6 of 6 clips are not extracted" in message
    assert took < 200  # it waited 300 s before, and made a store of its own then
    assert complete(store, 0)
    assert not (store / FAILURES).exists()
    with site.client() as client:
        (files,) = client.run(os.listdir, str(tmp_path / "disk")).values()
    assert files == []  # it has made no store on the other disk
    # with a worker that sees it, the other's clips are done by this one
    site.worker("seeing")
    later_output: list[str] = []
    with site.client() as client:
        client.wait_for_workers(2)
    summary = extract(
        some, store, RECIPE, cluster=Cluster(site.address), make=Instant, say=later_output.append
    )
    assert sorted(summary.extracted) == [str(n) for n in range(6)]
    assert complete(store, 6)
    assert (summary.left, summary.failed) == ([], {})
    assert all("worker blind" in problem for problem in summary.workers_without_access)
    assert [line for line in later_output if "tried on other workers" in line] == [
        f"{problem}. Its clips are tried on other workers"
        for problem in summary.workers_without_access
    ]


@pytest.mark.usefixtures("mounts")
def test_videos_that_a_worker_does_not_see_are_no_failures_of_theirs(
    site: Site, tmp_path: Path
) -> None:
    store, disk = tmp_path / "s", tmp_path / "disk"
    hidden = tasks(disk / "v", 5)
    plain = [task._replace(clip_id=f"1{task.clip_id}") for task in tasks(tmp_path / "v", 5)]
    gone = Task("20", tmp_path / "gone.mp4", None, 1.0)  # which nobody sees
    some = [*hidden, *plain, gone]
    site.worker("blind", disk)
    with pytest.raises(ClusterError) as caught:
        extract(some, store, RECIPE, cluster=Cluster(site.address), make=Instant)
    message = str(caught.value)
    assert f"worker blind on {platform.node()}: it does not see {disk / 'v'}/" in message
    assert "(no such file or directory); this machine does" in message
    assert "5 of 11 clips are not extracted, and 5 are" in message
    assert set(Store(store)) == {task.clip_id for task in plain}
    failures = (store / FAILURES).read_text()
    assert failures.count("\n") == 1
    assert '"id": "20"' in failures
    # the sound of a clip counts as the clip
    (tmp_path / "disk" / "0.wav").touch()
    heard = [Task("0", plain[0].video, tmp_path / "disk" / "0.wav", 1.0)]
    with pytest.raises(ClusterError, match=r"does not see \S+/0\.wav \(no such file"):
        extract(heard, store, RECIPE, cluster=Cluster(site.address), make=Instant)
    # a worker that sees them does them, unasked
    site.worker("seeing")
    with site.client() as client:
        client.wait_for_workers(2)
    summary = extract(some, store, RECIPE, cluster=Cluster(site.address), make=Instant)
    assert sorted(summary.extracted) == [str(n) for n in range(5)]
    assert summary.not_tried == ["20"]
    assert summary.left == []


def test_a_worker_with_another_version_is_refused(site: Site, tmp_path: Path) -> None:
    about = tmp_path / "site" / "avarnet-9.8.7.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: avarnet\nVersion: 9.8.7\n")
    site.worker("other", path=str(tmp_path / "site"))
    some = tasks(tmp_path / "v", 2)
    with pytest.raises(ClusterError) as caught:
        extract(some, tmp_path / "s", RECIPE, cluster=Cluster(site.address), make=Instant)
    message = str(caught.value)
    assert "has avarnet 9.8.7 (version 2 of the reading code)" in message
    assert "and this machine has avarnet " in message
    assert platform.node() in message
    assert len(Store(tmp_path / "s")) == 0


def test_a_worker_of_another_version_that_comes_later_is_refused(
    site: Site, tmp_path: Path
) -> None:
    about = tmp_path / "site" / "avarnet-9.8.7.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: avarnet\nVersion: 9.8.7\n")
    site.worker("same")
    some = tasks(tmp_path / "v", 40, "slow 1")

    def bring(done: float, total: float) -> None:
        if len(site.processes) == 2:
            site.worker("other", path=str(tmp_path / "site"))

    with pytest.raises(ClusterError, match=r"has avarnet 9\.8\.7 .*and this machine has"):
        extract(
            some,
            tmp_path / "s",
            RECIPE,
            cluster=Cluster(site.address),
            make=Instant,
            progress=bring,
        )
