"""What training does on the device, against what it does on the CPU."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import train.fitting.restarts
from benchmarks.gpu_steps import CPU, Findings, Options
from features import Features
from train import Config
from train.data import Clips
from train.fitting.restarts import fit
from train.fitting.trainer import SplitIndices, TrainingSet
from train.inference import score
from train.losses import POOLING, mtcn_loss
from train.models.mtcn import MTCN

SIZES = {"video": 24, "audio": 16}
CLASSES, STRETCH = 3, 4  # the class is told by so many snippets of a clip
MOST_GRADIENT_ERROR = 1e-4  # norm of the difference, of the CPU's norm
MOST_STACK_ERROR = 1e-3
NEAR = 0.05  # of the CPU's accuracy


class Stopped(Exception):
    """Training that was interrupted."""


def run(options: Options, findings: Findings) -> None:
    """Compare gradients, a resumed run, a stack of models, and what is reached."""
    on_cpu, on_device = (gradients(device, options.tiny) for device in (CPU, options.device))
    error = float((on_cpu - on_device).norm() / on_cpu.norm())
    findings.add(
        "the MTCN's gradients: relative difference from the CPU's",
        f"{error:.1e}",
        f"{MOST_GRADIENT_ERROR:.0e}",
        error <= MOST_GRADIENT_ERROR,
    )
    clips, targets = world(60 if options.tiny else 240)
    data = TrainingSet(clips, targets, CLASSES, np.arange(len(targets)))
    splits = [
        SplitIndices(np.flatnonzero(train), np.flatnonzero(~train))
        for train in np.arange(len(targets)) % 5 != np.arange(5)[:, None]
    ]
    same = resumes(data, splits[:2], options)
    findings.add("a resumed run is the unbroken one, to the byte", same, "True", same)
    error = stack_error(data, splits, options.device)
    findings.add(
        "the first of five stacked models, against the same alone",
        f"{error:.1e}",
        f"{MOST_STACK_ERROR:.0e}",
        error <= MOST_STACK_ERROR,
    )
    for task in ("recognition", "detection"):
        ours, cpu = (
            accuracy(task, data, splits[0], device, options.tiny)
            for device in (options.device, CPU)
        )
        goal = f"{cpu:.3f} on the CPU, less {NEAR}"
        findings.add(f"{task}: held-out accuracy", f"{ours:.3f}", goal, ours >= cpu - NEAR)


def gradients(device: torch.device, tiny: bool) -> torch.Tensor:
    """Return the gradients of an MTCN's weights, one after the other, without dropout."""
    torch.manual_seed(0)
    width, time = (8, 20) if tiny else (2818, 240)
    model = MTCN(width, 10, layers=3 if tiny else 8, dropout=0).train()
    x, lengths = torch.randn(8, width, time), torch.randint(time // 2, time + 1, (8,))
    mask, targets = torch.arange(time)[None] < lengths[:, None], torch.arange(8)
    model, x, mask, targets = (each.to(device) for each in (model, x, mask, targets))
    of_weights = torch.autograd.grad(
        mtcn_loss(model(x, mask), mask, targets), [*model.parameters()]
    )
    return torch.cat([gradient.flatten() for gradient in of_weights]).cpu()


def world(count: int) -> tuple[Clips, NDArray[np.int64]]:
    """Return clips of three classes, and their classes."""
    rng = np.random.default_rng(0)
    shift = rng.normal(0, 2, (CLASSES, sum(SIZES.values())))
    clips = {}
    for number in range(count):
        length = int(rng.integers(20, 40))
        rows = rng.normal(0, 1, (length, sum(SIZES.values())))
        first = int(rng.integers(0, length - STRETCH))
        rows[first : first + STRETCH] += shift[number % CLASSES]
        parts = np.split(rows.astype(np.float16), [SIZES["video"]], axis=1)
        valid = {name: np.ones(length, bool) for name in SIZES}
        clips[str(number)] = Features(dict(zip(SIZES, parts, strict=True)), valid, 0.25, length / 4)
    return Clips(clips, list(clips), list(SIZES), {}), np.arange(count) % CLASSES


def resumes(data: TrainingSet, splits: list[SplitIndices], options: Options) -> bool:
    """Return whether training that is interrupted and resumed ends in the same weights."""
    train.fitting.restarts.SAVE_SECONDS = 0.0  # a checkpoint after each epoch
    config = Config(layers=5, epochs=3, patience=3, starts=1)
    checkpoint = options.folder / "checkpoint.safetensors"

    def stop(number: int, epoch: Any, best: bool) -> None:
        if epoch.epoch == 2:
            raise Stopped

    about = (data, splits, 0, config, options.device)
    whole = fit(*about)
    with suppress(Stopped):
        fit(*about, on_epoch=stop, checkpoint=checkpoint)
    if not checkpoint.exists():
        return False
    return all(
        torch.equal(value, other.state_dict()[name])
        for (one, _), (other, _) in zip(whole, fit(*about, checkpoint=checkpoint), strict=True)
        for name, value in one.state_dict().items()
    )


def stack_error(data: TrainingSet, splits: list[SplitIndices], device: torch.device) -> float:
    """Return how far the first of stacked models is from the same one alone; nothing is random."""
    config = Config(
        layers=5, epochs=1, dropout=0, input_dropout=0, stream_dropout=0,
        snippet_dropout=0, scene_dropout=0, offset_noise=0, time_warp=1,
        context_dropout=0, starts=1, batch_size=len(data.targets),
    )  # fmt: skip
    together, alone = (
        fit(data, some, 0, config, device)[0][0].state_dict() for some in (splits, splits[:1])
    )
    return max(
        float((together[name] - value).abs().max() / value.abs().max().clamp(min=1e-6))
        for name, value in alone.items()
    )


def accuracy(
    task: str,
    data: TrainingSet,
    split: SplitIndices,
    device: torch.device,
    tiny: bool,
) -> float:
    """Return the held-out accuracy; detection tells the first class from the others."""
    if task == "detection":
        data = replace(data, targets=(data.targets > 0).astype(np.int64), num_classes=2)
    config = Config(task=task, layers=4, epochs=1 if tiny else 10, starts=1)
    ((model, _),) = fit(data, [split], 0, config, device)
    scores = score(model, data.clips, split.val, device, POOLING[config.pooling])
    predicted = scores.log_probabilities.argmax(1)
    return float((predicted == data.targets[split.val]).mean())
