"""How fast does the MTCN train from a store, against the public way and against its bound?

Goals, for clips as long as VAAR's (20 to 480 snippets of 640 + 768 values): an epoch takes a fifth
or less of the public MS-TCN trainer's (one .npy file for each clip, one clip for each step), 0.95
or more of its time is what the model itself takes when the same batches lie in memory, and the same
held-out score is reached in a third of the time or less. Twenty small models together (five folds,
four seeds) take far less than twenty times one.

Measured in one run on the same clips:

plain       MS-TCN with torch's own convolutions and dropout, Adam at 5e-4 as published, clip by
            clip, float32 values from one .npy each; what torch does with all cores
avarnet     the steps of `train_run`, from a store
in memory   the same steps with batches made before, so that nothing is read or padded

Plain and ours take turns, five times an epoch, as a machine has moods; plain in a process of its
own, with the C allocator as it comes.

Both models read the values and how they change from snippet to snippet, both standardised. The
classes of the clips are in a stretch of 8 snippets whose values are shifted; the score is the
accuracy on held-out clips, five times an epoch, and scoring is not in the times.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

sys.path[0] = str(Path(__file__).parents[1])  # a script beside this one has the name of a package

from features import Features, Recipe, Store, Writer  # noqa: E402
from manifests import Clip  # noqa: E402
from train import Config, train_run  # noqa: E402
from train.data import Batch, Clips  # noqa: E402
from train.fitting.automatic import layers_to_cover  # noqa: E402
from train.fitting.memory import keep_memory  # noqa: E402
from train.fitting.trainer import SplitIndices, Trainer, TrainingSet  # noqa: E402

SIZES = {"video": 640, "audio": 768}
CLASSES = 10
LENGTHS = (20, 480)
HELD_OUT = 300  # clips that are scored
POINTS = 5  # of the curve in an epoch
ROUNDS = 3  # of steps with and without reading, in turns
STRETCH = 8  # snippets that tell the class
SHIFT = 2.5  # of their values along the class's direction, in standard deviations of the noise
CHANGE_MEAN, CHANGE_DEVIATION = 2 / np.pi**0.5, (2 - 4 / np.pi) ** 0.5  # of the noise's changes
GOAL_EPOCH, GOAL_BOUND, GOAL_SCORE = 5.0, 0.95, 3.0
CPU = torch.device("cpu")
Curve = list[tuple[float, float]]  # seconds of training, accuracy
_plain: Iterator[tuple[float, float]]


def main() -> None:
    """Measure, print the table, and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=3, help="of the plain trainer; ours, twice")
    parser.add_argument("--plot", type=Path, help="where to draw the curves")
    options = parser.parse_args()
    out = Console(width=110)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        targets = make(folder, options.clips)
        store = Store(folder / "store")
        clips = Clips(store, list(store), list(SIZES), {})
        held_out = np.random.default_rng(1).permutation(len(targets)) < len(targets) // 5
        split = SplitIndices(np.flatnonzero(~held_out), np.flatnonzero(held_out)[:HELD_OUT])
        config = Config(layers=layers_to_cover(clips.lengths), epochs=2 * options.epochs)
        out.print(
            f"{options.clips} clips, {clips.lengths.sum():,} snippets; {config.stages} stages of "
            f"{config.layers} layers; {torch.get_num_threads()} threads; torch {torch.__version__}"
        )
        where = np.array([int(clip_id) for clip_id in clips.ids])
        data = TrainingSet(clips, targets[where], CLASSES, where)
        keep_memory()  # as `fit` does
        about = (folder / "npy", targets, split, config)
        with ProcessPoolExecutor(1, get_context("spawn"), begin_plain, about) as child:
            steps = of_ours(data, split, config)
            plain, ours = [], []
            for _ in range(POINTS * options.epochs):
                plain.append(child.submit(go_on).result())
                ours += [next(steps), next(steps)]
        theirs, epoch = plain[-1][0] / options.epochs, ours[-1][0] / config.epochs
        memory = epoch * in_memory(data, split, config)
        goal = 0.98 * min(max(a for _, a in ours), max(a for _, a in plain))
        first, second = (next(t for t, a in curve if a >= goal) for curve in (ours, plain))
        together, single = many()
    table = Table("", "plain", "avarnet", "in memory", "ratio", "goal")
    table.add_row(
        "epoch, s", f"{theirs:.2f}", f"{epoch:.2f}", f"{memory:.2f}",
        f"{theirs / epoch:.2f} x plain", f"{GOAL_EPOCH}",
    )  # fmt: skip
    table.add_row("", "", "", "", f"{memory / epoch:.3f} of the bound", f"{GOAL_BOUND}")
    table.add_row(
        f"to {goal:.3f}, s", f"{second:.1f}", f"{first:.1f}", "", f"{second / first:.2f} x plain",
        f"{GOAL_SCORE}",
    )  # fmt: skip
    out.print(table)
    out.print(
        f"20 models of 180 clips of 8 to 10 snippets: {together:.1f} s; one alone: {single:.1f} s, "
        f"twenty times that: {20 * single:.0f} s: {20 * single / together:.1f} x"
    )
    if options.plot:
        draw(ours, plain, options.plot)


def make(folder: Path, count: int) -> NDArray[np.int64]:
    """Write a store and .npy files of the same clips; return their classes."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(CLASSES, sum(SIZES.values()))).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True) / np.sqrt(len(SIZES))
    targets = np.arange(count) % CLASSES
    (folder / "npy").mkdir(parents=True)
    recipe = Recipe(0.25, "fp32", {name: {"features": size} for name, size in SIZES.items()})
    with Writer(folder / "store", recipe) as writer:
        for n, target in enumerate(targets):
            length = int(rng.integers(LENGTHS[0], LENGTHS[1] + 1))
            rows = rng.standard_normal((length, sum(SIZES.values())), dtype=np.float32)
            first = int(rng.integers(0, length - STRETCH + 1))
            rows[first : first + STRETCH] += 8 * SHIFT * directions[target]
            np.save(folder / "npy" / f"{n}.npy", rows)
            parts = np.split(rows.astype(np.float16), [SIZES["video"]], axis=1)
            features = Features(
                dict(zip(SIZES, parts, strict=True)),
                {name: np.ones(length, bool) for name in SIZES},
                0.25,
                length / 4,
            )
            writer.add(str(n), features)
    return targets


def of_ours(
    data: TrainingSet, split: SplitIndices, config: Config
) -> Iterator[tuple[float, float]]:
    """Train, and yield a point of the curve `POINTS` times an epoch."""
    trainer = Trainer(data, [split], 0, config, CPU)
    seconds = 0.0
    while True:
        plan = list(data.clips.shuffled(split.train, trainer.batches, trainer.rng))
        for part in np.array_split(np.arange(len(plan)), POINTS):
            seconds += timed(trainer.step, [[plan[number]] for number in part])
            yield seconds, trainer.validate(0, 0.0).val_accuracy


def in_memory(data: TrainingSet, split: SplitIndices, config: Config) -> float:
    """Return the share of a step's time that is left where its batches were made before."""
    trainer = Trainer(data, [split], 0, replace(config, epochs=50), CPU)
    clips = data.clips
    plan = list(clips.shuffled(split.train, trainer.batches, trainer.rng))[:20]
    ready = {indices.tobytes(): clips.batch(indices) for indices in plan}

    def made(indices: Any) -> Batch:
        return ready[np.asarray(indices).tobytes()]

    seconds = {clips.batch: 0.0, made: 0.0}
    for _ in range(ROUNDS):
        for indices in plan:
            for batch in seconds:
                clips.batch = batch  # type: ignore[method-assign]
                seconds[batch] += timed(trainer.step, [[indices]])
    full, memory = seconds.values()
    return memory / full


class Plain(nn.Module):
    """MS-TCN as it is published, with torch's own layers."""

    def __init__(self, features: int, stages: int, layers: int, channels: int = 64) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for stage in range(stages):
            self.stages.append(
                nn.ModuleDict(
                    {
                        "enter": nn.Conv1d(CLASSES if stage else features, channels, 1),
                        "dilated": nn.ModuleList(
                            nn.Conv1d(channels, channels, 3, padding=2**k, dilation=2**k)
                            for k in range(layers)
                        ),
                        "mix": nn.ModuleList(
                            nn.Conv1d(channels, channels, 1) for _ in range(layers)
                        ),
                        "leave": nn.Conv1d(channels, CLASSES, 1),
                    }
                )
            )
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        for stage in self.stages:
            x = stage["enter"](F.softmax(outputs[-1], 1) if outputs else x)
            for dilated, mix in zip(stage["dilated"], stage["mix"], strict=True):
                x = x + self.dropout(mix(F.relu(dilated(x))))
            outputs.append(stage["leave"](x))
        return outputs


def of_plain(
    folder: Path, targets: NDArray[np.int64], split: SplitIndices, config: Config
) -> Iterator[tuple[float, float]]:
    """Train clip by clip from .npy files, and yield points as `of_ours` does."""
    torch.manual_seed(0)
    model = Plain(2 * sum(SIZES.values()), config.stages, config.layers)
    optimiser = torch.optim.Adam(model.parameters(), 5e-4)
    order = np.random.default_rng(0)
    seconds = 0.0

    def read(index: int) -> Tensor:
        rows = torch.from_numpy(np.load(folder / f"{index}.npy")).T[None]
        changes = (rows.diff(dim=2).abs() - CHANGE_MEAN) / CHANGE_DEVIATION
        return torch.cat([rows, F.pad(changes, (1, 0))], 1)

    def step(index: int) -> None:
        target = torch.tensor([targets[index]])
        loss = torch.zeros(())
        for logits in model(read(index)):
            loss = loss + F.cross_entropy(logits.mean(2), target)
            log_p = F.log_softmax(logits, 1)
            change = F.mse_loss(log_p[..., 1:], log_p.detach()[..., :-1], reduction="none")
            loss = loss + 0.15 * change.clamp(max=16).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    while True:
        for part in np.array_split(order.permutation(split.train), POINTS):
            model.train()
            seconds += timed(step, part)
            model.eval()
            with torch.no_grad():
                right = [
                    int(model(read(i))[-1].mean(2).argmax()) == targets[i]
                    for i in split.val.tolist()
                ]
            yield seconds, float(np.mean(right))


def begin_plain(*about: Any) -> None:
    """Begin to train the plain model in this process."""
    global _plain
    _plain = of_plain(*about)


def go_on() -> tuple[float, float]:
    """Train the plain model of this process until the next point of the curve."""
    return next(_plain)


def many() -> tuple[float, float]:
    """Return seconds of 5 folds x 4 seeds of small clips, and of one model alone."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = Recipe(0.25, "fp32", {name: {"features": size} for name, size in SIZES.items()})
        clips = []
        with Writer(folder / "store", recipe) as writer:
            for n in range(225):
                length = int(rng.integers(8, 11))
                rows = {
                    name: rng.standard_normal((length, size)).astype(np.float16)
                    for name, size in SIZES.items()
                }
                valid = {name: np.ones(length, bool) for name in SIZES}
                writer.add(str(n), Features(rows, valid, 0.25, length / 4))
                split = "train" if n % 5 else "test"
                clips.append(Clip(str(n), "x.mp4", ("ab"[n // 5 % 2],), split=split))
        store = Store(folder / "store")

        def train(config: Config) -> None:
            path = folder / f"{config.seeds} seeds"
            train_run(clips, store, path, config, processes=torch.get_num_threads())

        single = timed(train, [Config(epochs=20, patience=20)])
        together = timed(train, [Config(epochs=20, patience=20, folds=5, seeds=4)])
    return together, single


def timed(work: Callable[[Any], object], each: Iterable[Any]) -> float:
    """Return how many seconds some work takes for all of these."""
    start = time.perf_counter()
    for one in each:
        work(one)
    return time.perf_counter() - start


def draw(ours: Curve, plain: Curve, file: Path) -> None:
    """Draw accuracy over seconds."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(6, 3.5), layout="constrained")).subplots()
    for name, curve in (("avarnet", ours), ("plain", plain)):
        axes.plot(*zip(*curve, strict=True), marker=".", label=name)
    axes.set(xscale="log", xlabel="seconds of training", ylabel="held-out accuracy")
    axes.legend(frameon=False)
    figure.savefig(file)


if __name__ == "__main__":
    main()
