"""The training loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from train.augment import augment, mixup
from train.config import Config, TrainError
from train.data import Clips
from train.fitting.automatic import STEPS_PER_EPOCH, clips_per_batch
from train.fitting.history import Epoch, best_epoch
from train.fitting.memory import threads_for
from train.fitting.model_stack import ModelBatch, ModelStack
from train.fitting.optimiser import AdamW
from train.inference import score
from train.losses import POOLING, loss_of
from train.models.network import AVARNet

WARM_UP = 0.1  # share of all steps in which the learning rate rises
MIN_STEPS = 4  # what the schedule needs for a rise and a fall
GRADIENT_LIMIT = 1.0  # norm
AVERAGED = 4  # of the weights' polynomial-decay averaging (Shamir and Zhang, ICML 2013), eta + 1


class SplitIndices(NamedTuple):
    """Which clips train a model, and which choose its best epoch."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]


@dataclass(frozen=True)
class TrainingSet:
    """Clips with their classes.

    Attributes:
        clips: features of all clips.
        targets: (clips,) class of each.
        num_classes: number of classes.
        groups: (clips,) number of the recording of each; clips of one are not independent.
    """

    clips: Clips
    targets: NDArray[np.int64]
    num_classes: int
    groups: NDArray[np.int64]


class Trainer:
    """Trains some models of one architecture side by side, epoch by epoch.

    Args:
        data: the clips.
        splits: the clips of each model.
        seed: of everything random.
        config: settings, ``layers`` settled.
        device: where to train.
        start: number of the start, which the epochs tell.
    """

    def __init__(
        self,
        data: TrainingSet,
        splits: Sequence[SplitIndices],
        seed: int,
        config: Config,
        device: torch.device,
        start: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.data, self.splits, self.config = data, splits, config
        self.device, self.start = device, start
        clips = data.clips
        models = [AVARNet(clips.sizes, data.num_classes, config).train() for _ in splits]
        for model, split in zip(models, splits, strict=True):
            for name in clips.sizes:
                model.streams.standardise(name, clips.moments(name, split.train))
            model.to(device)
        fewest = min((split.train for split in splits), key=len)
        length = float(np.median(clips.lengths[fewest]))
        batch_size = clips_per_batch(config, len(fewest), length)
        self.stack = ModelStack(models, config, snippets_per_step(data.clips, fewest, config))
        self.batches = math.ceil(max(len(split.train) for split in splits) / batch_size)
        self.batches = min(self.batches, len(fewest))  # of every model as many
        self.passes = math.ceil(STEPS_PER_EPOCH / self.batches)
        steps = max(MIN_STEPS, config.epochs * self.passes * self.batches)
        self.optimiser = AdamW(
            self.stack.params.values(),
            config.learning_rate,
            weight_decay=config.weight_decay,
            fused=device.type != "mps",
        )
        rise = max(WARM_UP, 2 / steps)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, config.learning_rate, total_steps=steps, pct_start=rise
        )
        self.one_hot = F.one_hot(torch.from_numpy(data.targets), data.num_classes).float()
        self.class_weights = self._class_weights()
        self.loss = loss_of(config)
        self.average = {name: value.detach().clone() for name, value in self.stack.params.items()}
        self.best = {name: value.clone() for name, value in self.average.items()}
        self.steps = 0
        self.histories: list[list[Epoch]] = [[] for _ in splits]
        self.stale = [0] * len(splits)  # epochs since the best one

    @property
    def finished(self) -> bool:
        done = len(max(self.histories, key=len)) >= self.config.epochs
        return done or all(map(self._stopped, range(len(self.splits))))

    def epoch(self) -> Iterator[tuple[int, Epoch]]:
        """Train for an epoch; yield the number of each model with what it reached."""
        with threads_for(0 if self.stack.threads else self.stack.snippets):
            losses = [self.step(indices) for indices in self.shuffled()]
        train_losses = torch.stack(losses).mean(0).tolist()
        for number, train_loss in enumerate(train_losses):
            if self._stopped(number):
                continue  # it is trained on with the others, but nothing of that is kept
            epoch = self.validate(number, train_loss)
            self.histories[number].append(epoch)
            self.stale[number] += 1
            if best_epoch(self.histories[number]) is epoch:
                self.stale[number] = 0
                for name, value in self.average.items():
                    self.best[name][number] = value[number]
            yield number, epoch

    def step(self, indices: Sequence[NDArray[np.int64]]) -> Tensor:
        """Take one step with some clips for each model; return the loss of each."""
        batch = self.batch(indices)
        logits = self.stack.forward(batch)
        losses = self.stack.each(self.loss)(logits, batch.mask, batch.targets, self.class_weights)
        self.optimiser.zero_grad()
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self._limit_gradients()
        self.optimiser.step()
        self.schedule.step()
        # about the mean of the weights over the last quarter of what was trained so far: on small
        # data single epochs differ more from each other than the settings do
        with torch.no_grad():
            share = AVERAGED / (self.steps + AVERAGED)
            weights = list(self.stack.params.values())
            torch._foreach_lerp_(list(self.average.values()), weights, share)
        self.steps += 1
        return losses.detach()

    def batch(self, indices: Sequence[NDArray[np.int64]]) -> ModelBatch:
        """Return inputs, mask and soft targets of some clips for each model."""
        streams = self.stack.streams
        clips = max(map(len, indices))
        time = max(int(self.data.clips.lengths[chosen].max()) for chosen in indices)
        features = sum(streams[0].out_sizes)
        filled = ModelBatch.empty(
            len(indices), clips, time, features, self.data.num_classes, self.device
        )
        for number, chosen in enumerate(indices):
            batch = augment(self.data.clips.batch(chosen), self.config)
            targets = self.one_hot[chosen]
            if self.config.mixup:
                batch, targets = mixup(batch, targets, self.config.mixup)
            filled.fill(number, batch.to(self.device), targets, streams[number])
        return filled

    def shuffled(self) -> Iterator[tuple[NDArray[np.int64], ...]]:
        """Yield the clips of each model, step by step, for an epoch."""
        for _ in range(self.passes):
            sets = [self._drawn(split.train) for split in self.splits]
            each = [self.data.clips.shuffled(own, self.batches, self.rng) for own in sets]
            yield from zip(*each, strict=True)

    def _drawn(self, train: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the clips of one pass: each once, or every class equally often."""
        if self.config.sampling == "clips":
            return train
        counts = np.bincount(self.data.targets[train])
        share = 1 / counts[self.data.targets[train]]
        return self.rng.choice(train, len(train), p=share / share.sum())

    def validate(self, number: int, train_loss: float) -> Epoch:
        """Judge a model's averaged weights on its validation clips.

        Raises:
            TrainError: a loss is not a number.
        """
        model, val = self.stack.model(self.average, number), self.splits[number].val
        pooling = POOLING[self.config.pooling]
        log_p = score(model, self.data.clips, val, self.device, pooling).log_probabilities
        real, predicted = self.data.targets[val], log_p.argmax(1)
        losses = -log_p[np.arange(len(val)), real]
        epoch = Epoch(
            epoch=len(self.histories[number]) + 1,
            train_loss=train_loss,
            val_loss=float(losses.mean()),
            val_accuracy=float((predicted == real).mean()),
            val_recall=float(np.mean([(predicted[real == k] == k).mean() for k in set(real)])),
            val_error=float(losses.std() / math.sqrt(len(val))),
            start=self.start,
        )
        if not math.isfinite(epoch.train_loss + epoch.val_loss):
            raise TrainError(
                f"the training diverged in epoch {epoch.epoch} (its loss is {train_loss:g}, that "
                f"of the validation clips {epoch.val_loss:g}): lower learning_rate, which is "
                f"{self.config.learning_rate:g}"
            )
        return epoch

    def result(self) -> list[AVARNet]:
        """Return each model with the weights of its best epoch."""
        return [copy.deepcopy(self.stack.model(self.best, n)) for n in range(len(self.splits))]

    def _stopped(self, number: int) -> bool:
        return self.stale[number] >= self.config.patience

    def _class_weights(self) -> Tensor:
        """Return (models, classes), by which classes that are rare count more, or all ones."""
        weights = np.ones((len(self.splits), self.data.num_classes), np.float32)
        if self.config.class_weights:
            for own, split in zip(weights, self.splits, strict=True):
                counts = np.bincount(self.data.targets[split.train], minlength=len(own))
                own[:] = len(split.train) / (len(own) * counts)
        return torch.from_numpy(weights).to(self.device)

    def _limit_gradients(self) -> None:
        """Scale each model's gradients down to a norm of `GRADIENT_LIMIT`."""
        gradients = [value.grad for value in self.stack.params.values() if value.grad is not None]
        norm = torch.linalg.vector_norm(torch.cat([g.flatten(1) for g in gradients], 1), dim=1)
        scale = (GRADIENT_LIMIT / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))


def snippets_per_step(clips: Clips, train: NDArray[np.int64], config: Config) -> float:
    """Return about how many snippets a step of one model has."""
    length = float(np.median(clips.lengths[train]))
    return min(clips_per_batch(config, len(train), length), len(train)) * length
