"""Trains one model on one part: the loss, the epochs, early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from train.config import Config
from train.data import Batch, Clips
from train.detection import top_pool, weak_loss
from train.model import AVARNet, Pooling, mtcn_loss, pool

MOST_LAYERS = 10  # as in the paper
SMALLEST_BATCH, LARGEST_BATCH = 4, 32
STEPS_PER_EPOCH = 12  # at least, where there are clips enough: refinement stages learn late
WARM_UP = 0.1  # share of all steps in which the learning rate rises
MIN_STEPS = 4  # what the schedule needs for a rise and a fall
GRADIENT_LIMIT = 1.0  # norm
LOSS: dict[str, Callable[..., Tensor]] = {"recognition": mtcn_loss, "detection": weak_loss}
POOLING: dict[str, Pooling] = {"recognition": pool, "detection": top_pool}
DETECTION_LAYERS = 2  # the farther a stage sees, the less a clip's label tells it when


@dataclass(frozen=True)
class Epoch:
    """One row of the per-epoch table."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    val_recall: float  # mean over classes: no reward for always answering the commonest


def layers_to_cover(lengths: NDArray[np.int64]) -> int:
    """Return how many layers reach across nine clips in ten.

    A stage of L layers sees 2^(L+1) - 1 snippets.

    >>> layers_to_cover(np.array([8, 8, 8]))
    3
    """
    long = float(np.percentile(lengths, 90))
    return min(MOST_LAYERS, max(1, math.ceil(math.log2((long + 1) / 2))))


def batch_to_learn(clips: int) -> int:
    """Return how many clips a step takes, so that small sets still give a dozen steps an epoch.

    >>> batch_to_learn(50), batch_to_learn(3000)
    (4, 32)
    """
    return min(LARGEST_BATCH, max(SMALLEST_BATCH, clips // STEPS_PER_EPOCH))


def build(sizes: dict[str, int], num_classes: int, config: Config) -> AVARNet:
    """Return an untrained model; ``config.layers`` must be settled (not 0)."""
    return AVARNet(
        sizes,
        num_classes,
        stages=config.stages,
        layers=config.layers,
        channels=config.channels,
        dropout=config.dropout,
        input_dropout=config.input_dropout,
        stream_dropout=config.stream_dropout,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep PyTorch to one thread inside.

    The matrices are so small that threads mostly wait for each other; where another program keeps
    a core busy, two threads took thirty times as long as one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def fit(
    clips: Clips,
    targets: NDArray[np.int64],
    num_classes: int,
    train: NDArray[np.int64],
    val: NDArray[np.int64],
    config: Config,
    device: torch.device,
    on_epoch: Callable[[Epoch, bool], None],
) -> tuple[AVARNet, list[Epoch]]:
    """Train a model and return it as it was in its best epoch, with the history.

    What is validated and kept is the running average of the weights. The best epoch is the one of
    the highest macro recall on the validation clips (where these lean to one class, accuracy would
    prefer a model that only knows that one), and of equals the one of the lowest loss.

    Args:
        clips: features of all clips.
        targets: (clips,) class of each.
        num_classes: number of classes.
        train, val: which clips train, and which pick the best epoch.
        config: settings, ``layers`` settled.
        device: where to train.
        on_epoch: called after each epoch with its figures and whether it is the best so far.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    model = build(clips.sizes, num_classes, config)
    for name in clips.sizes:
        model.fusion.standardise(
            name,
            torch.from_numpy(clips.valid_rows(name, train)),
            torch.from_numpy(clips.changes(name, train)),
        )
    model.to(device)
    weights = None
    if config.class_weights:
        counts = np.bincount(targets[train], minlength=num_classes)
        weights = torch.tensor(len(train) / (num_classes * counts), dtype=torch.float32).to(device)
    batch_size = config.batch_size or batch_to_learn(len(train))
    optimiser = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    steps = max(MIN_STEPS, config.epochs * math.ceil(len(train) / batch_size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=steps, pct_start=max(WARM_UP, 2 / steps)
    )
    # the mean of the weights over the last quarter or so of training: on small data single epochs
    # differ more from each other than the settings do
    decay = max(0.0, 1 - 4 / steps)
    averaging = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=averaging)
    averaged = average.module
    assert isinstance(averaged, AVARNet)
    history: list[Epoch] = []
    best, best_state, stale = (-1.0, -math.inf), averaged.state_dict(), 0
    for number in range(1, config.epochs + 1):
        model.train()
        losses = []
        for chosen, batch in clips.batches(train, batch_size, rng):
            optimiser.zero_grad()
            logits, mask = _forward(model, batch, device)
            loss = LOSS[config.task](
                logits,
                mask,
                torch.from_numpy(targets[chosen]).to(device),
                config.smoothing_weight,
                config.smoothing_limit,
                weights,
                config.label_smoothing,
            )
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_LIMIT)
            optimiser.step()
            schedule.step()
            average.update_parameters(model)
            losses.append(float(loss.detach()))
        log_p, _ = score(averaged, clips, val, device, POOLING[config.task])
        truth = torch.from_numpy(targets[val])
        val_loss = float(F.nll_loss(torch.from_numpy(log_p), truth))
        predicted = log_p.argmax(1)
        epoch = Epoch(
            number,
            float(np.mean(losses)),
            val_loss,
            float((predicted == targets[val]).mean()),
            float(balanced_accuracy_score(targets[val], predicted)),
        )
        history.append(epoch)
        better = (epoch.val_recall, -val_loss) > best
        stale = 0 if better else stale + 1
        if better:
            best = (epoch.val_recall, -val_loss)
            best_state = {name: value.clone() for name, value in averaged.state_dict().items()}
        on_epoch(epoch, better)
        if stale >= config.patience:
            break
    averaged.load_state_dict(best_state)
    return averaged, history


@_one_thread()
@torch.no_grad()
def score(
    model: AVARNet,
    clips: Clips,
    indices: NDArray[np.int64],
    device: torch.device,
    pooling: Pooling = pool,
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Return the last stage's answers for some clips, in the order of `indices`.

    Returns:
        (clips, classes) log-probabilities of the clips, and for each clip (T, classes)
        probabilities of its snippets.
    """
    model.eval()
    whole = np.zeros((len(indices), model.num_classes), np.float32)
    snippets: list[NDArray[np.float32]] = [np.zeros((0, 0), np.float32)] * len(indices)
    place = {int(index): k for k, index in enumerate(indices)}
    for chosen, batch in clips.batches(indices, LARGEST_BATCH):
        logits, mask = _forward(model, batch, device)
        log_p = F.log_softmax(pooling(logits[-1], mask), dim=1).cpu().numpy()
        steps = F.softmax(logits[-1], dim=1).transpose(1, 2).cpu().numpy()
        for row, index in enumerate(chosen):
            whole[place[int(index)]] = log_p[row]
            snippets[place[int(index)]] = steps[row, : clips.lengths[index]]
    return whole, snippets


def _forward(model: AVARNet, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    mask = batch.mask.to(device)
    streams = {name: rows.to(device) for name, rows in batch.streams.items()}
    valid = {name: there.to(device) for name, there in batch.valid.items()}
    return model(streams, valid, mask), mask


def history_rows(fold: int, history: list[Epoch]) -> list[dict[str, float]]:
    """Return a history as rows of plain data."""
    return [{"fold": fold, **asdict(epoch)} for epoch in history]
