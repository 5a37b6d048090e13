"""The client's side of a job: gives batches to the workers, and counts what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue

from dask.distributed import CancelledError, Client, Future, KilledWorker

from extract.cluster.cluster import SILENCE, Cluster, ClusterError
from extract.cluster.monitor import WorkerMonitor
from extract.finite import MOST, NotFiniteError, Tally
from extract.job import worker
from extract.job.batching import MOST_FOOTAGE, MOST_FOOTAGE_GPU, Task, batches
from extract.job.failures import Failure, add_failure, file_state
from extract.job.interrupt import StopRequest
from extract.job.log import log, log_refusal
from extract.job.shared_disk import STORE_AWAY, StoreMarker, missing_clips, unreadable
from extract.job.summary import Summary
from extract.job.worker import JobSettings, Outcome, Report
from features import RECIPE_FILE, Recipe, Store, WriteError, recover

CHECK_SECONDS = 10.0  # between two checks of the workers
QUEUED_BATCHES = 3  # with the scheduler for each process; the rest waits here
FILES_PER_PROBE = 200  # whose length one task reads
TRIES = 3  # of a clip whose worker dies
SLOWEST = 5  # clips that the summary names
NAMED = 3  # workers that a message names
SHARE = (
    "The store and the videos must be on disks that this machine and all workers see at the same "
    "paths: mount them there (or give --root, or another folder for the store), and run the same "
    "command again"
)


@dataclass(frozen=True)
class Callbacks:
    """Who is told what happens; see `extract.job.client.extract`."""

    progress: Callable[[float, float], None] | None = None
    say: Callable[[str], None] = lambda text: None
    on_failure: Callable[[str, str], None] = lambda clip_id, reason: None


class Dispatcher:
    """Gives out batches until every clip is done, has failed, or cannot be done.

    Args:
        client: of the cluster.
        cluster: where the workers are.
        settings: of the job.
        store_marker: the job's.
        summary: gets what becomes of the clips.
        callbacks: see there.
        stopping: whether the job is to end early.

    Attributes:
        failures: clip id -> failure.
    """

    def __init__(
        self,
        client: Client,
        cluster: Cluster,
        settings: JobSettings,
        store_marker: StoreMarker,
        summary: Summary,
        callbacks: Callbacks,
        stopping: StopRequest,
    ) -> None:
        self.client, self.cluster, self.settings = client, cluster, settings
        self.store = settings.store
        self.store_marker = store_marker
        self.summary, self.callbacks, self.stopping = summary, callbacks, stopping
        self.recipe = Recipe.from_json(settings.recipe)
        self.failures: dict[str, Failure] = {}
        self._tally = Tally(0)
        self._attempts: dict[str, int] = {}
        self._lengths: dict[str, float] = {}  # clip -> seconds
        self._times: list[tuple[str, float]] = []
        self._done = self._total = 0.0  # seconds of footage
        self._waiting: list[list[Task]] = []
        self._running: dict[Future, list[Task]] = {}
        self._finished: SimpleQueue[Future] = SimpleQueue()
        # workers may see other disks than this machine does; those are known by their addresses
        self._without_access: dict[str, set[str]] = {}  # clip -> workers that do not see its files
        self._access_problems: dict[str, str] = {}  # worker -> the first thing it does not see
        self._last_access_problem = 0.0
        self._deferred: list[list[Task]] = []  # batches whose files no present worker sees
        self._allowed: dict[Future, set[str]] = {}  # workers, where not all may do a batch
        self._monitor = WorkerMonitor(cluster, client)
        self._last_check = time.monotonic()

    def run(self, tasks: Sequence[Task]) -> ClusterError | None:
        """Do all that can be done; return the error of workers that could not do the rest.

        Raises:
            ClusterError: there are no workers, or some have another version of this program.
            NotFiniteError: too many rows are no finite numbers.
            WriteError: the store cannot be written.
        """
        durations = self._durations(tasks)
        self._lengths = {t.clip_id: d for t, d in zip(tasks, durations, strict=True)}
        self._total = sum(durations)
        rows_per_second = len(self.recipe.streams) / self.recipe.snippet_seconds
        self._tally = Tally(self._total * rows_per_second)
        self._show_progress()
        most = MOST_FOOTAGE_GPU if self.cluster.on_gpus else MOST_FOOTAGE
        self._waiting = batches(tasks, durations, self.cluster.processes, most)[::-1]
        self.stopping.on_stop = lambda: self.client.run(worker.stop)
        try:
            self._dispatch()
        finally:
            self.stopping.on_stop = None
        self.client.run(worker.seal)
        self.summary.slowest = sorted(self._times, key=lambda row: -row[1])[:SLOWEST]
        known = {*self.summary.extracted, *self.summary.failed}
        self.summary.left = [task.clip_id for task in tasks if task.clip_id not in known]
        self._refuse_not_finite(over=not self.summary.left)
        problems = self.summary.workers_without_access = list(self._access_problems.values())
        undone = sum(map(len, self._deferred))
        if not undone:
            return None
        more = f" (and {len(problems) - NAMED} more)" if len(problems) > NAMED else ""
        return ClusterError(
            f"{'; '.join(problems[:NAMED])}{more}. So {undone} of {len(tasks)} clips are not "
            f"extracted, and {len(self.summary.extracted)} are. {SHARE}"
        )

    def _dispatch(self) -> None:
        while self._waiting or self._running or self._deferred:
            while (
                not self.stopping.is_set()
                and self._waiting
                and len(self._running) < self._most_running()
            ):
                self._submit(self._waiting.pop())
            if not self._running and (self.stopping.is_set() or not self._more_can_be_done()):
                break
            with suppress(Empty):
                future = self._finished.get(timeout=CHECK_SECONDS)
                batch = self._running.pop(future, None)  # None if it was taken back
                if batch is not None:
                    self._collect(future, batch)
            if self.stopping.is_set() and not self._monitor.names():
                break  # there is no worker to finish what was begun
            self._check_workers()

    def _submit(self, batch: list[Task]) -> None:
        """Give a batch to a worker: to none that has reported that it does not see its files."""
        excluded = self._excluded_workers(batch)
        allowed = None
        if excluded:
            allowed = [address for address in self._monitor.addresses() if address not in excluded]
            if not allowed:
                self._deferred.append(batch)
                return
        paths = {path for task in batch for path in (task.video, task.audio) if path}
        readable = {path for path in paths if not unreadable(path)}
        future = self.client.submit(
            worker.extract_batch, batch, readable, self.settings, pure=False, workers=allowed
        )
        self._running[future] = batch
        if allowed:
            self._allowed[future] = set(allowed)
        future.add_done_callback(self._finished.put)

    def _most_running(self) -> int:
        """Return how many batches may be with the scheduler: more as more workers come."""
        workers = len(self._monitor.names())
        return QUEUED_BATCHES * max(1, workers, min(self.cluster.processes, 64))

    def _more_can_be_done(self) -> bool:
        """Return whether a batch waits, or one that is deferred may get a worker."""
        if not self._deferred:
            return bool(self._waiting)
        few = len(self._monitor.names()) < self.cluster.processes
        since = time.monotonic() - self._last_access_problem
        return self.cluster.queued and few and since < SILENCE

    def _excluded_workers(self, batch: list[Task]) -> set[str]:
        return set().union(*(self._without_access.get(task.clip_id, ()) for task in batch))

    def _durations(self, tasks: Sequence[Task]) -> list[float]:
        """Return each clip's length: the manifest's, or what the workers find in the file."""
        unknown = [task.video for task in tasks if task.duration is None]
        starts = range(0, len(unknown), FILES_PER_PROBE)
        chunks = [unknown[start : start + FILES_PER_PROBE] for start in starts]
        futures = self.client.map(worker.lengths, chunks, pure=False)
        found = chain.from_iterable(map(self._probed, futures, chunks))
        return [next(found) if task.duration is None else task.duration for task in tasks]

    def _probed(self, future: Future, videos: list[Path]) -> list[float]:
        while True:
            try:
                lengths: list[float] = future.result(timeout=CHECK_SECONDS)
                return lengths
            except KilledWorker:  # by one of them; which one, their extraction will show
                return [0.0] * len(videos)
            except TimeoutError:
                if self.stopping.is_set():
                    return [0.0] * len(videos)  # no clip is begun any more
                self._check_workers()

    def _check_workers(self) -> None:
        if time.monotonic() - self._last_check > CHECK_SECONDS:
            for job in self._monitor.check():
                log(self.store, f"job {job} has ended; another one is asked for")
            self._reassign()
            self.store_marker.keep_alive()
            self._last_check = time.monotonic()

    def _reassign(self) -> None:
        """Give deferred batches to new workers, and take back those whose workers are gone."""
        if not (self._deferred or self._allowed):
            return
        present = set(self._monitor.addresses())
        deferred, self._deferred = self._deferred, []
        for batch in deferred:
            possible = present - self._excluded_workers(batch)
            (self._waiting if possible else self._deferred).append(batch)
        for future, workers in list(self._allowed.items()):
            if future not in self._running:
                del self._allowed[future]
            elif not workers & present:
                del self._allowed[future]
                self._waiting.append(self._running.pop(future))
                future.cancel()

    def _collect(self, future: Future, batch: list[Task]) -> None:
        report: Report | None = None
        try:
            if future.status != "lost":  # its worker died after the batch, before this call
                report = future.result(timeout=CHECK_SECONDS)
        except CancelledError as error:
            raise self._monitor.unreachable("the scheduler") from error
        except (KilledWorker, TimeoutError):  # the latter: lost during this call
            pass
        except OSError:  # the connection is cut
            if future.status == "error":  # that is what the task raised
                raise
        future.release()
        if report is None:
            self._after_death(batch)
        else:
            self._count(batch, report)

    def _count(self, batch: list[Task], report: Report) -> None:
        self._monitor.note_progress(report.worker)
        tasks = {task.clip_id: task for task in batch}
        tried = [outcome for outcome in report.outcomes if not outcome.unreadable]
        files = {outcome.clip_id: outcome.file for outcome in tried if outcome.error is None}
        missing = missing_clips(self.store, files)
        for outcome in tried:
            if outcome.clip_id in missing:
                continue
            if outcome.error is None:
                self._extracted(outcome.clip_id, outcome.footage)
                self._times.append((outcome.clip_id, outcome.seconds))
                self._count_rows(outcome)
            else:
                self._failed(tasks[outcome.clip_id], outcome.error, "read")
        self._try_elsewhere(report, tasks, missing)
        video = sum(outcome.footage for outcome in report.outcomes)
        seconds = sum(outcome.seconds for outcome in report.outcomes)
        failed = sum(outcome.error is not None for outcome in report.outcomes)
        log(
            self.store,
            f"worker {report.worker}: {len(report.outcomes)} of {len(batch)} clips, {failed} "
            f"failed, {video:.1f} s of video in {seconds:.1f} s",
        )
        self._show_progress()
        self._refuse_not_finite(over=False)

    def _count_rows(self, outcome: Outcome) -> None:
        counts = outcome.counts
        rows = sum(counts.rows.values())
        lost = sum(counts.broken.values()) + sum(counts.not_finite.values())
        self.summary.rows += rows
        self.summary.not_finite += lost
        self._tally.add(counts.rows, counts.not_finite)
        if lost:
            log(self.store, f"clip {outcome.clip_id}: {lost} of {rows} rows are not finite")
        if lost > MOST * rows:
            self.summary.not_finite_clips[outcome.clip_id] = lost / rows

    def _refuse_not_finite(self, over: bool) -> None:
        """Refuse a recipe under which too many rows are no finite numbers."""
        if why := self._tally.verdict(over):
            log_refusal(self.store, self.recipe.fingerprint, why)
            raise refusal(self.store, why)

    def _try_elsewhere(
        self, report: Report, tasks: dict[str, Task], missing: Collection[str]
    ) -> None:
        """Give to other workers what one could not do, as it sees other disks than this machine.

        Args:
            report: the worker's.
            tasks: clip id -> task, of its batch.
            missing: clips that it finished, and that are not found in the store.
        """
        reasons = {
            outcome.clip_id: f"it does not see {outcome.unreadable}"
            for outcome in report.outcomes
            if outcome.unreadable
        }
        for clip_id in list(reasons):
            task = tasks[clip_id]
            if any(unreadable(path) for path in (task.video, task.audio) if path):
                del reasons[clip_id]  # it has been taken away meanwhile, from this machine too
                self._waiting.append([task])
        if missing:
            why = f"it has put clips into {self.store} that are not found there: {min(missing)}"
            reasons |= dict.fromkeys(missing, why)
        if report.store_mismatch:
            self._wait_for_marker()
            tried = {outcome.clip_id for outcome in report.outcomes}
            why = f"it does not see the store {self.store} ({report.store_mismatch})"
            reasons |= {clip_id: why for clip_id in tasks if clip_id not in tried}
        if not reasons:
            return
        self._last_access_problem = time.monotonic()
        if report.address not in self._access_problems:
            problem = (
                f"worker {report.worker} on {report.machine}: {next(iter(reasons.values()))}; this "
                "machine does"
            )
            self._access_problems[report.address] = problem
            log(self.store, problem)
            self.callbacks.say(f"{problem}. Its clips are tried on other workers")
        by_excluded: dict[frozenset[str], list[Task]] = {}
        for clip_id in reasons:
            excluded = self._without_access.setdefault(clip_id, set())
            excluded.add(report.address)
            by_excluded.setdefault(frozenset(excluded), []).append(tasks[clip_id])
        self._waiting += by_excluded.values()

    def _wait_for_marker(self) -> None:
        """Wait until this machine sees the job's marker, which a worker does not see.

        Raises:
            WriteError: it does not.
        """
        until = time.monotonic() + STORE_AWAY
        while why := self.store_marker.marker.mismatch():
            if (self.store / RECIPE_FILE).exists() or time.monotonic() > until:
                raise WriteError(
                    f"{self.store}: this job's own files there are gone ({why}); was the folder or "
                    "its disk taken away, or were hidden files deleted? What was sealed is safe: "
                    "run the same command again"
                )

    def _after_death(self, batch: list[Task]) -> None:
        """Keep what the dead worker had finished; try the rest again, in the end clip by clip."""
        recover(self.store)
        stored = Store(self.store)
        rest = []
        for task in batch:
            if task.clip_id in stored:
                self._extracted(task.clip_id, stored[task.clip_id].duration)
                continue
            attempt = self._attempts[task.clip_id] = self._attempts.get(task.clip_id, 0) + 1
            if attempt == TRIES:
                self._failed(
                    task, f"the worker died while it had this clip, {TRIES} times", "worker"
                )
            else:
                rest.append(task)
        log(self.store, f"a worker died: {len(rest)} of its {len(batch)} clips to be tried again")
        again = [rest] if len(rest) < len(batch) else [[task] for task in rest]
        self._waiting += [some for some in again if some]
        self._show_progress()

    def _extracted(self, clip_id: str, seconds: float) -> None:
        self.summary.extracted.append(clip_id)
        self.summary.footage += seconds
        self._done += self._lengths[clip_id]

    def _failed(self, task: Task, reason: str, stage: str) -> None:
        self.summary.failed[task.clip_id] = reason
        self.callbacks.on_failure(task.clip_id, reason)
        attempts = self._attempts.get(task.clip_id, 1)
        failure = Failure(task.clip_id, reason, stage, attempts, file_state(task.video))
        self.failures[task.clip_id] = failure
        with suppress(OSError):  # the folder may be away; at the end all are written
            add_failure(self.store, failure)
        self._done += self._lengths[task.clip_id]

    def _show_progress(self) -> None:
        if self.callbacks.progress:
            self.callbacks.progress(self._done, self._total)


def refusal(store: Path, why: str) -> NotFiniteError:
    """Return the error of a recipe that does not work, with the ways out.

    Args:
        store: folder of the store.
        why: see `Tally.verdict`.
    """
    return NotFiniteError(
        f"recipe refused: {why}. Take --precision fp32, another network or other --layers, or a "
        f"checkpoint that is not damaged, in a new store; {store} can be deleted"
    )
