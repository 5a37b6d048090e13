"""Stage 1 over a whole manifest: clips go to Dask workers, sealed shards come out in the store."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import torch
from dask.distributed import CancelledError, Client, Future, KilledWorker, get_worker

from extract.cluster import Cluster
from extract.decode import ClipError, footage
from extract.extractor import Extractor
from extract.finite import MOST, Extracted, NotFiniteError, Tally
from extract.lookout import Lookout
from extract.plan import (
    Failure,
    Task,
    add_failure,
    batches,
    read_failures,
    stamp,
    write_failures,
)
from extract.reader import MEMORY_BYTES
from features import (
    RECIPE_FILE,
    FeatureError,
    Features,
    Recipe,
    Store,
    WriteError,
    Writer,
    create,
    recover,
    repair,
    verify,
)

LOG = "extract.log"
REFUSED = "refused recipe"  # in the log, before a fingerprint
LOOK = 10.0  # seconds between two looks after the workers
AHEAD = 3  # batches with the scheduler for each process; the rest waits here
PROBED = 200  # files that one task looks into for their length
TRIES = 3  # of a clip whose worker dies
SLOWEST = 5  # clips that the summary names
GONE = 300.0  # seconds that a store's folder may be away, as network folders are at times
AGAIN = 2.0  # seconds between two looks for it

Make = Callable[[Recipe, str, int], Any]  # makes what has `Extractor.stream`
Payload = tuple[str, Path, str, int, int, Make]  # what `_tools` takes; equal in each batch


class Counts(NamedTuple):
    """A clip's rows by stream; see `Extracted`."""

    rows: dict[str, int]
    not_finite: dict[str, int]
    broken: dict[str, int]


class Outcome(NamedTuple):
    """What became of one clip; failure is a value, so that one clip never stops the others."""

    clip_id: str
    footage: float  # seconds of video
    seconds: float  # since the clip before was finished
    error: str | None  # one line, or None
    counts: Counts


class Report(NamedTuple):
    """What a worker did with a batch."""

    worker: str
    outcomes: list[Outcome]  # of the clips that it came to


@dataclass
class Summary:
    """What became of all clips."""

    extracted: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)  # in the store before
    damaged: list[str] = field(default_factory=list)  # shards that were taken out as damaged
    failed: dict[str, str] = field(default_factory=dict)  # clip id -> reason
    not_tried: list[str] = field(default_factory=list)  # of those, that failed in an earlier run
    left: list[str] = field(default_factory=list)  # not come to: it was interrupted
    footage: float = 0.0  # seconds of video extracted
    seconds: float = 0.0  # wall time
    slowest: list[tuple[str, float]] = field(default_factory=list)  # (clip id, seconds)
    rows: int = 0  # of all streams, where there was something to see or hear
    not_finite: int = 0  # of those, rows that are no finite numbers, and so invalid
    not_finite_clips: dict[str, float] = field(default_factory=dict)  # with many -> their share


def extract(
    tasks: Sequence[Task],
    store: Path,
    recipe: Recipe,
    *,
    cluster: Cluster | None = None,
    retry_failed: bool = False,
    memory_bytes: int = MEMORY_BYTES,
    progress: Callable[[float, float], None] | None = None,
    make: Make = Extractor,
) -> Summary:
    """Extract every clip that the store does not hold yet, or holds damaged.

    What the store holds is verified first, every byte of it. Interrupted or killed at any moment,
    the same call goes on where it stopped: a finished clip is never done twice, and nothing
    half-written is ever read. At the first Ctrl-C the clips in work are finished, at the second
    they are not.

    Args:
        tasks: the clips.
        store: folder of the store; made if absent.
        recipe: of the features; a store of another recipe is refused.
        cluster: where to work; processes on this machine if None.
        retry_failed: try also the clips that failed in earlier runs and whose file is the same.
        memory_bytes: that reading a clip may take before it fails.
        progress: called with (seconds of footage done, seconds of footage in all).
        make: makes the extractor of a worker.

    Raises:
        FeatureError: the store has another recipe, or cannot be used.
        WriteError: it cannot be written; what is finished stays.
        NotFiniteError: more than 1 % of the rows are no finite numbers, by the networks' fault;
            what is finished stays.
        ClusterError: the cluster cannot be had.
    """
    started = time.monotonic()
    create(store, recipe)
    _refused_before(store, recipe)
    recover(store)
    _, damages = verify(store)
    repair(store, damages)
    held = set(Store(store))
    failures = {i: f for i, f in read_failures(store).items() if i not in held}
    summary = Summary(
        already=[task.clip_id for task in tasks if task.clip_id in held],
        damaged=[damage.shard.name for damage in damages],
    )
    todo = []
    for task in tasks:
        failure = failures.get(task.clip_id)
        if failure and not retry_failed and failure.file == stamp(task.video):
            summary.failed[task.clip_id] = failure.reason
            summary.not_tried.append(task.clip_id)
        elif task.clip_id not in held:
            failures.pop(task.clip_id, None)
            todo.append(task)
    write_failures(store, failures.values())
    if todo:
        where = cluster or Cluster()
        try:
            with where.client(len(todo)) as client:
                job = _Job(client, where, store, recipe, summary, memory_bytes, progress, make)
                job.run(todo)
                write_failures(store, (failures | job.failures).values())
        finally:
            recover(store)  # what workers that died, or were stopped, had finished
    summary.seconds = time.monotonic() - started
    _log(store, _last_words(summary))
    return summary


class _Job:
    """The client's side: gives out batches, and takes stock of what comes back."""

    def __init__(
        self,
        client: Client,
        cluster: Cluster,
        store: Path,
        recipe: Recipe,
        summary: Summary,
        memory_bytes: int,
        progress: Callable[[float, float], None] | None,
        make: Make,
    ) -> None:
        self.client = client
        self.cluster = cluster
        self.store = store.resolve()
        self.summary = summary
        self.progress = progress
        threads = max(1, (os.cpu_count() or 1) // cluster.processes)
        if cluster.scheduler != "local":
            threads = 1
        self.recipe = recipe
        self.tally = Tally(0)
        self.payload: Payload = (
            recipe.to_json(),
            self.store,
            cluster.device,
            threads,
            memory_bytes,
            make,
        )
        self.failures: dict[str, Failure] = {}
        self.attempts: dict[str, int] = {}
        self.times: list[tuple[str, float]] = []
        self.done = self.total = 0.0
        self.lookout = Lookout(cluster, client)
        self.looked = time.monotonic()

    def run(self, tasks: Sequence[Task]) -> None:
        durations = self._durations(tasks)
        self.lengths = {t.clip_id: d for t, d in zip(tasks, durations, strict=True)}
        self.total = sum(durations)
        step, streams = self.recipe.snippet_seconds, len(self.recipe.streams)
        self.tally = Tally(self.total / step * streams)
        self._show()
        self.waiting = batches(tasks, durations, self.cluster.processes)[::-1]
        self.running: dict[Future, list[Task]] = {}
        ended: SimpleQueue[Future] = SimpleQueue()
        with _first_interrupt(lambda: self.client.run(_stop)) as stopping:
            while self.waiting or self.running:
                while not stopping.is_set() and self.waiting and len(self.running) < self._room():
                    batch = self.waiting.pop()
                    future = self.client.submit(_extract_batch, batch, self.payload, pure=False)
                    self.running[future] = batch
                    future.add_done_callback(ended.put)
                if not self.running:
                    break
                with suppress(Empty):
                    future = ended.get(timeout=LOOK)
                    self._take(future, self.running.pop(future))
                if stopping.is_set() and not self.lookout.workers():
                    break  # nobody will finish what is in work
                self._look()
        self.client.run(_seal)
        self.summary.slowest = sorted(self.times, key=lambda row: -row[1])[:SLOWEST]
        known = {*self.summary.extracted, *self.summary.failed}
        self.summary.left = [task.clip_id for task in tasks if task.clip_id not in known]
        self._judge(over=not self.summary.left)

    def _durations(self, tasks: Sequence[Task]) -> list[float]:
        """Return each clip's length: the manifest's, or what the workers find in the file."""
        unknown = [task.video for task in tasks if task.duration is None]
        chunks = [unknown[n : n + PROBED] for n in range(0, len(unknown), PROBED)]
        futures = self.client.map(_look, chunks, pure=False)
        found = chain.from_iterable(map(self._lengths, futures, chunks))
        return [next(found) if task.duration is None else task.duration for task in tasks]

    def _lengths(self, future: Future, videos: list[Path]) -> list[float]:
        while True:
            try:
                lengths: list[float] = future.result(timeout=LOOK)
                return lengths
            except KilledWorker:  # by one of them; which one, their extraction will show
                return [0.0] * len(videos)
            except TimeoutError:
                self._look()

    def _look(self) -> None:
        """Look after the workers, at times."""
        if time.monotonic() - self.looked > LOOK:
            for job in self.lookout.look():
                _log(self.store, f"job {job} has ended; another one is asked for")
            self.looked = time.monotonic()

    def _room(self) -> int:
        """Return how many batches may be with the scheduler: more as more workers come."""
        workers = len(self.lookout.workers())
        return AHEAD * max(1, workers, min(self.cluster.processes, 64))

    def _take(self, future: Future, batch: list[Task]) -> None:
        report: Report | None = None
        try:
            if future.status != "lost":  # its worker died after the batch, before this call
                report = future.result(timeout=LOOK)
        except CancelledError as error:
            raise self.lookout.gone("the scheduler") from error
        except (KilledWorker, TimeoutError):  # the latter: lost during this call
            pass
        future.release()
        if report is None:
            self._after_death(batch)
        else:
            self._count(batch, report)

    def _count(self, batch: list[Task], report: Report) -> None:
        self.lookout.worked(report.worker)
        tasks = {task.clip_id: task for task in batch}
        for outcome in report.outcomes:
            if outcome.error is None:
                self._extracted(outcome.clip_id, outcome.footage)
                self.times.append((outcome.clip_id, outcome.seconds))
                self._weigh(outcome)
            else:
                self._failed(tasks[outcome.clip_id], outcome.error, "read")
        video = sum(outcome.footage for outcome in report.outcomes)
        seconds = sum(outcome.seconds for outcome in report.outcomes)
        failed = sum(outcome.error is not None for outcome in report.outcomes)
        _log(
            self.store,
            f"worker {report.worker}: {len(report.outcomes)} of {len(batch)} clips, {failed} "
            f"failed, {video:.1f} s of video in {seconds:.1f} s",
        )
        self._show()
        self._judge(over=False)

    def _weigh(self, outcome: Outcome) -> None:
        """Count the rows of a clip that are no finite numbers."""
        counts = outcome.counts
        rows = sum(counts.rows.values())
        lost = sum(counts.broken.values()) + sum(counts.not_finite.values())
        self.summary.rows += rows
        self.summary.not_finite += lost
        self.tally.add(counts.rows, counts.not_finite)
        if lost:
            _log(self.store, f"clip {outcome.clip_id}: {lost} of {rows} rows are not finite")
        if lost > MOST * rows:
            self.summary.not_finite_clips[outcome.clip_id] = lost / rows

    def _judge(self, over: bool) -> None:
        """Refuse a recipe under which too many rows are no finite numbers."""
        if why := self.tally.verdict(over):
            _log(self.store, f"{REFUSED} {self.recipe.fingerprint}: {why}")
            raise _refusal(self.store, why)

    def _after_death(self, batch: list[Task]) -> None:
        """Keep what the dead worker had finished; try the rest again, in the end clip by clip."""
        recover(self.store)
        held = Store(self.store)
        rest = []
        for task in batch:
            if task.clip_id in held:
                self._extracted(task.clip_id, held[task.clip_id].duration)
                continue
            tried = self.attempts[task.clip_id] = self.attempts.get(task.clip_id, 0) + 1
            if tried == TRIES:
                self._failed(
                    task, f"the worker died while it had this clip, {TRIES} times", "worker"
                )
            else:
                rest.append(task)
        _log(self.store, f"a worker died: {len(rest)} of its {len(batch)} clips to be tried again")
        again = [rest] if len(rest) < len(batch) else [[task] for task in rest]
        self.waiting += [some for some in again if some]
        self._show()

    def _extracted(self, clip_id: str, seconds: float) -> None:
        self.summary.extracted.append(clip_id)
        self.summary.footage += seconds
        self.done += self.lengths[clip_id]

    def _failed(self, task: Task, reason: str, stage: str) -> None:
        self.summary.failed[task.clip_id] = reason
        attempts = self.attempts.get(task.clip_id, 1)
        failure = Failure(task.clip_id, reason, stage, attempts, stamp(task.video))
        self.failures[task.clip_id] = failure
        with suppress(OSError):  # the folder may be away; at the end all are written
            add_failure(self.store, failure)
        self.done += self.lengths[task.clip_id]

    def _show(self) -> None:
        if self.progress:
            self.progress(self.done, self.total)


@contextmanager
def _first_interrupt(act: Callable[[], object]) -> Iterator[threading.Event]:
    """Yield an event that is set, and call `act`, at the first Ctrl-C; later ones are as usual.

    An exception at any point could lose the report of a batch that has just come back.
    """
    stopping, over = threading.Event(), threading.Event()

    def note(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        stopping.set()

    def wait() -> None:
        stopping.wait()
        if not over.is_set():
            act()  # takes time, which a signal's handler must not

    if threading.current_thread() is not threading.main_thread():  # gets no signals
        yield stopping
        return
    before = signal.signal(signal.SIGINT, note)
    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, before)
        if not stopping.is_set():
            over.set()
            stopping.set()
        waiting.join(10)


def _refusal(store: Path, why: str) -> NotFiniteError:
    return NotFiniteError(
        f"recipe refused: {why}. Take --precision fp32, another network or other --layers, or a "
        f"checkpoint that is not damaged, in a new store; {store} can be deleted"
    )


def _refused_before(store: Path, recipe: Recipe) -> None:
    """Refuse again what was refused when it was tried: its finished clips are in the store."""
    with suppress(OSError):
        for line in (store / LOG).read_text(encoding="utf-8").splitlines():
            _, found, why = line.partition(f" {REFUSED} {recipe.fingerprint}: ")
            if found:
                raise _refusal(store, why)


def _last_words(summary: Summary) -> str:
    slow = ", ".join(f"{clip_id} {seconds:.1f} s" for clip_id, seconds in summary.slowest)
    return (
        f"end: {len(summary.extracted)} extracted, {len(summary.already)} there before, "
        f"{len(summary.failed)} failed, {len(summary.left)} left; {summary.footage:.0f} s of video "
        f"in {summary.seconds:.0f} s"
        + (
            f"; {summary.not_finite} of {summary.rows} rows not finite"
            if summary.not_finite
            else ""
        )
        + (f"; slowest: {slow}" if slow else "")
    )


def _log(store: Path, line: str) -> None:
    with suppress(OSError), open(store / LOG, "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


# on the workers from here on


class _Tools(NamedTuple):
    extractor: Any
    writer: Writer


_in_use: list[_Tools] = []
_stopping = [False]


@cache  # one pair of networks and one writer for each worker process and job
def _tools(
    recipe_json: str, store: Path, device: str, threads: int, memory_bytes: int, make: Make
) -> _Tools:
    torch.set_num_threads(threads)
    recipe = Recipe.from_json(recipe_json)
    _wait_for(store)  # or the writer would make a new one
    tools = _Tools(make(recipe, _own_device(device), memory_bytes), Writer(store, recipe))
    _in_use.append(tools)
    return tools


def _own_device(device: str) -> str:
    """Return one GPU of several: the workers of a job are numbered at the end of their names."""
    number = str(get_worker().name).rpartition("-")[2]
    if device in ("auto", "cuda") and torch.cuda.device_count() > 1 and number.isdigit():
        return f"cuda:{int(number) % torch.cuda.device_count()}"
    return device


def _extract_batch(batch: list[Task], payload: Payload) -> Report:
    tools = _tools(*payload)
    outcomes: list[Outcome] = []
    before = time.monotonic()
    for task, result in tools.extractor.stream(_until_stopped(batch)):
        error = str(result) if isinstance(result, ClipError) else None
        length = 0.0
        counts = Counts({}, {}, {})
        if error is None:
            counts = _counts(result)
            length = result.duration
            error = _keep(tools.writer, task.clip_id, result, payload[1])
        now = time.monotonic()
        outcomes.append(
            Outcome(task.clip_id, length if error is None else 0.0, now - before, error, counts)
        )
        before = now
    return Report(str(get_worker().name), outcomes)


def _counts(result: Features) -> Counts:
    if isinstance(result, Extracted):
        return Counts(result.rows, result.not_finite, result.broken)
    return Counts({name: int(valid.sum()) for name, valid in result.valid.items()}, {}, {})


def _until_stopped(batch: list[Task]) -> Any:
    for task in batch:
        if _stopping[0]:
            return
        yield task


def _keep(writer: Writer, clip_id: str, result: Features, store: Path) -> str | None:
    """Add a clip to the store; wait for a folder that is away. Return what is wrong with it."""
    while True:
        try:
            writer.add(clip_id, result)
            return None
        except WriteError:
            if store.is_dir() or not _wait_for(store):
                raise  # no other clip could be written either
        except FeatureError as error:
            return str(error)


def _wait_for(store: Path) -> bool:
    """Wait for a store whose folder is away; return whether it came back."""
    until = time.monotonic() + GONE
    while not (store / RECIPE_FILE).exists():
        if time.monotonic() > until:
            return False
        time.sleep(AGAIN)
    return True


def _look(videos: list[Path]) -> list[float]:
    return [footage(video) for video in videos]


def _stop() -> None:
    _stopping[0] = True


def _seal() -> None:
    _stopping[0] = False
    for tools in _in_use:
        tools.writer.__exit__(None, None, None)
        tools.extractor.close()
    _in_use.clear()
    _tools.cache_clear()
