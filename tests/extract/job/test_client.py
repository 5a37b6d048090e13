"""The job around the networks: batches, clusters, and every way in which work is interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from fake_extractor import Instant, when_finished
from forked_workers import spawned_workers
from hypothesis import given
from hypothesis import strategies as st
from slurm import free_ports
from small_stores import RECIPE, clip, same

from extract import Cluster, ClusterError, Task, choose_precision, extract, status
from extract.cluster.versions import versions
from extract.job.batching import LEAST_FOOTAGE, MOST_FOOTAGE, batches
from extract.job.dispatcher import Dispatcher
from extract.job.failures import read_failures
from extract.job.interrupt import StopRequest
from extract.job.results import Callbacks
from extract.job.shared_disk import StoreMarker
from extract.job.summary import Summary
from extract.job.worker import JobSettings
from features import FeatureError, Recipe, Store, WriteError, Writer, recover, verify

pytestmark = pytest.mark.slow

TWO = Cluster(workers=2)


def tasks(folder: Path, words: list[str]) -> list[Task]:
    folder.mkdir(exist_ok=True)
    for number, word in enumerate(words):
        (folder / f"{number}.mp4").write_text(word)
    return [Task(str(n), folder / f"{n}.mp4", None, 1.0) for n in range(len(words))]


def complete(store: Path, ids: set[str]) -> bool:
    opened = Store(store)
    assert all(same(opened[i], clip(4, int(i))) for i in opened)
    assert verify(store) == (len(opened), [])
    assert sum(map(len, opened.shards)) == len(opened)  # none twice
    assert not list(store.glob(".*"))
    return set(opened) == ids


@given(st.lists(st.floats(0, 5000), min_size=1, max_size=300), st.integers(1, 50))
def test_batches_are_whole_and_alike(durations: list[float], processes: int) -> None:
    some = [Task(str(n), Path(f"{n}")) for n in range(len(durations))]
    plan = batches(some, durations, processes)
    assert sorted(t.clip_id for b in plan for t in b) == sorted(t.clip_id for t in some)
    weights = [
        [max(LEAST_FOOTAGE, durations[int(task.clip_id)]) for task in batch] for batch in plan
    ]
    target = min(MOST_FOOTAGE, sum(map(sum, weights)) / (8 * processes))
    assert all(len(batch) == 1 or sum(batch) <= target * 1.0001 for batch in weights)
    # no two neighbours would have fitted into one
    assert all(sum(a) + b[0] > target * 0.9999 for a, b in pairwise(weights))


def test_failures_are_kept_and_not_tried_again(tmp_path: Path) -> None:
    some = tasks(tmp_path / "v", ["", "bad: a reason", "", "bad: another"])
    store = tmp_path / "s"
    first = extract(some, store, RECIPE, cluster=TWO, make=Instant)
    assert first.failed == {"1": "bad: a reason", "3": "bad: another"}
    assert first.not_tried == []
    failures = read_failures(store)
    assert failures["1"].reason == "bad: a reason"
    assert (failures["1"].stage, failures["1"].attempts) == ("read", 1)
    again = extract(some, store, RECIPE, cluster=TWO, make=Instant)
    assert again.failed == first.failed
    assert sorted(again.not_tried) == ["1", "3"]
    some[3].video.write_text("mended")  # another file: tried again without being asked
    third = extract(some, store, RECIPE, cluster=TWO, make=Instant)
    assert third.extracted == ["3"]
    assert third.failed == {"1": "bad: a reason"}
    assert extract(some, store, RECIPE, cluster=TWO, make=Instant, retry_failed=True).failed
    assert list(read_failures(store)) == ["1"]
    assert status(["0", "1", "2", "3", "4"], store) == (5, 3, 0, {"1": "bad: a reason"}, 1)
    with open(store / "failures.jsonl", "a") as file:
        file.write('{"id": "cut o')  # by a kill
    assert list(read_failures(store)) == ["1"]
    log = (store / "extract.log").read_text()
    assert "4 clips" in log or "of 1 clips" in log
    assert "end: 2 extracted, 0 already there, 2 failed" in log


def test_a_worker_that_dies_loses_nothing(tmp_path: Path) -> None:
    words = ["", "", "die once", "", "", "die", "", ""]
    some = tasks(tmp_path / "v", words)
    # a forked one is there again before the client has withdrawn what the dead one had finished
    with spawned_workers():
        summary = extract(some, tmp_path / "s", RECIPE, cluster=TWO, make=Instant)
    reason = "the worker died while it had this clip, 3 times"
    assert summary.failed == {"5": reason}
    assert sorted(summary.extracted) == ["0", "1", "2", "3", "4", "6", "7"]
    assert complete(tmp_path / "s", {"0", "1", "2", "3", "4", "6", "7"})
    failure = read_failures(tmp_path / "s")["5"]
    assert (failure.stage, failure.attempts) == ("worker", 3)


def test_another_recipe_is_refused_before_any_work(tmp_path: Path) -> None:
    some = tasks(tmp_path / "v", [""])
    extract(some, tmp_path / "s", RECIPE, cluster=TWO, make=Instant)
    other = Recipe(0.5, RECIPE.precision, RECIPE.streams)
    with pytest.raises(FeatureError, match=r"snippet_seconds: 0\.5, not 0\.25"):
        extract(some, tmp_path / "s", other, cluster=TWO, make=Instant)


def test_the_folder_is_away_for_a_while(tmp_path: Path) -> None:
    some = tasks(tmp_path / "v", ["slow 0.2"] * 20)
    store, away = tmp_path / "s", tmp_path / "away"

    def take_away() -> None:
        store.rename(away)
        time.sleep(3)
        away.rename(store)

    thief = when_finished(store, 1, take_away)
    summary = extract(some, store, RECIPE, cluster=TWO, make=Instant)
    thief.join()
    assert summary.failed == {}
    assert complete(store, {str(n) for n in range(20)})


def test_a_folder_that_cannot_be_written_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extract.job.shared_disk.CLIPS_VISIBLE", 2.0)
    some = tasks(tmp_path / "v", ["slow 0.1"] * 10)
    store = tmp_path / "s"
    Writer(store, RECIPE)

    def fill_up() -> None:
        for spool in store.glob(".spool-*"):  # as if the disk took no more
            spool.rename(tmp_path / spool.name)
            spool.touch()

    thief = when_finished(store, 1, fill_up)
    with pytest.raises(WriteError, match="run the same command"):
        extract(some, store, RECIPE, cluster=TWO, make=Instant)
    thief.join()


JOB = """
import sys
from pathlib import Path
from fake_extractor import Instant
from small_stores import RECIPE
from extract import Cluster, Task, extract
if __name__ == "__main__":
    folder, store = map(Path, sys.argv[1:])
    tasks = [Task(p.stem, p, None, 1.0) for p in sorted(folder.glob("*.mp4"))]
    summary = extract(tasks, store, RECIPE, cluster=Cluster(workers=2), make=Instant)
    print(len(summary.extracted), len(summary.left))
"""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A job in a process group of its own, as a terminal makes them, in the middle of its work."""
    tasks(tmp_path / "v", ["slow 0.5"] * 40)
    (tmp_path / "job.py").write_text(JOB)
    command = [sys.executable, str(tmp_path / "job.py"), str(tmp_path / "v"), str(tmp_path / "s")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while len(list((tmp_path / "s").glob(".spool-*/*.safetensors"))) < 4:
            assert process.poll() is None
            time.sleep(0.02)
        yield process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def go_on(tmp_path: Path) -> None:
    some = [Task(str(n), tmp_path / "v" / f"{n}.mp4", None, 1.0) for n in range(40)]
    for task in some:
        task.video.write_text("")
    summary = extract(some, tmp_path / "s", RECIPE, cluster=TWO, make=Instant)
    assert len(summary.already) >= 4
    assert len(summary.already) + len(summary.extracted) == 40
    assert complete(tmp_path / "s", {str(n) for n in range(40)})


def test_ctrl_c_finishes_what_is_in_work(job: subprocess.Popen[str], tmp_path: Path) -> None:
    assert status(map(str, range(40)), tmp_path / "s").unsealed >= 4
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does, to all of the group
    out, _ = job.communicate(timeout=300)
    extracted, left = map(int, out.split())
    assert extracted >= 4
    assert left > 0
    assert extracted + left == 40
    assert complete(tmp_path / "s", set(Store(tmp_path / "s")))
    assert len(Store(tmp_path / "s")) == extracted
    go_on(tmp_path)


def test_a_second_ctrl_c_stops_at_once(job: subprocess.Popen[str], tmp_path: Path) -> None:
    for video in (tmp_path / "v").glob("*.mp4"):
        video.write_text("slow 100")  # what is begun now would not end
    time.sleep(4)  # so that the clips in work are of that kind, on a busy machine too
    os.killpg(job.pid, signal.SIGINT)
    time.sleep(2)
    assert job.poll() is None
    os.killpg(job.pid, signal.SIGINT)
    job.wait(timeout=300)
    go_on(tmp_path)


def test_the_client_is_killed(job: subprocess.Popen[str], tmp_path: Path) -> None:
    workers = psutil.Process(job.pid).children(recursive=True)
    job.kill()  # the client alone: its workers find out by themselves
    gone, alive = psutil.wait_procs(workers, timeout=300)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE], gone
    go_on(tmp_path)


class Running:
    """A Dask cluster of one worker, started by hand; its processor has no bf16."""

    def __init__(self) -> None:
        (port,) = free_ports(1)
        self.address = f"tcp://127.0.0.1:{port}"
        paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
        self.environment = {**os.environ, **paths, "ATEN_CPU_CAPABILITY": "default"}
        self.scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", str(port))
        self.worker = self.start("worker", self.address, "--nthreads", "1")

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *words, "--no-dashboard"],
            env=self.environment,
            stderr=subprocess.DEVNULL,
        )

    def end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is not None:
            return
        # asked to end, a Dask process may wait for ever; a worker is a child of its nanny
        children = psutil.Process(process.pid).children(recursive=True)
        for one in (process, *children):
            one.kill()
        psutil.wait_procs(children)
        process.wait()


@pytest.fixture
def running() -> Iterator[Running]:
    cluster = Running()
    yield cluster
    for process in (cluster.worker, cluster.scheduler):
        cluster.end(process)


def test_a_running_cluster(running: Running, tmp_path: Path) -> None:
    some = tasks(tmp_path / "v", [""] * 10)
    cluster = Cluster(running.address)
    choice = choose_precision({}, cluster=cluster)
    summary = extract(some, tmp_path / "s", RECIPE, cluster=cluster, make=Instant)
    assert len(summary.extracted) == 10
    assert complete(tmp_path / "s", {str(n) for n in range(10)})
    # the worker's processor, not this one
    assert choice.precision == "fp32"
    assert re.match(r"measured by a worker on \S+: this processor .*\(DEFAULT\)", choice.why)


@pytest.mark.parametrize("gone", ["worker", "scheduler"])
def test_a_running_cluster_disappears(
    running: Running, gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extract.job.dispatcher.CHECK_SECONDS", 0.5)
    monkeypatch.setattr("extract.cluster.monitor.SILENCE", 2.0)
    monkeypatch.setattr("extract.cluster.running_cluster.FIRST_WORKER", 10.0)
    some = tasks(tmp_path / "v", ["slow 0.3"] * 20)
    cluster = Cluster(running.address)
    ended = when_finished(tmp_path / "s", 3, lambda: running.end(getattr(running, gone)))
    with pytest.raises(
        ClusterError, match=rf"{gone} of {running.address} cannot be reached any more"
    ):
        extract(some, tmp_path / "s", RECIPE, cluster=cluster, make=Instant)
    ended.join()
    running.end(running.worker)  # a worker without a scheduler keeps its clips until it ends
    recover(tmp_path / "s")
    assert 3 <= len(Store(tmp_path / "s")) < 20


def test_a_file_that_kills_its_worker_has_no_known_length(tmp_path: Path) -> None:
    with Cluster(workers=1).client(1) as client, StoreMarker(tmp_path) as marker:
        settings = JobSettings(
            RECIPE.to_json(), tmp_path, marker.marker, "cpu", 0, Instant, versions()
        )
        dispatcher = Dispatcher(
            client, TWO, settings, marker, Summary(), Callbacks(), StopRequest()
        )
        future = client.submit(os.abort, pure=False)
        assert dispatcher._probed(future, [Path("a.mp4"), Path("b.mp4")]) == [0.0, 0.0]


def test_clusters_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match="slurm"):
        Cluster("slrum")
    monkeypatch.setattr("extract.cluster.running_cluster.FIRST_WORKER", 0.5)
    some = tasks(tmp_path / "v", [""])
    with pytest.raises(ClusterError, match=r"dask worker tcp://127\.0\.0\.1:9"):
        extract(some, tmp_path / "s", RECIPE, cluster=Cluster("tcp://127.0.0.1:9"))
    wrong = tmp_path / "site.toml"
    wrong.write_text("cores = ")
    with pytest.raises(ClusterError, match=r"site\.toml"):
        Cluster("slurm", config=wrong).job_script()


@pytest.mark.parametrize("kind", ["slurm", "pbs", "lsf", "sge", "htcondor"])
def test_the_script_of_a_job(kind: str, tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text('interface = "lo"\nqueue = "other"\nmemory = "7GB"\n')
    if kind == "htcondor":
        site.write_text('interface = "lo"\ndisk = "1GB"\nmemory = "7GB"\n')
    queue = None if kind == "htcondor" else "long"
    cluster = Cluster(kind, queue=queue, walltime="02:00", cores=3, config=site)
    script = cluster.job_script()
    assert "--nworkers 3" in script
    assert "export PYTHONSAFEPATH=1" in script
    assert "other" not in script  # what is asked for wins over the site's file
    if queue:
        assert "long" in script
        assert "02:00" in script


def test_ids_with_commas_are_told_apart() -> None:
    summary = Summary(slowest=[("a,b", 2.0), ("c", 1.0)])
    assert str(summary).endswith('; slowest: "a,b" 2.0 s, c 1.0 s')
