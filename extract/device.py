"""Where the networks run, and what it says when it cannot run them."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager

import joblib
import torch

from manifests import AvarnetError


class DeviceError(AvarnetError):
    """A device that cannot run the networks; the message says why, and the way out."""


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        DeviceError: this machine has no such device, or torch cannot use it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise DeviceError(
            f"--device {name}: torch {torch.__version__} can use {gpus} GPUs on {platform.node()}; "
            "'avarnet doctor' there says why, or take --device auto"
        )
    return device


def reading_processes(device: torch.device) -> int:
    """Return how many processes should read clips for networks on a device.

    On a CPU the networks are slower than one process reads. A GPU is faster than many: it gets its
    share of this machine's cores.
    """
    if device.type == "cpu":
        return 1
    cores: int = joblib.cpu_count()
    return max(1, cores // max(1, torch.cuda.device_count()) - 1)  # one for the networks


@contextmanager
def running_on(device: torch.device) -> Iterator[None]:
    """Raise a `DeviceError` where the device runs out of memory, or fails."""
    try:
        yield
    except RuntimeError as error:
        if device.type != "cuda" or not re.search("CUDA|out of memory", str(error)):
            raise
        where = f"the GPU {device} of {platform.node()}"
        if "out of memory" in str(error):
            raise DeviceError(
                f"{where} is full: the networks need more memory than other programs leave. Wait "
                "for them (nvidia-smi lists them), or take another GPU: --device cuda:1, or "
                "CUDA_VISIBLE_DEVICES"
            ) from error
        why = str(error).splitlines()[0].rstrip(".")
        raise DeviceError(
            f"{where} failed ({why}); run the same command again; if it fails there again, take "
            "another GPU or --device cpu"
        ) from error
