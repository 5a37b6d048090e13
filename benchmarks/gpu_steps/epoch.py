"""An epoch over clips of VAAR's length, on the device and on the CPU, with the same batches."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np

from benchmarks.gpu_steps import CPU, Findings, Options, timed
from features import Features
from train import Config
from train.data import Clips
from train.fitting.trainer import SplitIndices, Trainer, TrainingSet

LENGTHS = (20, 480)  # snippets
CLASSES = 10
STEPS = 20  # with one batch again and again


def run(options: Options, findings: Findings) -> None:
    """Measure an epoch; on a GPU also what of it is not the model's own."""
    data = clips(40 if options.tiny else 3000, 8 if options.tiny else 704)
    targets = np.arange(len(data.ids)) % CLASSES
    split = SplitIndices(np.arange(len(data.ids)), np.arange(CLASSES))
    training_set = TrainingSet(data, targets, CLASSES, np.arange(len(targets)))
    config = Config(stages=4, layers=3 if options.tiny else 8)
    seconds = {}
    for device in {options.device: None, CPU: None}:
        trainer = Trainer(training_set, [split], 0, config, device)
        plan = list(data.shuffled(split.train, trainer.batches, np.random.default_rng(1)))

        def steps(some: list[np.ndarray], trainer: Trainer = trainer) -> None:
            for indices in some:
                trainer.step([indices])

        steps(plan[:3])
        seconds[device.type] = timed(steps, plan)
        findings.add(
            f"an epoch on {device.type}", f"{seconds[device.type]:.2f} s, {len(plan)} steps"
        )
        if device.type == "cpu":
            continue
        makes = timed(lambda some: [data.batch(each) for each in some], plan)
        findings.add("  making its batches on the CPU, alone", f"{makes:.2f} s")
        made = data.batch(plan[0])
        for where, batch in (("made before", made), ("on the GPU", made.to(device))):
            with patch.object(data, "batch", lambda *_, batch=batch: batch):
                took = timed(steps, [plan[0]] * STEPS) / STEPS
            findings.add(f"  a step whose batch is {where}", f"{1000 * took:.1f} ms")
    if len(seconds) == 2:
        times = seconds["cpu"] / seconds[options.device.type]
        findings.add("the CPU's epoch takes so many times as long", f"{times:.1f}")


def clips(count: int, width: int) -> Clips:
    """Return clips of two streams, cut out of the same noise."""
    rng = np.random.default_rng(0)
    noise = {
        name: rng.standard_normal((4000, width)).astype(np.float16) for name in ("video", "audio")
    }
    made = {}
    for number in range(count):
        length, first = int(rng.integers(LENGTHS[0], LENGTHS[1] + 1)), int(rng.integers(0, 3500))
        rows = {name: values[first : first + length] for name, values in noise.items()}
        valid = {name: np.ones(length, bool) for name in noise}
        made[str(number)] = Features(rows, valid, 0.25, length / 4)
    return Clips(made, list(made), list(noise), {})
