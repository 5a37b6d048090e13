"""The state of a training in a file, from which it resumes to the byte."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from features import FeatureError
from features.store_files import size_of
from train.config import TrainError
from train.fitting.history import Epoch
from train.run_files import write_run_file

if TYPE_CHECKING:
    from train.fitting.trainer import Trainer

WRONG = (KeyError, ValueError, TypeError, RuntimeError)  # what a damaged one may raise


def save_checkpoint(trainer: Trainer, file: Path) -> None:
    """Write all that the coming epochs depend on, at once or not at all."""
    optimiser = trainer.optimiser.state_dict()
    tensors = {
        f"{kind}/{name}": value.detach()
        for kind, values in _weights(trainer).items()
        for name, value in values.items()
    }
    tensors |= {
        f"optimiser/{number}/{name}": value
        for number, values in optimiser["state"].items()
        for name, value in values.items()
    }
    tensors["random"] = torch.get_rng_state()
    if trainer.device.type == "cuda":
        tensors["random_cuda"] = torch.cuda.get_rng_state(trainer.device)
    elif trainer.device.type == "mps":
        tensors["random_mps"] = torch.mps.get_rng_state()
    rest = {
        "groups": optimiser["param_groups"],
        "schedule": trainer.schedule.state_dict(),
        "rng": trainer.rng.bit_generator.state,
        "steps": trainer.steps,
        "stale": trainer.stale,
        "histories": [[asdict(epoch) for epoch in history] for history in trainer.histories],
    }
    about = {"state": json.dumps(rest)}
    content = safetensors.torch.save({n: t.contiguous() for n, t in tensors.items()}, about)
    write_run_file(file, content)


def load_checkpoint(trainer: Trainer, file: Path) -> None:
    """Continue from what `save_checkpoint` wrote.

    Raises:
        TrainError: it cannot be read, or is of other models.
    """
    try:
        size_of(file)  # no link and no pipe
        with safetensors.safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            rest = json.loads(opened.metadata()["state"])
        with torch.no_grad():
            for kind, values in _weights(trainer).items():
                for name, value in values.items():
                    value.copy_(tensors[f"{kind}/{name}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser/"):
                _, number, name = key.split("/")
                moments.setdefault(int(number), {})[name] = value
        trainer.optimiser.load_state_dict({"state": moments, "param_groups": rest["groups"]})
        trainer.schedule.load_state_dict(rest["schedule"])
        trainer.rng.bit_generator.state = rest["rng"]
        trainer.steps, trainer.stale = rest["steps"], rest["stale"]
        trainer.histories = [[Epoch(**row) for row in history] for history in rest["histories"]]
        torch.set_rng_state(tensors["random"])
        if trainer.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random_cuda"], trainer.device)
        elif trainer.device.type == "mps":
            torch.mps.set_rng_state(tensors["random_mps"])
    except (FeatureError, OSError, SafetensorError, *WRONG) as error:
        raise TrainError(
            f"{file}: a training cannot resume from it ({error}); delete it to train these models "
            "from the beginning"
        ) from error


def _weights(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    return {"params": trainer.stack.params, "average": trainer.average, "best": trainer.best}
