"""Kills (-9) of an extraction and all its processes, with real networks, in the middle of clips."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from small_stores import same

from extract import Cluster, Task, extract
from extract.synthetic import make_clip
from features import Features, Recipe, Store, verify

pytestmark = pytest.mark.slow
CLIPS = 12
JOB = """
import sys
from pathlib import Path
from extract import Cluster, Task, extract
from features import Recipe
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    tasks = [Task(file.stem, file) for file in sorted(folder.glob("*.mp4"))]
    recipe = Recipe.from_json((folder / "recipe.json").read_text())
    extract(tasks, folder / "store", recipe, cluster=Cluster(workers=1))
"""


def finished(store: Path) -> int:
    return len(list(store.glob(".spool-*/*.safetensors"))) + len(list(store.glob("[!.]*.h5")))


def run_and_kill(folder: Path, rng: np.random.Generator) -> bool:
    """Return whether it was killed before it ended: as it starts, or just after a finished clip."""
    command = [sys.executable, str(folder / "job.py"), str(folder)]
    job = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    before = finished(folder / "store")
    while rng.random() < 0.999 and job.poll() is None and finished(folder / "store") <= before:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 1.0))
    try:
        family = [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]
    except psutil.NoSuchProcess:
        family = []
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)
    code = job.wait()
    psutil.wait_procs(family, timeout=100)  # until then they hold what they have finished
    assert code in (0, -signal.SIGKILL)
    return code != 0


def check(store: Path, right: dict[str, Features]) -> None:
    """Hold what is in a store against the right features."""
    assert not verify(store)[1]
    found = Store(store)
    assert found.unreadable == {}
    assert all(same(found[clip_id], right[clip_id]) for clip_id in found)


@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=pytest.mark.soak)])
def test_killed_at_any_moment(kills: int, recipe: Recipe, tmp_path: Path) -> None:
    rng = np.random.default_rng(kills)
    files = [make_clip(tmp_path / f"{n}.mp4", "Crash", n, seconds=1.0) for n in range(CLIPS)]
    recipe.save(tmp_path / "recipe.json")
    (tmp_path / "job.py").write_text(JOB)
    tasks = [Task(file.stem, file) for file in files]
    whole, store = tmp_path / "whole", tmp_path / "store"
    extract(tasks, whole, recipe, cluster=Cluster(workers=1))
    right = dict(Store(whole))
    killed = 0
    while killed < kills:
        cut = run_and_kill(tmp_path, rng)
        killed += cut
        if (store / "recipe.json").exists():
            check(store, right)
        if not cut or killed == kills:
            summary = extract(tasks, store, recipe, cluster=Cluster(workers=1))
            assert not summary.failed
            check(store, right)
            assert sum(len(shard) for shard in Store(store).shards) == CLIPS  # none twice
            assert not list(store.glob(".*"))
            shutil.rmtree(store)
