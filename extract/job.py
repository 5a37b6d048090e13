"""Stage 1 over a whole manifest: clips go to Dask workers, sealed shards come out in the store."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import dask
import torch
from dask.distributed import Client, KilledWorker, LocalCluster, as_completed

from extract.decode import ClipError, footage
from extract.extractor import Extractor, pick_device
from features import (
    FeatureError,
    Recipe,
    Store,
    WriteError,
    Writer,
    create,
    recover,
    repair,
    verify,
)


class Task(NamedTuple):
    """One clip to extract."""

    clip_id: str
    video: Path
    audio: Path | None = None


class Outcome(NamedTuple):
    """What became of one clip; failure is a value, so that one clip never stops the others."""

    clip_id: str
    footage: float  # seconds of video
    error: str | None  # one line, or None


@dataclass
class Summary:
    """What became of all clips."""

    extracted: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)  # in the store before
    damaged: list[str] = field(default_factory=list)  # shards that were taken out as damaged
    failed: dict[str, str] = field(default_factory=dict)  # clip id -> reason
    footage: float = 0.0  # seconds of video extracted
    seconds: float = 0.0  # wall time


def extract(
    tasks: Sequence[Task],
    store: Path,
    recipe: Recipe,
    *,
    workers: int = 0,
    device: str = "auto",
    progress: Callable[[float, float], None] | None = None,
) -> Summary:
    """Extract every clip that the store does not hold yet, or holds damaged.

    What the store holds is verified first, every byte of it. Interrupted or killed at any moment,
    the same call goes on where it stopped: a finished clip is never done twice, and nothing
    half-written is ever read.

    Args:
        tasks: the clips.
        store: folder of the store; made if absent.
        recipe: of the features; a store of another recipe is refused.
        workers: processes; 0 takes one for each processor core, or a single one on a GPU.
        device: see `Extractor`.
        progress: called with (seconds of footage done, seconds of footage in all).

    Raises:
        FeatureError: the store has another recipe, or cannot be used.
        WriteError: it cannot be written; what is finished stays.
    """
    started = time.monotonic()
    create(store, recipe)
    recover(store)
    _, damages = verify(store)
    repair(store, damages)
    held = set(Store(store))
    todo = [task for task in tasks if task.clip_id not in held]
    summary = Summary(
        already=[task.clip_id for task in tasks if task.clip_id in held],
        damaged=[damage.shard.name for damage in damages],
    )
    if todo:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            lengths = dict(zip(todo, pool.map(lambda task: footage(task.video), todo), strict=True))
        total, done = sum(lengths.values()), 0.0
        if progress:
            progress(done, total)
        for task, outcome in _run(todo, store, recipe, workers or _worker_count(device), device):
            if outcome.error is None:
                summary.extracted.append(task.clip_id)
                summary.footage += outcome.footage
            else:
                summary.failed[task.clip_id] = outcome.error
            done += lengths[task]
            if progress:
                progress(done, total)
    summary.seconds = time.monotonic() - started
    return summary


def _run(
    tasks: Sequence[Task], store: Path, recipe: Recipe, workers: int, device: str
) -> Iterator[tuple[Task, Outcome]]:
    """Yield each task with its outcome, as they end."""
    settings = {
        # one task at a time on a worker: when native code takes the process down, the only clip
        # to blame is the one that was being read; it gets a second try
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.scheduler.allowed-failures": 1,
        "distributed.worker.memory.terminate": False,
    }
    try:
        with (
            dask.config.set(settings),
            LocalCluster(
                n_workers=min(workers, len(tasks)),
                threads_per_worker=1,
                dashboard_address=":0",
                silence_logs=logging.CRITICAL,
                memory_limit=0,
            ) as cluster,
            Client(cluster) as client,
        ):
            threads = max(1, (os.cpu_count() or 1) // workers)
            job = (recipe.to_json(), store.resolve(), device, threads)
            futures = {
                client.submit(_extract_clip, task, job, pure=False, key=f"clip-{number}"): task
                for number, task in enumerate(tasks)
            }
            for future in as_completed(list(futures)):
                task = futures.pop(future)
                error = future.exception() if future.status == "error" else None
                if isinstance(error, KilledWorker):
                    reason = "reading it crashed the worker process, twice"
                    yield task, Outcome(task.clip_id, 0, reason)
                elif error is not None:
                    raise error
                else:
                    yield task, future.result()
                future.release()
            client.run(_seal)
    finally:
        recover(store)  # of workers that crashed, or of all if this was interrupted


def _worker_count(device: str) -> int:
    return (os.cpu_count() or 1) if pick_device(device).type == "cpu" else 1


@cache  # one pair of networks and one writer for each worker process and job
def _tools(recipe_json: str, store: Path, device: str, threads: int) -> tuple[Extractor, Writer]:
    torch.set_num_threads(threads)
    recipe = Recipe.from_json(recipe_json)
    writer = Writer(store, recipe)
    _writers.append(writer)
    return Extractor(recipe, device), writer


_writers: list[Writer] = []


def _extract_clip(task: Task, job: tuple[str, Path, str, int]) -> Outcome:
    extractor, writer = _tools(*job)
    try:
        features = extractor(task.video, task.audio)
        writer.add(task.clip_id, features)
    except WriteError:
        raise  # no other clip could be written either
    except (ClipError, FeatureError) as error:
        return Outcome(task.clip_id, 0, str(error))
    return Outcome(task.clip_id, features.duration, None)


def _seal() -> None:
    for writer in _writers:
        writer.seal()
