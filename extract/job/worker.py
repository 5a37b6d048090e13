"""What a Dask worker does: batches of clips come in, finished clips go to the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from dask.distributed import get_worker

from extract.cluster.versions import ClusterError, Versions, other_versions, versions
from extract.decoding.container import ClipError, footage
from extract.finite import Extracted
from extract.job.batching import Task
from extract.job.shared_disk import MARKER_VISIBLE, Marker, machine, unreadable, wait_for_store
from features import FeatureError, Features, Recipe, WriteError, Writer

MakeExtractor = Callable[[Recipe, str, int], Any]  # makes what has `Extractor.stream`


@dataclass(frozen=True)
class JobSettings:
    """What a worker must know beside the clips; equal in each batch.

    Attributes:
        recipe: as JSON.
        store: folder of the store.
        marker: of the job, in the store.
        device: ``auto`` (CUDA, then Apple's MPS, then the CPU) or a torch device.
        memory_bytes: that reading a clip may take.
        make: makes the extractor.
        made_by: the versions of this program that the job has.
    """

    recipe: str
    store: Path
    marker: Marker
    device: str
    memory_bytes: int
    make: MakeExtractor
    made_by: Versions


@dataclass(frozen=True)
class RowCounts:
    """A clip's rows by stream; see `Extracted`."""

    rows: dict[str, int] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of one clip; failure is a value, so that one clip never stops the others.

    Attributes:
        clip_id: the clip's.
        footage: seconds of video.
        seconds: since the clip before was finished.
        error: in one line, or None.
        counts: of its rows.
        file: in the store, where it is until it is sealed.
        unreadable: a file that only the client can read, and why; then nothing was tried.
    """

    clip_id: str
    footage: float = 0.0
    seconds: float = 0.0
    error: str | None = None
    counts: RowCounts = field(default_factory=RowCounts)
    file: str = ""
    unreadable: str = ""


@dataclass(frozen=True)
class Report:
    """What a worker did with a batch.

    Attributes:
        worker: its name.
        address: its address.
        machine: its machine's name.
        outcomes: of the clips that it came to.
        store_mismatch: what it has in the store's place; then it has done no more of the batch.
    """

    worker: str
    address: str
    machine: str
    outcomes: list[Outcome]
    store_mismatch: str = ""


def extract_batch(batch: list[Task], readable: set[Path], job: JobSettings) -> Report:
    """Extract clips on this worker.

    Args:
        batch: the clips.
        readable: those of their files that the client can read.
        job: the settings.

    Raises:
        ClusterError: the worker has another version of this program.
        WriteError: the store cannot be written.
    """
    return WORKER.extract(batch, readable, job)


def stop() -> None:
    """Begin no more clips on this worker."""
    WORKER.stopping = True


def seal() -> None:
    """Seal what this worker has finished, and free its networks."""
    WORKER.seal()


def lengths(videos: list[Path]) -> list[float]:
    """Return the length of each video in seconds, as its container states it."""
    return [footage(video) for video in videos]


class _Tools(NamedTuple):
    extractor: Any
    writer: Writer


class _WriteFailed(Exception):
    """The store cannot be written any more, after some clips."""

    def __init__(self, error: WriteError, outcomes: list[Outcome]) -> None:
        super().__init__(str(error))
        self.outcomes = outcomes


class Worker:
    """The networks and the writers of a worker's jobs.

    Attributes:
        stopping: no more clips are begun.
    """

    def __init__(self) -> None:
        self.stopping = False
        self._tools: dict[JobSettings, _Tools] = {}
        self._sees_store: dict[JobSettings, bool] = {}  # when it was last looked for

    def extract(self, batch: list[Task], readable: set[Path], job: JobSettings) -> Report:
        """Extract clips; see `extract_batch`.

        Args:
            batch, readable, job: see there.
        """
        dask_worker = get_worker()
        name, address, host = str(dask_worker.name), dask_worker.address, machine()
        if differing := other_versions(versions(), job.made_by):
            raise ClusterError(f"worker {name} on {host} has {differing}")
        # who sees another disk there would make a store of its own
        if mismatch := self._store_mismatch(job):
            return Report(name, address, host, [], mismatch)
        try:
            return Report(name, address, host, self._outcomes(batch, readable, job))
        except _WriteFailed as error:
            mismatch = job.marker.mismatch()
            if not mismatch:
                raise WriteError(f"worker {name} on {host}: {error}") from error
            del self._sees_store[job]
            return Report(name, address, host, error.outcomes, mismatch)

    def seal(self) -> None:
        """Seal what is finished, and free the networks."""
        self.stopping = False
        for tools in self._tools.values():
            tools.writer.__exit__(None, None, None)
            tools.extractor.close()
        self._tools.clear()
        self._sees_store.clear()

    def _store_mismatch(self, job: JobSettings) -> str:
        if self._sees_store.get(job):
            return ""
        mismatch = job.marker.mismatch(0.0 if job in self._sees_store else MARKER_VISIBLE)
        self._sees_store[job] = not mismatch
        return mismatch

    def _tools_of(self, job: JobSettings) -> _Tools:
        """Return one pair of networks and one writer for each job."""
        if job not in self._tools:
            # of several threads, each takes a part of a sum, and values would differ
            torch.set_num_threads(1)
            recipe = Recipe.from_json(job.recipe)
            extractor = job.make(recipe, _own_device(job.device), job.memory_bytes)
            self._tools[job] = _Tools(extractor, Writer(job.store, recipe))
        return self._tools[job]

    def _outcomes(self, batch: list[Task], readable: set[Path], job: JobSettings) -> list[Outcome]:
        outcomes: list[Outcome] = []
        tasks = []
        for task in batch:
            hidden = [
                f"{path} ({why})"
                for path in task.files
                if path in readable and (why := unreadable(path))
            ]
            if hidden:
                outcomes.append(Outcome(task.clip_id, unreadable=hidden[0]))
            else:
                tasks.append(task)
        try:
            tools = self._tools_of(job)
            before = time.monotonic()
            for task, result in tools.extractor.stream(self._until_stopped(tasks)):
                if isinstance(result, ClipError):
                    outcome = Outcome(task.clip_id, error=str(result))
                else:
                    outcome = _store(tools.writer, task.clip_id, result, job.store)
                now = time.monotonic()
                outcomes.append(replace(outcome, seconds=now - before))
                before = now
        except WriteError as error:
            raise _WriteFailed(error, outcomes) from error
        return outcomes

    def _until_stopped(self, batch: list[Task]) -> Iterator[Task]:
        for task in batch:
            if self.stopping:
                return
            yield task


WORKER = Worker()  # what this process keeps from batch to batch


def _own_device(device: str) -> str:
    """Return one GPU of several: the workers of a job are numbered at the end of their names."""
    number = str(get_worker().name).rpartition("-")[2]
    if device in ("auto", "cuda") and torch.cuda.device_count() > 1 and number.isdigit():
        return f"cuda:{int(number) % torch.cuda.device_count()}"
    return device


def _store(writer: Writer, clip_id: str, features: Features, store: Path) -> Outcome:
    """Add a clip to the store; wait for a folder that is away.

    Raises:
        WriteError: the store cannot be written; no other clip could be either.
    """
    counts = RowCounts({name: int(valid.sum()) for name, valid in features.valid.items()})
    if isinstance(features, Extracted):
        counts = RowCounts(features.rows, features.not_finite, features.broken)
    while True:
        try:
            file = str(writer.add(clip_id, features).relative_to(store))
            return Outcome(clip_id, features.duration, counts=counts, file=file)
        except WriteError:
            if store.is_dir() or not wait_for_store(store):
                raise
        except FeatureError as error:
            return Outcome(clip_id, error=str(error), counts=counts)
