"""Trains models to the end: from a checkpoint, and again where they stay near chance."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from train.config import Config
from train.fitting.checkpoint import load_checkpoint, save_checkpoint
from train.fitting.history import Epoch, best_epoch
from train.fitting.linear_fit import fit_linear_term
from train.fitting.memory import keep_memory
from train.fitting.temperature import fit_temperature
from train.fitting.trainer import SplitIndices, Trainer, TrainingSet
from train.models.network import AVARNet

NEAR_CHANCE = 0.75  # of the loss of uniform predictions
NEXT_START = 1_000_003  # is added to the seed
SAVE_SECONDS = 10.0  # between two checkpoints


def fit(
    data: TrainingSet,
    splits: Sequence[SplitIndices],
    seed: int,
    config: Config,
    device: torch.device,
    on_epoch: Callable[[int, Epoch, bool], None] = lambda *_: None,
    checkpoint: Path | None = None,
) -> list[tuple[AVARNet, list[Epoch]]]:
    """Train models side by side; return each as it was in its `best_epoch`, with all epochs.

    What is validated and kept is a running average of the weights. Models whose validation
    stays near chance are started again with another seed, see `Config.starts`. Temperature and
    linear term are fitted last: what the term tells of the validation clips would hide that a start
    has found nothing.

    Args:
        data: the clips.
        splits: the clips of each model.
        seed: of everything random.
        config: settings, ``layers`` settled.
        device: where to train.
        on_epoch: called after each epoch with the model's number, what it reached, and whether it
            is the best so far. Called for the epochs before a checkpoint too.
        checkpoint: a file to save the state in, every ten seconds and at the end, and to resume
            from if it is there. Each further start has one of its own, beside it.

    Raises:
        TrainError: the checkpoint cannot be read, or a loss is not a number.
    """
    keep_memory()
    trained: dict[int, AVARNet] = {}
    histories: list[list[Epoch]] = [[] for _ in splits]
    left = list(range(len(splits)))
    for start in range(config.starts):
        file = checkpoint
        if checkpoint is not None and start:
            file = checkpoint.with_name(f"{checkpoint.stem}-start-{start}{checkpoint.suffix}")
        own = [splits[number] for number in left]
        trainer = Trainer(data, own, seed + start * NEXT_START, config, device, start)
        for place, epoch in _epochs(trainer, file):
            history = histories[left[place]]
            history.append(epoch)
            on_epoch(left[place], epoch, best_epoch(history) is epoch)
        for number, model in zip(left, trainer.result(), strict=True):
            if best_epoch(histories[number]).start == start:
                trained[number] = model
        left = [
            number
            for number in left
            if near_chance(best_epoch(histories[number]), data.num_classes, len(splits[number].val))
        ]
        if not left:
            break
    for number, model in trained.items():
        if config.task == "detection":
            continue
        loss = fit_temperature(model, data, splits[number].val, device, config.pooling)
        if model.linear_term is not None:
            fit_linear_term(model.linear_term, data, splits[number], loss, config.class_weights)
    return [(trained[number], history) for number, history in enumerate(histories)]


def near_chance(epoch: Epoch, classes: int, clips: int) -> bool:
    """Return whether a start has found nothing: guessing could have done about as well.

    Its loss is hardly below that of guessing, and its recall within two standard errors of it. The
    loss alone would also fit a model that is right often, and too sure of itself where it is wrong;
    another start does not help that one.

    Args:
        epoch: the best one.
        classes: number of classes.
        clips: validation clips.
    """
    guess = 1 / classes
    error = math.sqrt(guess * (1 - guess) / max(clips, 1))
    return epoch.val_loss > NEAR_CHANCE * math.log(classes) and epoch.val_recall < guess + 2 * error


def _epochs(trainer: Trainer, checkpoint: Path | None) -> Iterator[tuple[int, Epoch]]:
    """Train to the end; yield each epoch with the number of its model."""
    if checkpoint is not None and checkpoint.exists():
        load_checkpoint(trainer, checkpoint)
        for number, history in enumerate(trainer.histories):
            for epoch in history:
                yield number, epoch
    saved = time.monotonic()
    while not trainer.finished:
        yield from trainer.epoch()
        due = trainer.finished or time.monotonic() - saved > SAVE_SECONDS
        if checkpoint is not None and due:
            save_checkpoint(trainer, checkpoint)
            saved = time.monotonic()
