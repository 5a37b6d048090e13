"""Stage 1 over a whole manifest: clips go to Dask workers, sealed shards come out in the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from extract.cluster.cluster import Cluster
from extract.cluster.versions import ClusterError, versions
from extract.decoding.isolated_process import MEMORY_BYTES
from extract.extractor import Extractor
from extract.job.batching import Task
from extract.job.dispatcher import Dispatcher
from extract.job.failures import file_state, read_failures, write_failures
from extract.job.interrupt import first_interrupt
from extract.job.log import log
from extract.job.refusal import earlier_refusal, refusal
from extract.job.results import Callbacks
from extract.job.shared_disk import StoreMarker, missing_clips
from extract.job.summary import Summary
from extract.job.worker import JobSettings, MakeExtractor
from features import Recipe, Store, WriteError, create, entries, recover, repair, verify


def extract(
    tasks: Sequence[Task],
    store: str | Path,
    recipe: Recipe,
    *,
    cluster: Cluster | None = None,
    retry_failed: bool = False,
    memory_bytes: int = MEMORY_BYTES,
    progress: Callable[[float, float], None] | None = None,
    make: MakeExtractor = Extractor,
    say: Callable[[str], None] = lambda text: None,
    on_failure: Callable[[str, str], None] = lambda clip_id, reason: None,
) -> Summary:
    """Extract every clip that the store does not hold yet, or holds damaged.

    What the store holds is verified first, every byte of it. Interrupted or killed at any moment,
    the same call resumes: a finished clip is never done twice, and nothing
    half-written is ever read. At the first Ctrl-C, and at SIGTERM, the clips in progress are
    finished, at the second they are not. A clip counts when this machine finds it in the
    store. What a worker does not see and this machine does is tried on another one, and is no
    failure of the clip.

    Args:
        tasks: the clips.
        store: folder of the store; made if absent.
        recipe: of the features; a store of another recipe is refused.
        cluster: where to work; processes on this machine if None.
        retry_failed: try also the clips that failed in earlier runs and whose file is the same.
        memory_bytes: that reading a clip may take before it fails.
        progress: called with (seconds of footage done, seconds of footage in all).
        make: makes the extractor of a worker.
        say: called with a sentence on what is done now, or goes wrong; from any thread.
        on_failure: called with (clip id, reason) for each clip that fails now.

    Raises:
        FeatureError: the store has another recipe, or cannot be used.
        WriteError: it cannot be written; what is finished stays.
        NotFiniteError: more than 1 % of the rows are no finite numbers, by the networks' fault;
            what is finished stays.
        ClusterError: the cluster cannot be reached, its workers do not see the store or some of the
            videos, or have another version of this program; what is finished stays.
    """
    store = Path(store)
    tasks = [t._replace(video=Path(t.video), audio=t.audio and Path(t.audio)) for t in tasks]
    started = time.monotonic()
    create(store, recipe)
    if why := earlier_refusal(store, recipe.fingerprint):  # its finished clips are in the store
        raise refusal(store, why)
    recover(store)
    if any(store.glob("[!.]*.h5")):
        say(f"verifying what is in {store}")
    _, damages = verify(store)
    repair(store, damages)
    stored = set(Store(store))
    failures = {i: f for i, f in read_failures(store).items() if i not in stored}
    summary = Summary(
        already=[task.clip_id for task in tasks if task.clip_id in stored],
        damaged=[damage.shard.name for damage in damages],
    )
    todo = []
    for task in tasks:
        failure = failures.get(task.clip_id)
        if failure and not retry_failed and failure.file == file_state(task.video):
            summary.failed[task.clip_id] = failure.reason
            summary.not_tried.append(task.clip_id)
        elif task.clip_id not in stored:
            failures.pop(task.clip_id, None)
            todo.append(task)
    write_failures(store, failures.values())
    if todo:
        cluster = cluster or Cluster()
        callbacks = Callbacks(progress, say, on_failure)
        unfinished: ClusterError | None = None
        try:
            with first_interrupt(say) as stopping, StoreMarker(store) as store_marker:
                settings = JobSettings(
                    recipe=recipe.to_json(),
                    store=store.resolve(),
                    marker=store_marker.marker,
                    device=cluster.device,
                    memory_bytes=memory_bytes,
                    make=make,
                    made_by=versions(),
                )
                if cluster.warning:
                    say(cluster.warning)
                say(cluster.beginning(len(todo)))
                with cluster.client(len(todo), stopping.is_set) as client:
                    dispatcher = Dispatcher(
                        client, cluster, settings, store_marker, summary, callbacks, stopping
                    )
                    unfinished = dispatcher.run(todo)
                    write_failures(store, (failures | dispatcher.results.failures).values())
        finally:
            recover(store)  # what workers that died, or were stopped, had finished
        if missing := missing_clips(store, dict.fromkeys(summary.extracted, "")):
            raise WriteError(
                f"{store}: {len(missing)} clips that workers had finished ({min(missing)} is one) "
                "are not in it, or not sealed yet by workers that do not answer. Run the same "
                "command again: what is missing is done again"
            )
        if unfinished:
            log(store, f"end: {summary}")
            raise unfinished
    summary.flagged = _flagged(store, set(summary.extracted))
    summary.seconds = time.monotonic() - started
    log(store, f"end: {summary}")
    return summary


def _flagged(store: Path, clip_ids: set[str]) -> dict[str, list[str]]:
    """Return the names of flags -> those of some clips that have them."""
    flagged: dict[str, list[str]] = {}
    for entry in entries(Store(store)):
        if entry.clip in clip_ids:
            for flag in entry.flags:
                flagged.setdefault(str(flag.name), []).append(entry.clip)
    return flagged
