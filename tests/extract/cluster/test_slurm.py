"""Extraction through a real Slurm, and what its users and limits do to jobs."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_extractor import Instant, when_finished
from slurm import slurm
from small_stores import RECIPE, clip, same

from extract import Cluster, ClusterError, Task, extract
from features import Store, recover, verify

pytestmark = pytest.mark.slow

CLIPS = 40


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    site = folder / "site.toml"
    path = os.pathsep.join(sys.path)
    site.write_text(
        'interface = "lo"\n'
        f'log_directory = "{folder}"\n'
        f'job_script_prologue = ["export PYTHONPATH={path}"]\n'
    )
    with slurm(folder):
        yield Cluster("slurm", workers=2, walltime="00:10:00", cores=1, memory="1GB", config=site)


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    (tmp_path / "v").mkdir()
    for number in range(CLIPS):
        (tmp_path / "v" / f"{number}.mp4").write_text("slow 0.4")
    return [Task(str(n), tmp_path / "v" / f"{n}.mp4", None, 1.0) for n in range(CLIPS)]


def complete(store: Path) -> bool:
    opened = Store(store)
    assert set(opened) == {str(n) for n in range(CLIPS)}
    assert all(same(opened[i], clip(4, int(i))) for i in opened)
    assert sum(map(len, opened.shards)) == CLIPS  # none twice
    assert not list(store.glob(".*"))
    return verify(store) == (CLIPS, [])


def jobs() -> list[str]:
    command = ["squeue", "-h", "-t", "RUNNING", "-o", "%i"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def in_the_middle(store: Path, action: list[str], count: int = 1) -> threading.Thread:
    """Run a command on `count` of two running jobs when some clips are finished."""

    def act() -> None:
        while len(jobs()) < 2:
            time.sleep(0.05)
        for job in jobs()[:count]:
            subprocess.run([*action[:-1], action[-1] + job], check=True)

    return when_finished(store, 6, act)


def test_two_workers(cluster: Cluster, tasks: list[Task], tmp_path: Path) -> None:
    seen = in_the_middle(tmp_path / "s", ["scontrol", "show", "job", ""])  # there are two at once
    summary = extract(tasks, tmp_path / "s", RECIPE, cluster=cluster, make=Instant)
    seen.join()
    assert len(summary.extracted) == CLIPS
    assert complete(tmp_path / "s")
    log = (tmp_path / "s" / "extract.log").read_text()
    assert "SLURMCluster-0" in log
    assert "SLURMCluster-1" in log


def test_a_job_that_is_refused(cluster: Cluster, tasks: list[Task], tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"refuses the job \(sbatch: error: .*--memory"):
        extract(tasks, tmp_path / "s", RECIPE, cluster=replace(cluster, memory="9TB"), make=Instant)


@pytest.mark.parametrize(
    ("silence", "what"),
    [
        (300.0, r"no worker of the 2 jobs has come: job \d+ is over"),
        (0.0, r"no worker of the 2 jobs has come: job \d+ has been running for 0 s"),
    ],
)
def test_jobs_that_do_not_reach_this_machine(
    cluster: Cluster,
    tasks: list[Task],
    tmp_path: Path,
    silence: float,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("extract.cluster.batch_system.SILENCE", silence)
    monkeypatch.setattr("extract.cluster.batch_system.POLL_SECONDS", 0.2)
    assert cluster.config is not None
    site = tmp_path / "site.toml"
    site.write_text(
        f"{cluster.config.read_text()}death_timeout = 2\n"
        '[scheduler_options]\ncontact_address = "tls://127.0.0.1:9"\n'
    )
    with pytest.raises(ClusterError, match=what) as caught:
        extract(tasks, tmp_path / "s", RECIPE, cluster=replace(cluster, config=site), make=Instant)
    message = str(caught.value)
    assert "at tls://127.0.0.1:" in message
    assert "--interface NAME (there are lo" in message
    if silence:
        assert re.search(r"log, /\S+/dask-worker-\d+\.err:\n(  .*\n)+", message)
        assert "Timed out starting worker" in message


def test_a_cancelled_job(cluster: Cluster, tasks: list[Task], tmp_path: Path) -> None:
    cancelled = in_the_middle(tmp_path / "s", ["scancel", ""])
    summary = extract(tasks, tmp_path / "s", RECIPE, cluster=cluster, make=Instant)
    cancelled.join()
    assert sorted(summary.extracted) == sorted(task.clip_id for task in tasks)
    assert summary.failed == {}
    assert complete(tmp_path / "s")
    assert "a worker died" in (tmp_path / "s" / "extract.log").read_text()


def test_all_jobs_end(
    cluster: Cluster, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they do when the wall time is over of jobs that began together."""
    monkeypatch.setattr("extract.job.dispatcher.CHECK_SECONDS", 1.0)
    ended = in_the_middle(tmp_path / "s", ["scancel", ""], count=2)
    summary = extract(tasks, tmp_path / "s", RECIPE, cluster=cluster, make=Instant)
    ended.join()
    assert summary.failed == {}
    assert complete(tmp_path / "s")
    log = (tmp_path / "s" / "extract.log").read_text()
    for number in range(2):
        assert f"job SLURMCluster-{number} has ended; another one is asked for" in log


def test_jobs_that_finish_nothing(
    cluster: Cluster, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extract.job.dispatcher.CHECK_SECONDS", 1.0)
    monkeypatch.setattr("extract.cluster.monitor.RENEWALS", 1)
    for task in tasks:
        task.video.write_text("slow 300")
    over = threading.Event()

    def end_each() -> None:
        known: set[Path] = set()
        while not over.wait(0.1):
            mark = {file.parent for file in (tmp_path / "s").glob(".spool-*/mark")}  # the client's
            if mark and (new := set((tmp_path / "s").glob(".spool-*")) - known - mark):  # a worker
                known |= new
                subprocess.run(["scancel", "--user=root"], check=True)

    thread = threading.Thread(target=end_each)
    thread.start()
    alone = replace(cluster, workers=1)
    try:
        with pytest.raises(ClusterError, match=r"finish anything, 2 times each; the last was \d+"):
            extract(tasks, tmp_path / "s", RECIPE, cluster=alone, make=Instant)
    finally:
        over.set()
        thread.join()


CLIENT = """
import pickle, sys
from pathlib import Path
from fake_extractor import Instant
from small_stores import RECIPE
from extract import extract
if __name__ == "__main__":
    cluster, tasks, store = pickle.loads(Path(sys.argv[1]).read_bytes())
    extract(tasks, store, RECIPE, cluster=cluster, make=Instant)
"""


def test_a_killed_client(cluster: Cluster, tasks: list[Task], tmp_path: Path) -> None:
    store = tmp_path / "s"
    (tmp_path / "job.pickle").write_bytes(pickle.dumps((cluster, tasks, store)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CLIENT, str(tmp_path / "job.pickle")]
    with subprocess.Popen(command, env=environment) as client:
        while len(list(store.glob(".spool-*/*.safetensors"))) < 6:
            assert client.poll() is None
            time.sleep(0.05)
        client.kill()
    subprocess.run(["scancel", "--user", "root"], check=True)  # as one would, to have them gone
    while list(store.glob(".spool-*")):  # the last workers let go of their clips when they end
        recover(store)
        time.sleep(0.2)
    summary = extract(tasks, store, RECIPE, cluster=cluster, make=Instant)
    assert len(summary.already) >= 6
    assert complete(store)


def test_the_wall_time_is_over(cluster: Cluster, tasks: list[Task], tmp_path: Path) -> None:
    """Slurm counts in minutes: the limit is set to the past, and it ends the job as it always does.

    It looks for such jobs every 30 seconds, so the clips are slow ones here.
    """
    for task in tasks:
        task.video.write_text("slow 6")
    over = in_the_middle(tmp_path / "s", ["scontrol", "update", "TimeLimit=00:00:01", "JobId="])
    summary = extract(tasks, tmp_path / "s", RECIPE, cluster=cluster, make=Instant)
    over.join()
    assert summary.failed == {}
    assert complete(tmp_path / "s")
    assert "a worker died" in (tmp_path / "s" / "extract.log").read_text()
