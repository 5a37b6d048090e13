"""What does the job around the networks cost, for 1,000 to 100,000 clips?

Claimed: the time grows linearly with the clips, at less than 5 ms for each (tasks, messages, and a
clip spooled, then sealed in a shard with its checksums, and verified); the memory of the
client and of the scheduler grows by what a clip's name and outcome take; and a million clips are
planned in less than a minute.

Measured: `extract` as the command calls it, on a Dask scheduler and two workers in processes of
their own, with an extractor that invents each clip's 40 snippets of 320 + 768 values at once. The
videos are names only. A job of ten clips goes before, so that what is loaded once (torch, above
all) counts neither in the time nor in the memory, which is the peak above what was there before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

sys.path[0] = str(Path(__file__).parents[1])  # a script beside this one has the name of a package

from extract import Cluster, Task, extract  # noqa: E402
from extract.job.batching import batches  # noqa: E402
from features import Features, Recipe, verify  # noqa: E402

WORKERS = ["--nworkers", "2", "--nthreads", "1", "--no-dashboard", "--memory-limit", "0"]
GOAL_MS, GOAL_PLAN = 5.0, 60.0
SIZES = {"video": 320, "audio": 768}
RECIPE = Recipe(0.25, "fp32", {name: {"features": size} for name, size in SIZES.items()})
ROWS = {name: np.ones((40, size), np.float16) for name, size in SIZES.items()}
VALID = {name: np.ones(40, bool) for name in SIZES}


class Instant:
    """An extractor that reads nothing."""

    def __init__(self, recipe: Recipe, device: str, memory_bytes: int) -> None:
        pass

    def stream(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Features]]:
        for task in tasks:
            yield task, Features(ROWS, VALID, 0.25, 10.0)

    def close(self) -> None:
        pass


class Cost(NamedTuple):
    """What a number of clips cost."""

    clips: int
    seconds: float
    client: int  # bytes
    scheduler: int


def names(count: int) -> list[Task]:
    return [Task(f"clip-{n:07d}", Path(f"/videos/{n:07d}.mp4"), None, 10.0) for n in range(count)]


def peak(process: psutil.Process, over: threading.Event, found: list[int]) -> None:
    while not over.wait(0.05):
        found.append(process.memory_info().rss)


def measure(count: int) -> Cost:
    """Extract so many clips on a fresh cluster into a fresh store."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        dask = [sys.executable, "-m", "dask"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        paths = {"PYTHONPATH": ":".join([str(Path(__file__).parent), *filter(None, sys.path)])}
        scheduler = subprocess.Popen(
            [*dask, "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)],
            **quiet,  # type: ignore[call-overload]
        )
        crew = subprocess.Popen(
            [*dask, "worker", *WORKERS, "--scheduler-file", str(file)],
            env=paths | {"PATH": "/usr/bin:/bin"},
            **quiet,  # type: ignore[call-overload]
        )
        try:
            while not file.exists():
                time.sleep(0.1)
            address = json.loads(file.read_text())["address"]
            cluster = Cluster(address)
            extract(names(10), Path(folder) / "first", RECIPE, cluster=cluster, make=Instant)
            tasks = names(count)
            processes = [psutil.Process(), psutil.Process(scheduler.pid)]
            before = [process.memory_info().rss for process in processes]
            over = threading.Event()
            found: list[list[int]] = [[], []]
            watchers = [
                threading.Thread(target=peak, args=(process, over, seen))
                for process, seen in zip(processes, found, strict=True)
            ]
            for watcher in watchers:
                watcher.start()
            store = Path(folder) / "store"
            began = time.perf_counter()
            summary = extract(tasks, store, RECIPE, cluster=cluster, make=Instant)
            seconds = time.perf_counter() - began
            over.set()
            for watcher in watchers:
                watcher.join()
            assert len(summary.extracted) == count
            assert verify(store) == (count, [])
        finally:
            crew.terminate()
            scheduler.terminate()
            crew.wait()
            scheduler.wait()
    client, by_scheduler = (max(seen) - start for seen, start in zip(found, before, strict=True))
    return Cost(count, seconds, client, by_scheduler)


def draw(costs: list[Cost], file: Path) -> None:
    """Plot time and memory over clips."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    clips = [cost.clips for cost in costs]
    left.loglog(clips, [cost.seconds for cost in costs], "o-", label="measured")
    left.loglog(clips, [GOAL_MS / 1000 * n for n in clips], ":", label=f"{GOAL_MS:g} ms a clip")
    left.set(xlabel="clips", ylabel="seconds")
    right.loglog(clips, [cost.client / 1e6 for cost in costs], "o-", label="client")
    right.loglog(clips, [cost.scheduler / 1e6 for cost in costs], "s-", label="scheduler")
    right.set(xlabel="clips", ylabel="MB more than at the start")
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--plot", type=Path, help="write the curve there, as PNG")
    asked = parser.parse_args()
    console = Console(width=100)
    began = time.perf_counter()
    plan = batches(names(1_000_000), [10.0] * 1_000_000, 64)
    planned = time.perf_counter() - began
    console.print(
        f"1,000,000 clips planned in {planned:.1f} s, {len(plan)} tasks (goal: {GOAL_PLAN:.0f} s)"
    )
    del plan
    costs = []
    table = Table("clips", "seconds", "ms a clip", "client", "scheduler")
    table.title = "seconds, and memory above what was there before"
    for count in asked.clips:
        cost = measure(count)
        costs.append(cost)
        table.add_row(
            f"{count:,}",
            f"{cost.seconds:.1f}",
            f"{1000 * cost.seconds / count:.2f} (goal: {GOAL_MS:g})",
            f"{cost.client / 1e6:.0f} MB",
            f"{cost.scheduler / 1e6:.0f} MB",
        )
    console.print(table)
    if asked.plot:
        draw(costs, asked.plot)


if __name__ == "__main__":
    main()
