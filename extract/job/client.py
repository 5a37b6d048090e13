"""Stage 1 over a whole manifest: clips go to Dask workers, sealed shards come out in the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import torch
from dask.distributed import CancelledError, Client, Future, KilledWorker, get_worker

from extract.cluster.cluster import (
    SILENCE,
    Cluster,
    ClusterError,
    NotStartedError,
    Versions,
    other_versions,
    versions,
)
from extract.cluster.monitor import Lookout
from extract.decoding.media import ClipError, footage
from extract.decoding.reader import MEMORY_BYTES
from extract.extractor import Extractor
from extract.finite import MOST, Extracted, NotFiniteError, Tally
from extract.job.batching import (
    MOST_FOOTAGE,
    MOST_FOOTAGE_GPU,
    Failure,
    Task,
    add_failure,
    batches,
    read_failures,
    stamp,
    write_failures,
)
from extract.job.interrupt import Stopping, first_interrupt
from extract.job.timings import add_timing
from extract.job.witness import PATIENCE, Mark, Witness, machine, unseen
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
NAMED = 3  # workers that a message names
GONE = 300.0  # seconds that a store's folder may be away, as network folders are at times
AGAIN = 2.0  # seconds between two looks for it

FOUND = 60.0  # seconds until this machine must find in the store what a worker has put there
SHARE = (
    "The store and the videos must be on disks that this machine and all workers see at the same "
    "paths: mount them there (or give --root, or another folder for the store), and run the same "
    "command again"
)

Make = Callable[[Recipe, str, int], Any]  # makes what has `Extractor.stream`


class Payload(NamedTuple):
    """What a worker must know beside the clips; equal in each batch.

    Attributes:
        recipe: as JSON.
        mark: of the job, in the store.
        made_by: the versions of this program that the job has.
    """

    recipe: str
    store: Path
    mark: Mark
    device: str
    memory_bytes: int
    make: Make
    made_by: Versions


class Counts(NamedTuple):
    """A clip's rows by stream; see `Extracted`."""

    rows: dict[str, int]
    not_finite: dict[str, int]
    broken: dict[str, int]


NOTHING = Counts({}, {}, {})


class Outcome(NamedTuple):
    """What became of one clip; failure is a value, so that one clip never stops the others."""

    clip_id: str
    footage: float  # seconds of video
    seconds: float  # since the clip before was finished
    error: str | None  # one line, or None
    counts: Counts = NOTHING
    file: str = ""  # in the store, where it is until it is sealed
    unseen: str = ""  # a file that only the client sees, and why; then nothing was tried


class Report(NamedTuple):
    """What a worker did with a batch."""

    worker: str
    outcomes: list[Outcome]  # of the clips that it came to
    address: str = ""
    machine: str = ""
    blind: str = ""  # what it has in the store's place; then it has done no more of the batch


@dataclass
class Summary:
    """What became of all clips."""

    extracted: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)  # in the store before
    damaged: list[str] = field(default_factory=list)  # shards that were taken out as damaged
    failed: dict[str, str] = field(default_factory=dict)  # clip id -> reason
    not_tried: list[str] = field(default_factory=list)  # of those, that failed in an earlier run
    left: list[str] = field(default_factory=list)  # not come to: it was interrupted
    blind: list[str] = field(default_factory=list)  # workers that did not see a file, or the store
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
    say: Callable[[str], None] = lambda text: None,
    on_failure: Callable[[str, str], None] = lambda clip_id, reason: None,
) -> Summary:
    """Extract every clip that the store does not hold yet, or holds damaged.

    What the store holds is verified first, every byte of it. Interrupted or killed at any moment,
    the same call goes on where it stopped: a finished clip is never done twice, and nothing
    half-written is ever read. At the first Ctrl-C, and at SIGTERM, the clips in work are finished,
    at the second they are not. A clip counts when this machine finds it in the store. What a worker
    does not see and this machine does is tried on another one, and is no failure of the clip.

    Args:
        tasks: the clips.
        store: folder of the store; made if absent.
        recipe: of the features; a store of another recipe is refused.
        cluster: where to work; processes on this machine if None.
        retry_failed: try also the clips that failed in earlier runs and whose file is the same.
        memory_bytes: that reading a clip may take before it fails.
        progress: called with (seconds of footage done, seconds of footage in all).
        make: makes the extractor of a worker.
        say: told in a sentence what is done now, and what goes wrong on the way; from any thread.
        on_failure: called with (clip id, reason) for each clip that fails now.

    Raises:
        FeatureError: the store has another recipe, or cannot be used.
        WriteError: it cannot be written; what is finished stays.
        NotFiniteError: more than 1 % of the rows are no finite numbers, by the networks' fault;
            what is finished stays.
        ClusterError: the cluster cannot be had, its workers do not see the store or some of the
            videos, or have another version of this program; what is finished stays.
    """
    started = time.monotonic()
    create(store, recipe)
    _refused_before(store, recipe)
    recover(store)
    if any(store.glob("[!.]*.h5")):
        say(f"verifying what is in {store}")
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
        trouble: ClusterError | None = None
        try:
            with first_interrupt(say) as stopping, Witness(store) as witness:
                say(where.beginning(len(todo)))
                with where.client(len(todo), stopping.is_set) as client:
                    job = _Job(client, where, store, recipe, summary, memory_bytes, progress, make)
                    job.witness, job.say, job.on_failure = witness, say, on_failure
                    trouble = job.run(todo, stopping)
                    write_failures(store, (failures | job.failures).values())
        except NotStartedError:
            summary.left = [task.clip_id for task in todo]
        finally:
            recover(store)  # what workers that died, or were stopped, had finished
        if lost := _not_found(store, dict.fromkeys(summary.extracted, "")):
            raise WriteError(
                f"{store}: {len(lost)} clips that workers had finished ({min(lost)} is one) are "
                "not in it, or not sealed yet by workers that do not answer. Run the same command "
                "again: what is missing is done again"
            )
        if trouble:
            _log(store, _last_words(summary))
            raise trouble
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
        self.recipe, self.memory_bytes, self.make = recipe.to_json(), memory_bytes, make
        self.witness: Witness
        self.stopping = Stopping()
        self.say: Callable[[str], None] = lambda text: None
        self.on_failure: Callable[[str, str], None] = lambda clip_id, reason: None
        self.fingerprint = recipe.fingerprint
        self.rows_per_second = len(recipe.streams) / recipe.snippet_seconds
        self.tally = Tally(0)
        self.failures: dict[str, Failure] = {}
        self.attempts: dict[str, int] = {}
        self.times: list[tuple[str, float]] = []
        self.done = self.total = 0.0
        self.waiting: list[list[Task]] = []
        self.running: dict[Future, list[Task]] = {}
        self.only_on: dict[Future, set[str]] = {}  # workers' addresses, where not all may do it
        self.ended: SimpleQueue[Future] = SimpleQueue()
        self.aside: list[list[Task]] = []  # what no worker that is there sees the files of
        self.hidden_from: dict[str, set[str]] = {}  # clip -> addresses of workers
        self.blind: dict[str, str] = {}  # address of a worker -> the first thing it does not see
        self.last_hidden = 0.0
        self.lookout = Lookout(cluster, client)
        self.looked = time.monotonic()

    def run(self, tasks: Sequence[Task], stopping: Stopping) -> ClusterError | None:
        """Do all that can be done; return the error of workers that could not do the rest."""
        self.stopping = stopping
        self.payload = Payload(
            self.recipe,
            self.store,
            self.witness.mark,
            self.cluster.worker_device,
            self.memory_bytes,
            self.make,
            versions(),
        )
        durations = self._durations(tasks)
        self.lengths = {t.clip_id: d for t, d in zip(tasks, durations, strict=True)}
        self.total = sum(durations)
        self.tally = Tally(self.total * self.rows_per_second)
        self._show()
        most = MOST_FOOTAGE_GPU if self.cluster.on_gpus else MOST_FOOTAGE
        self.waiting = batches(tasks, durations, self.cluster.processes, most)[::-1]
        stopping.act = lambda: self.client.run(_stop)
        try:
            self._work()
        finally:
            stopping.act = None
        self.client.run(_seal)
        self.summary.slowest = sorted(self.times, key=lambda row: -row[1])[:SLOWEST]
        known = {*self.summary.extracted, *self.summary.failed}
        self.summary.left = [task.clip_id for task in tasks if task.clip_id not in known]
        self._judge(over=not self.summary.left)
        self.summary.blind = list(self.blind.values())
        undone = sum(map(len, self.aside))
        if not undone:
            return None
        return ClusterError(
            f"{'; '.join(self.summary.blind[:NAMED])}"
            + (f" (and {len(self.blind) - NAMED} more)" if len(self.blind) > NAMED else "")
            + f". So {undone} of {len(tasks)} clips are not extracted, and "
            f"{len(self.summary.extracted)} are. {SHARE}"
        )

    def _work(self) -> None:
        while self.waiting or self.running or self.aside:
            while not self.stopping.is_set() and self.waiting and len(self.running) < self._room():
                self._submit(self.waiting.pop())
            if not self.running and (self.stopping.is_set() or not self._may_come()):
                break
            with suppress(Empty):
                future = self.ended.get(timeout=LOOK)
                batch = self.running.pop(future, None)  # none if it was taken back
                if batch is not None:
                    self._take(future, batch)
            if self.stopping.is_set() and not self.lookout.workers():
                break  # nobody will finish what is in work
            self._look()

    def _submit(self, batch: list[Task]) -> None:
        """Give a batch to a worker: not to one that has said that it does not see its files."""
        avoided = self._avoided(batch)
        allowed = None
        if avoided:
            allowed = [worker for worker in self.lookout.addresses() if worker not in avoided]
            if not allowed:
                self.aside.append(batch)
                return
        paths = {path for task in batch for path in (task.video, task.audio) if path}
        seen = {path for path in paths if not unseen(path)}
        future = self.client.submit(
            _extract_batch, batch, seen, self.payload, pure=False, workers=allowed
        )
        self.running[future] = batch
        if allowed:
            self.only_on[future] = set(allowed)
        future.add_done_callback(self.ended.put)

    def _avoided(self, batch: list[Task]) -> set[str]:
        return set().union(*(self.hidden_from.get(task.clip_id, ()) for task in batch))

    def _may_come(self) -> bool:
        """Return whether a batch that no worker could do so far has yet hope of one."""
        if not self.aside:
            return bool(self.waiting)
        few = len(self.lookout.workers()) < self.cluster.processes
        return self.cluster.queued and few and time.monotonic() - self.last_hidden < SILENCE

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
                if self.stopping.is_set():
                    return [0.0] * len(videos)  # nothing is begun any more
                self._look()

    def _look(self) -> None:
        """Look after the workers, at times."""
        if time.monotonic() - self.looked > LOOK:
            for job in self.lookout.look():
                _log(self.store, f"job {job} has ended; another one is asked for")
            self._look_after_aside()
            self.witness.keep_alive()
            self.looked = time.monotonic()

    def _look_after_aside(self) -> None:
        """Let new workers have what the others could not do, and take back what nobody has."""
        if not (self.aside or self.only_on):
            return
        there = set(self.lookout.addresses())
        aside, self.aside = self.aside, []
        for batch in aside:
            (self.waiting if there - self._avoided(batch) else self.aside).append(batch)
        for future, workers in list(self.only_on.items()):
            if future not in self.running:
                del self.only_on[future]
            elif not workers & there:  # all are gone that could do it
                del self.only_on[future]
                self.waiting.append(self.running.pop(future))
                future.cancel()

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
        except OSError:  # the way to it is cut
            if future.status == "error":  # that is what the task raised
                raise
        future.release()
        if report is None:
            self._after_death(batch)
        else:
            self._count(batch, report)

    def _count(self, batch: list[Task], report: Report) -> None:
        self.lookout.worked(report.worker)
        tasks = {task.clip_id: task for task in batch}
        tried = [outcome for outcome in report.outcomes if not outcome.unseen]
        lost = _not_found(self.store, {o.clip_id: o.file for o in tried if o.error is None})
        for outcome in tried:
            if outcome.clip_id in lost:
                continue
            if outcome.error is None:
                self._extracted(outcome.clip_id, outcome.footage)
                self.times.append((outcome.clip_id, outcome.seconds))
                self._weigh(outcome)
            else:
                self._failed(tasks[outcome.clip_id], outcome.error, "read")
        self._hidden(report, tasks, lost)
        video = sum(outcome.footage for outcome in report.outcomes)
        seconds = sum(outcome.seconds for outcome in report.outcomes)
        failed = sum(outcome.error is not None for outcome in report.outcomes)
        _log(
            self.store,
            f"worker {report.worker}: {len(report.outcomes)} of {len(batch)} clips, {failed} "
            f"failed, {video:.1f} s of video in {seconds:.1f} s",
        )
        with suppress(OSError):
            add_timing(self.store, video, seconds)
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
            _log(self.store, f"{REFUSED} {self.fingerprint}: {why}")
            raise _refusal(self.store, why)

    def _hidden(self, report: Report, tasks: dict[str, Task], lost: Collection[str]) -> None:
        """Give back to other workers what one could not do, as it sees other disks than we do."""
        back = {o.clip_id: f"it does not see {o.unseen}" for o in report.outcomes if o.unseen}
        for clip_id in list(back):
            task = tasks[clip_id]
            if any(unseen(path) for path in (task.video, task.audio) if path):
                del back[clip_id]  # it has been taken away meanwhile, from this machine too
                self.waiting.append([task])
        if lost:
            back |= dict.fromkeys(
                lost, f"it has put clips into {self.store} that are not found there: {min(lost)}"
            )
        if report.blind:
            self._wait_for_mark()
            done = {outcome.clip_id for outcome in report.outcomes}
            why = f"it does not see the store {self.store} ({report.blind})"
            back |= {clip_id: why for clip_id in tasks if clip_id not in done}
        if not back:
            return
        self.last_hidden = time.monotonic()
        if report.address not in self.blind:
            first = next(iter(back.values()))
            where = f" on {report.machine}" if report.machine else ""
            said = f"worker {report.worker}{where}: {first}; this machine does"
            self.blind[report.address] = said
            _log(self.store, said)
            self.say(f"{said}. Its clips are tried on other workers")
        by_avoided: dict[frozenset[str], list[Task]] = {}
        for clip_id in back:
            avoided = self.hidden_from.setdefault(clip_id, set())
            avoided.add(report.address)
            by_avoided.setdefault(frozenset(avoided), []).append(tasks[clip_id])
        self.waiting += by_avoided.values()

    def _wait_for_mark(self) -> None:
        """Wait until this machine sees its own mark, which a worker does not see.

        Raises:
            WriteError: it does not.
        """
        until = time.monotonic() + GONE
        while why := self.witness.mark.unseen():
            if (self.store / RECIPE_FILE).exists() or time.monotonic() > until:
                raise WriteError(
                    f"{self.store}: this job's own files there are gone ({why}); was the folder or "
                    "its disk taken away, or were hidden files deleted? What was sealed is safe: "
                    "run the same command again"
                )

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
        self.on_failure(task.clip_id, reason)
        attempts = self.attempts.get(task.clip_id, 1)
        failure = Failure(task.clip_id, reason, stage, attempts, stamp(task.video))
        self.failures[task.clip_id] = failure
        with suppress(OSError):  # the folder may be away; at the end all are written
            add_failure(self.store, failure)
        self.done += self.lengths[task.clip_id]

    def _show(self) -> None:
        if self.progress:
            self.progress(self.done, self.total)


def _not_found(store: Path, clips: dict[str, str]) -> set[str]:
    """Return which clips this machine does not find in a store, though they were put there.

    A network file system shows what another machine has written after some seconds, and a folder
    may be away for a while.

    Args:
        clips: id -> the file in the store that is the clip's until it is sealed.
    """
    lost = {clip_id for clip_id, file in clips.items() if not (file and (store / file).exists())}
    began = time.monotonic()
    while lost:
        there = (store / RECIPE_FILE).exists()
        if there:
            lost -= set(Store(store))  # sealed since
        if not lost or time.monotonic() - began > (FOUND if there else GONE):
            break
        time.sleep(AGAIN)
        lost = {clip_id for clip_id in lost if not (store / (clips[clip_id] or ".")).is_file()}
    return lost


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
_seeing: set[Payload] = set()  # the job whose store this worker has seen
_blind_in: set[Payload] = set()  # the job whose store it has looked for in vain
_stopping = [False]


@cache  # one pair of networks and one writer for each worker process and job
def _tools(payload: Payload) -> _Tools:
    torch.set_num_threads(1)  # of several, each takes a part of a sum, and values would differ
    recipe = Recipe.from_json(payload.recipe)
    extractor = payload.make(recipe, _own_device(payload.device), payload.memory_bytes)
    tools = _Tools(extractor, Writer(payload.store, recipe))
    _in_use.append(tools)
    return tools


def _own_device(device: str) -> str:
    """Return one GPU of several: the workers of a job are numbered at the end of their names."""
    number = str(get_worker().name).rpartition("-")[2]
    if device in ("auto", "cuda") and torch.cuda.device_count() > 1 and number.isdigit():
        return f"cuda:{int(number) % torch.cuda.device_count()}"
    return device


def _extract_batch(batch: list[Task], seen: set[Path], payload: Payload) -> Report:
    """Extract clips.

    Args:
        batch: the clips.
        seen: those of their files that the client sees.
        payload: the job.
    """
    me = get_worker()
    name, outcomes, blind = str(me.name), list[Outcome](), ""
    if differing := other_versions(versions(), payload.made_by):
        raise ClusterError(f"worker {name} on {machine()} has {differing}")
    try:
        # who sees another disk there would make a store of its own
        if payload not in _seeing:
            patience = 0.0 if payload in _blind_in else PATIENCE
            blind = payload.mark.unseen(patience)
            (_blind_in if blind else _seeing).add(payload)
        if not blind:
            outcomes += _outcomes(batch, seen, payload)
    except _Lost as error:
        outcomes += error.outcomes
        blind = payload.mark.unseen()
        if not blind:
            raise WriteError(f"worker {name} on {machine()}: {error}") from error
        _seeing.discard(payload)
    return Report(name, outcomes, me.address, machine(), blind)


class _Lost(Exception):
    """The store cannot be written any more, after some clips."""

    def __init__(self, error: WriteError, outcomes: list[Outcome]) -> None:
        super().__init__(str(error))
        self.outcomes = outcomes


def _outcomes(batch: list[Task], seen: set[Path], payload: Payload) -> list[Outcome]:
    outcomes: list[Outcome] = []
    tasks = []
    for task in batch:
        hidden = [
            f"{path} ({why})"
            for path in (task.video, task.audio)
            if path and path in seen and (why := unseen(path))
        ]
        if hidden:
            outcomes.append(Outcome(task.clip_id, 0.0, 0.0, None, unseen=hidden[0]))
        else:
            tasks.append(task)
    try:
        tools = _tools(payload)
        before = time.monotonic()
        for task, result in tools.extractor.stream(_until_stopped(tasks)):
            error, file, length, counts = None, "", 0.0, NOTHING
            if isinstance(result, ClipError):
                error = str(result)
            else:
                length, counts = result.duration, _counts(result)
                file, error = _keep(tools.writer, task.clip_id, result, payload)
            now = time.monotonic()
            took, before = now - before, now
            length = length if error is None else 0.0
            outcomes.append(Outcome(task.clip_id, length, took, error, counts, file))
    except WriteError as error:
        raise _Lost(error, outcomes) from error
    return outcomes


def _counts(result: Features) -> Counts:
    if isinstance(result, Extracted):
        return Counts(result.rows, result.not_finite, result.broken)
    return Counts({name: int(valid.sum()) for name, valid in result.valid.items()}, {}, {})


def _until_stopped(batch: list[Task]) -> Any:
    for task in batch:
        if _stopping[0]:
            return
        yield task


def _keep(
    writer: Writer, clip_id: str, result: Features, payload: Payload
) -> tuple[str, str | None]:
    """Add a clip to the store; wait for a folder that is away.

    Returns:
        (the file in the store where it is until it is sealed, what is wrong with it).
    """
    while True:
        try:
            file = writer.add(clip_id, result)
            return str(file.relative_to(payload.store)), None
        except WriteError:
            if payload.store.is_dir() or not _wait_for(payload.store):
                raise  # no other clip could be written either
        except FeatureError as error:
            return "", str(error)


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
    _seeing.clear()
    _blind_in.clear()
    _tools.cache_clear()
