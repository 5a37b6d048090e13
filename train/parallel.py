"""Many models at once: those of one seed in stacks, the stacks in processes."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from features import Store, UnreadableShard, join
from features.garbage import collect_seldom
from train.config import Config, TrainError
from train.data import Clips
from train.fitting.history import Epoch
from train.fitting.model_stack import stack_size
from train.fitting.restarts import fit
from train.fitting.trainer import SplitIndices, TrainingSet, snippets_per_step
from train.run_files import write_run_file

CHECKPOINT = "checkpoint-"
OnEpoch = Callable[[int, Epoch, bool], None]


@dataclass(frozen=True)
class Work:
    """What all groups of models have in common.

    Attributes:
        data: the clips.
        stores: where their features are, for other processes.
        config: settings, ``layers`` settled.
        device: where to train.
    """

    data: TrainingSet
    stores: Sequence[Path]
    config: Config
    device: torch.device


@dataclass(frozen=True)
class Group:
    """Models that are trained as one stack.

    Attributes:
        first: the number of the first of them in the run.
        splits: the clips of each.
        seed: of all of them.
        path: the run's folder.
    """

    first: int
    splits: list[SplitIndices]
    seed: int
    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / f"{CHECKPOINT}{self.first}.safetensors"


def groups_of(
    clips: Clips, splits: Sequence[SplitIndices], config: Config, path: Path
) -> list[Group]:
    """Return the models of a run in groups: of one seed, and as many as `stack_size` says.

    Args:
        clips: all clips.
        splits: the clips of the models of one seed.
        config: settings.
        path: the run's folder.
    """
    snippets = snippets_per_step(clips, splits[0].train, config)
    size = stack_size(config, len(splits), snippets)
    return [
        Group(number * len(splits) + first, list(splits[first : first + size]), seed, path)
        for number, seed in enumerate(range(config.seed, config.seed + config.seeds))
        for first in range(0, len(splits), size)
    ]


def fit_groups(work: Work, groups: Sequence[Group], processes: int, on_epoch: OnEpoch) -> None:
    """Train groups of models and write each model's weights into the run's folder.

    Raises:
        TrainError: a process died, or a checkpoint cannot be read.
    """
    if processes == 1 or len(groups) == 1:
        for group in groups:
            _fit_group(work, group, on_epoch)
        return
    # not forked: a fork inherits locks of threads that it does not have
    context = multiprocessing.get_context("spawn")
    epochs = context.Queue()
    clips = work.data.clips
    again = (work.stores, clips.ids, list(clips.sizes), clips.crops)
    learned = (work.data.targets, work.data.num_classes, work.data.groups)
    rest = (*learned, work.config, work.device)
    count = min(processes, len(groups))
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(count, context, _start, (epochs, *again, *rest)) as pool:
        try:
            # blocked in the processes until `_start`: they would print tracebacks of their imports
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                futures = [pool.submit(_fit_group_here, group) for group in groups]
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            while not all(future.done() for future in futures) or not epochs.empty():
                _pass_on(epochs, on_epoch)
            for future in futures:
                future.result()
        except BrokenProcessPool as error:
            raise TrainError(
                f"a training process was killed (out of memory?); continue with --resume: {error}"
            ) from error
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _pass_on(epochs: Any, on_epoch: OnEpoch) -> None:
    try:
        on_epoch(*epochs.get(timeout=0.1))
    except Empty:
        return


def _fit_group(work: Work, group: Group, on_epoch: OnEpoch) -> None:
    trained = fit(
        work.data,
        group.splits,
        group.seed,
        work.config,
        work.device,
        lambda number, epoch, best: on_epoch(group.first + number, epoch, best),
        group.checkpoint,
    )
    for number, (model, _) in enumerate(trained, group.first):
        weights = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
        content = safetensors.torch.save(weights)
        write_run_file(group.path / f"model-{number}.safetensors", content)


# in a process of its own -------------------------------------------------------------------------

_process: dict[str, Any] = {}  # its work, and the queue of what it tells


def _start(
    epochs: Any,
    stores: Sequence[Path],
    ids: list[str],
    streams: list[str],
    crops: dict[str, int],
    targets: NDArray[np.int64],
    num_classes: int,
    groups: NDArray[np.int64],
    config: Config,
    device: torch.device,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is the first process's to handle
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    collect_seldom()
    torch.set_num_threads(1)  # the other cores have processes of their own
    warnings.simplefilter("ignore", UnreadableShard)  # of which the first process warns
    opened = [Store(path) for path in stores]
    clips = Clips(opened[0] if len(opened) == 1 else join(*opened), ids, streams, crops)
    data = TrainingSet(clips, targets, num_classes, groups)
    _process.update(work=Work(data, stores, config, device), epochs=epochs)


def _fit_group_here(group: Group) -> None:
    _fit_group(_process["work"], group, lambda *epoch: _process["epochs"].put(epoch))
