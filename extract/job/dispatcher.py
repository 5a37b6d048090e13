"""The client's side of a job: gives batches to the workers, and counts what comes back."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue

from dask.distributed import CancelledError, Client, Future, KilledWorker

from extract.cluster.batch_system import SILENCE
from extract.cluster.cluster import Cluster
from extract.cluster.monitor import WorkerMonitor
from extract.cluster.versions import ClusterError
from extract.job import worker
from extract.job.batching import MOST_FOOTAGE, MOST_FOOTAGE_GPU, Task, batches
from extract.job.file_access import FileAccess
from extract.job.interrupt import StopRequest
from extract.job.log import log
from extract.job.results import Callbacks, Results
from extract.job.shared_disk import STORE_AWAY, StoreMarker, missing_clips, unreadable
from extract.job.summary import Summary
from extract.job.timings import add_timing
from extract.job.worker import JobSettings, Report
from features import RECIPE_FILE, Recipe, Store, WriteError, recover

CHECK_SECONDS = 10.0  # between two checks of the workers
QUEUED_BATCHES = 3  # with the scheduler for each process; the rest waits here
FILES_PER_PROBE = 200  # whose length one task reads
TRIES = 3  # of a clip whose worker dies
NAMED = 3  # workers that a message names
SHARE = (
    "The store and the videos must be on disks that this machine and all workers see at the same "
    "paths: mount them there (or give --root, or another folder for the store), and run the same "
    "command again"
)


class Dispatcher:
    """Gives out batches until every clip is done, has failed, or cannot be done.

    Args:
        client: of the cluster.
        cluster: where the workers are.
        settings: of the job.
        store_marker: the job's.
        summary: gets what becomes of the clips.
        callbacks: called with what happens.
        stopping: whether the job is to end early.

    Attributes:
        results: what is finished.
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
        self.results = Results(
            settings.store, Recipe.from_json(settings.recipe), summary, callbacks
        )
        self._attempts: dict[str, int] = {}
        self._waiting: list[list[Task]] = []
        self._running: dict[Future, list[Task]] = {}
        self._finished: SimpleQueue[Future] = SimpleQueue()
        self._access = FileAccess()
        self._deferred: list[list[Task]] = []  # batches whose files no present worker sees
        self._allowed: dict[Future, set[str]] = {}  # addresses, where not all may do a batch
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
        lengths = {task.clip_id: d for task, d in zip(tasks, durations, strict=True)}
        self.results.start(lengths)
        most = MOST_FOOTAGE_GPU if self.cluster.on_gpus else MOST_FOOTAGE
        self._waiting = batches(tasks, durations, self.cluster.processes, most)[::-1]
        self.stopping.on_stop = self._stop_workers
        try:
            self._dispatch()
        finally:
            self.stopping.on_stop = None
        self.client.run(worker.seal)
        known = {*self.summary.extracted, *self.summary.failed}
        self.summary.left = [task.clip_id for task in tasks if task.clip_id not in known]
        self.results.finish()
        problems = self.summary.workers_without_access = list(self._access.problems.values())
        undone = sum(map(len, self._deferred))
        if not undone:
            return None
        more = f" (and {len(problems) - NAMED} more)" if len(problems) > NAMED else ""
        return ClusterError(
            f"{'; '.join(problems[:NAMED])}{more}. So {undone} of {len(tasks)} clips are not "
            f"extracted, and {len(self.summary.extracted)} are. {SHARE}"
        )

    def _stop_workers(self) -> None:
        """Let workers begin no more clips of their batches."""
        with suppress(Exception):  # a second Ctrl-C closes the client during this call
            self.client.run(worker.stop)

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
        excluded = self._access.excluded(batch)
        allowed = None
        if excluded:
            allowed = [address for address in self._monitor.addresses() if address not in excluded]
            if not allowed:
                self._deferred.append(batch)
                return
        readable = {path for task in batch for path in task.files if not unreadable(path)}
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
        since = time.monotonic() - self._access.last_problem
        return self.cluster.queued and few and since < SILENCE

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
            possible = present - self._access.excluded(batch)
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
                self.results.extracted(outcome.clip_id, outcome.footage, outcome)
            else:
                attempts = self._attempts.get(outcome.clip_id, 1)
                self.results.failed(tasks[outcome.clip_id], outcome.error, "read", attempts)
        self._try_elsewhere(report, tasks, missing)
        video = sum(outcome.footage for outcome in report.outcomes)
        seconds = sum(outcome.seconds for outcome in report.outcomes)
        failed = sum(outcome.error is not None for outcome in report.outcomes)
        log(
            self.store,
            f"worker {report.worker}: {len(report.outcomes)} of {len(batch)} clips, {failed} "
            f"failed, {video:.1f} s of video in {seconds:.1f} s",
        )
        with suppress(OSError):
            add_timing(self.store, video, seconds)
        self.results.show_progress()
        self.results.check_finite(over=False)

    def _try_elsewhere(
        self, report: Report, tasks: dict[str, Task], missing: Collection[str]
    ) -> None:
        """Give to other workers what one could not do, as it sees other disks than this machine.

        Args:
            report: the worker's.
            tasks: clip id -> task, of its batch.
            missing: clips that it finished, and that are not found in the store.
        """
        reasons: dict[str, str] = {}
        for outcome in report.outcomes:
            task = tasks[outcome.clip_id]
            if outcome.unreadable and any(map(unreadable, task.files)):
                self._waiting.append([task])  # taken away meanwhile, from this machine too
            elif outcome.unreadable:
                reasons[task.clip_id] = f"it does not see {outcome.unreadable}"
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
        if problem := self._access.note(report, next(iter(reasons.values()))):
            log(self.store, problem)
            self.callbacks.say(f"{problem}. Its clips are tried on other workers")
        self._waiting += self._access.exclude(report.address, (tasks[i] for i in reasons))

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
                self.results.extracted(task.clip_id, stored[task.clip_id].duration)
                continue
            attempt = self._attempts[task.clip_id] = self._attempts.get(task.clip_id, 0) + 1
            if attempt == TRIES:
                reason = f"the worker died while it had this clip, {TRIES} times"
                self.results.failed(task, reason, "worker", attempt)
            else:
                rest.append(task)
        log(self.store, f"a worker died: {len(rest)} of its {len(batch)} clips to be tried again")
        again = [rest] if len(rest) < len(batch) else [[task] for task in rest]
        self._waiting += [some for some in again if some]
        self.results.show_progress()
