"""Many models at once: those of one seed in stacks, the stacks in processes."""

from __future__ import annotations

import multiprocessing
import signal
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

from features import Store, join
from train.config import Config, TrainError
from train.data import Clips
from train.fitting.trainer import Epoch, Sides, fit, stack_size

CHECKPOINT = "checkpoint-"
OnEpoch = Callable[[int, Epoch, bool], None]


@dataclass(frozen=True)
class Work:
    """What all groups of models have in common.

    Attributes:
        clips: features of all clips.
        stores: where they are, for other processes.
        targets: (clips,) class of each.
        num_classes: number of classes.
        config: settings, ``layers`` settled.
        device: where to train.
    """

    clips: Clips
    stores: Sequence[Path]
    targets: NDArray[np.int64]
    num_classes: int
    config: Config
    device: torch.device


@dataclass(frozen=True)
class Group:
    """Models that are trained as one stack.

    Attributes:
        first: the number of the first of them in the run.
        models: the clips of each.
        seed: of all of them.
        path: the run's folder.
    """

    first: int
    models: list[Sides]
    seed: int
    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / f"{CHECKPOINT}{self.first}.safetensors"


def groups_of(clips: Clips, parts: Sequence[Sides], config: Config, path: Path) -> list[Group]:
    """Return the models of a run in groups: of one seed, and so many as `stack_size` says."""
    size = stack_size(clips, parts, config)
    return [
        Group(number * len(parts) + first, list(parts[first : first + size]), seed, path)
        for number, seed in enumerate(range(config.seed, config.seed + config.seeds))
        for first in range(0, len(parts), size)
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
    clips = work.clips
    again = (work.stores, clips.ids, list(clips.sizes), clips.crops)
    rest = (work.targets, work.num_classes, work.config, work.device)
    count = min(processes, len(groups))
    with ProcessPoolExecutor(count, context, _start, (epochs, *again, *rest)) as pool:
        futures = [pool.submit(_fit_group_here, group) for group in groups]
        try:
            while not all(future.done() for future in futures) or not epochs.empty():
                _pass_on(epochs, on_epoch)
            for future in futures:
                future.result()
        except BrokenProcessPool as error:
            raise TrainError(
                f"a process that trained was killed (out of memory?); go on with --resume: {error}"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _pass_on(epochs: Any, on_epoch: OnEpoch) -> None:
    try:
        on_epoch(*epochs.get(timeout=0.1))
    except Empty:
        return


def _fit_group(work: Work, group: Group, on_epoch: OnEpoch) -> None:
    trained = fit(
        work.clips,
        work.targets,
        work.num_classes,
        group.models,
        group.seed,
        work.config,
        work.device,
        lambda number, epoch, best: on_epoch(group.first + number, epoch, best),
        group.checkpoint,
    )
    for number, (model, _) in enumerate(trained, group.first):
        weights = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
        safetensors.torch.save_file(weights, group.path / f"model-{number}.safetensors")


# what a process of its own holds -----------------------------------------------------------------

_here: dict[str, Any] = {}


def _start(
    epochs: Any,
    stores: Sequence[Path],
    ids: list[str],
    streams: list[str],
    crops: dict[str, int],
    *rest: Any,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is the first process's to answer
    torch.set_num_threads(1)  # the other cores have processes of their own
    opened = [Store(path) for path in stores]
    clips = Clips(opened[0] if len(opened) == 1 else join(*opened), ids, streams, crops)
    _here.update(work=Work(clips, stores, *rest), epochs=epochs)


def _fit_group_here(group: Group) -> None:
    _fit_group(_here["work"], group, lambda *epoch: _here["epochs"].put(epoch))
