"""The parts put together: extract, train, evaluate, predict. Nothing here prints.

What happens on the way goes to callbacks, what comes of it is returned; the commands are these
functions, with options before and tables behind.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import features
import manifests
from avarnet.stores import open_stores as open_stores
from avarnet.stores import open_stores_of
from avarnet.video_predictions import Scored as Scored
from avarnet.video_predictions import Unreadable as Unreadable
from avarnet.video_predictions import predict as predict

if TYPE_CHECKING:
    from extract import Cluster, Summary, Task
    from train import Config, Run
    from train.evaluation.figures import Metrics
    from train.fitting.history import Epoch
    from train.report.examples import Preview

    OnEpoch = Callable[[int, int, Epoch, bool], None]

STAGE_1 = ("av", "dask", "dask_jobqueue", "distributed", "soundfile", "timm", "transformers")


def has_extract() -> bool:
    """Return whether the packages of stage 1 are installed."""
    return all(importlib.util.find_spec(name) for name in STAGE_1)


def root_of(manifest: str | Path, root: str | Path | None) -> Path:
    """Return what the paths of a manifest are relative to.

    Args:
        manifest: the file.
        root: what a user gives for it; None takes the manifest's folder.
    """
    return manifests.default_root(manifest) if root is None else Path(root)


def extract(
    clips: Sequence[manifests.Clip],
    root: str | Path,
    store: str | Path,
    recipe: features.Recipe,
    **job: Any,
) -> Summary:
    """Extract the features of a manifest's clips into a store, and write the store's card.

    Args:
        clips: of the manifest.
        root: what their paths are relative to.
        store: folder of the store; made if absent.
        recipe: of the features; see `extract.make_recipe`.
        job: where and how; the keyword arguments of `extract.extract`, callbacks among them.
    """
    from extract import extract as extract_tasks

    summary = extract_tasks(_tasks(clips, root), store, recipe, **job)
    features.write_card(store, {clip.id: clip.label for clip in clips})
    return summary


def _tasks(clips: Sequence[manifests.Clip], root: str | Path) -> list[Task]:
    from extract import Task

    return [Task(c.id, c.resolve(root), c.resolve_audio(root), c.duration) for c in clips]


@dataclass(frozen=True)
class Plan:
    """What `extract` would do.

    Attributes:
        clips: to extract.
        present: clips that the store has already.
        batches: seconds of video of each task.
        unknown: clips whose length is not known, and not in `batches`: their files are missing, or
            do not state it.
        processes: that would work at once.
        speed: seconds of video for a second of a process, in this store so far; None if none was
            extracted yet.
        job_script: of one job in a batch system's queue; empty elsewhere.
    """

    clips: int
    present: int
    batches: list[float]
    unknown: int
    processes: int
    speed: float | None
    job_script: str

    @property
    def seconds(self) -> float | None:
        """About how long it would take; None if nothing is known."""
        return sum(self.batches) / self.speed / self.processes if self.speed else None


def plan_extraction(
    clips: Sequence[manifests.Clip], root: str | Path, store: str | Path, cluster: Cluster
) -> Plan:
    """Return what `extract` would do, and do nothing.

    Args:
        clips: of the manifest.
        root: what their paths are relative to.
        store: folder of the store.
        cluster: where to work.
    """
    store = Path(store)
    from extract import footage
    from extract.job.batching import batches
    from extract.job.timings import mean_speed

    present = set(features.Store(store)) if (store / features.RECIPE_FILE).exists() else set()
    tasks = [task for task in _tasks(clips, root) if task.clip_id not in present]
    with ThreadPoolExecutor() as pool:
        lengths = list(pool.map(lambda task: task.duration or footage(task.video), tasks))
    seconds = {task.clip_id: length for task, length in zip(tasks, lengths, strict=True)}
    divided = batches(tasks, lengths, cluster.processes)
    return Plan(
        clips=len(tasks),
        present=len(clips) - len(tasks),
        batches=[sum(seconds[task.clip_id] for task in batch) for batch in divided],
        unknown=lengths.count(0.0),
        processes=cluster.processes,
        speed=mean_speed(store),
        job_script=cluster.job_script() if cluster.queued else "",
    )


def train(
    clips: Sequence[manifests.Clip],
    store: features.Store | features.Joined,
    run: str | Path,
    config: Config,
    *,
    manifest: str | Path | None = None,
    device: str = "cpu",
    processes: int | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    on_epoch: OnEpoch = lambda *_: None,
) -> Run:
    """Train the models of a run.

    Args:
        clips: labelled clips.
        store: their features.
        run: the run's folder; must not hold a finished run.
        config: settings.
        manifest: where the clips were read from; the run notes it for its report.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto``, which takes a GPU if there is
            one.
        processes: at most so many at work, where there are several models; None takes one for each
            core, or one on another device.
        resume: continue the run that was interrupted in this folder.
        tensorboard: write the epochs to ``RUN/tensorboard`` too.
        on_epoch: called with (number of the model, how many there are, epoch, best so far).

    Raises:
        TrainError: most mistakes, before the first epoch.
    """
    import joblib
    import torch

    from train import train_run

    gpu = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(gpu if device == "auto" else device)
    if processes is None:  # one device is shared by no more than one process
        processes = joblib.cpu_count() if chosen.type == "cpu" else 1
    log = _tensorboard(run) if tensorboard else None

    def note(number: int, count: int, epoch: Epoch, best: bool) -> None:
        if log is not None:
            for name, value in asdict(epoch).items():
                log.add_scalar(f"{name}/model-{number}", value, epoch.epoch)
        on_epoch(number, count, epoch, best)

    trained = train_run(
        clips,
        store,
        run,
        config,
        device=chosen,
        processes=processes,
        resume=resume,
        manifest=manifest,
        on_epoch=note,
    )
    if log is not None:
        log.close()
    return trained


def _tensorboard(run: str | Path) -> Any:
    from train import TrainError

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainError("--tensorboard needs another package: pip install tensorboard") from error
    return SummaryWriter(str(Path(run) / "tensorboard"))


def evaluate(
    run: Run,
    stores: str | Path | Sequence[str | Path] = (),
    *,
    manifest: str | Path | None = None,
    root: str | Path | None = None,
    page: str | Path | None = None,
    recall: float | None = None,
    skip_unreadable: bool = False,
) -> Metrics:
    """Evaluate a run on its held-out clips, and write its report.

    Args:
        run: a trained run.
        stores: its features, if they have moved since.
        manifest: its manifest, if that has moved: where the videos are.
        root: what the manifest's paths are relative to; None takes its folder.
        page: the report; None takes ``RUN/report.html``.
        recall: detection: share of the anomalies to be noticed, at which false alarms are counted;
            None takes that of the last time.
        skip_unreadable: continue without shards that cannot be read.

    Returns:
        The metrics; see `train.judge_run`.
    """
    manifest = None if manifest is None else Path(manifest)
    from extract.job.failures import read_failures
    from train import judge_run
    from train.report.run import write_report
    from train.run_files import check_file

    if manifest is not None and not manifest.is_file():
        raise manifests.ManifestError(
            f"{manifest}: no such file; give the run's manifest, or leave it out"
        )
    page = Path(page or run.path / "report.html")
    check_file(page)
    store = open_stores_of(run, stores, skip_unreadable)
    evaluation = judge_run(run, store, _last_recall(run) if recall is None else recall)
    failures = {i: f.reason for path in store.paths for i, f in read_failures(path).items()}
    with _pictures(run, store, manifest or run.manifest, root) as (preview, no_pictures):
        write_report(run, evaluation, page, preview, no_pictures, failures)
    return evaluation.metrics


def _last_recall(run: Run) -> float:
    """Return the recall at which the run's false alarms were counted, if they were."""
    from train import TrainError
    from train.evaluation.alarms import RECALL

    try:
        last = run.evaluation()
    except TrainError:
        return RECALL
    return last["model"]["false_alarms"]["asked"] if last["task"] == "detection" else RECALL


@contextmanager
def _pictures(
    run: Run,
    store: features.Store | features.Joined,
    manifest: Path | None,
    root: str | Path | None,
) -> Iterator[tuple[Callable[[str], Preview | None], str]]:
    """Yield what shows a clip in the report; and why it has no pictures, if it has none."""
    from train.report.examples import Preview

    if manifest is None or not manifest.is_file():
        why = "the manifest that says where the videos are is not at hand (--manifest)"
        yield lambda clip_id: None, why
        return
    clips = {clip.id: clip for clip in manifests.read(manifest)}
    base = root_of(manifest, root)

    def files_of(clip_id: str) -> tuple[Path, Path | None] | None:
        clip = clips.get(clip_id)
        found = None if clip is None else (clip.resolve(base), clip.resolve_audio(base))
        # unlike Path.is_file, this is no error where the folder is closed to us
        return found if found and os.path.isfile(found[0]) else None

    if not has_extract():

        def playable(clip_id: str) -> Preview | None:
            files = files_of(clip_id)
            return None if files is None else Preview(b"", np.zeros(0, np.float32), *files)

        yield playable, "stage 1, which reads videos, is not installed"
        return
    import extract as stage1

    def preview(clip_id: str) -> Preview | None:
        files = files_of(clip_id)
        if files is None:
            return None
        try:
            return Preview(*stage1.glimpse(reader, *files, store[clip_id].duration), *files)
        except stage1.ClipError:
            return None

    with closing(stage1.Reader()) as reader:
        yield preview, f"the videos below {base} cannot be read (--root)"
