"""Which arithmetic pays: bfloat16 where it is faster here and the features stay what they are."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from dask.distributed import KilledWorker
from numpy.typing import NDArray

from extract.backbones.base import FrameBackbone, SoundBackbone
from extract.cluster.cluster import Cluster
from extract.cluster.versions import ClusterError
from extract.decoding.sound_placement import SAMPLE_RATE
from extract.device import pick_device
from extract.frame_batches import FRAMES_PER_BATCH
from extract.preprocessing import FrameWindow
from extract.recipe import load_networks

SAME = 0.999  # cosine of each row of bfloat16 with that of float32, at the least
FASTER = 1.1  # times, to be worth features that others cannot mix with theirs
ROUNDS = 3


class Choice(NamedTuple):
    """A precision, and why."""

    precision: str
    why: str


def choose_precision(
    source: dict[str, dict[str, Any]], device: str = "auto", cluster: Cluster | None = None
) -> Choice:
    """Run the networks of a recipe's `source` in both precisions, and choose.

    Args:
        source: see `Recipe`.
        device: ``auto`` (CUDA, then Apple's MPS, then the CPU) or a torch device.
        cluster: where the work will be: of other machines, a single worker measures.

    Raises:
        WeightsError: a network cannot be loaded.
        ClusterError: the cluster cannot be used, or the worker dies of it.
    """
    if cluster is not None and cluster.scheduler != "local":
        with replace(cluster, workers=1, adapt=None).client(1) as client:
            try:
                choice: Choice = client.submit(_on_a_worker, source, device, pure=False).result()
            except KilledWorker as error:
                raise ClusterError(
                    "the worker died that was to measure which precision is faster; has it memory "
                    "enough? Or name one: --precision fp32, or bf16"
                ) from error
        return choice
    where = pick_device(device)
    processor = torch.backends.cpu.get_cpu_capability()
    if where.type == "cpu" and processor in ("DEFAULT", "AVX2") and platform.machine() == "x86_64":
        return Choice("fp32", f"this processor has no arithmetic of bf16 ({processor})")
    seconds, rows = {}, {}
    for precision in ("fp32", "bf16"):
        networks = load_networks(source, where, precision)
        runs = [_sample(network) for network in networks.values()]
        rows[precision] = [run() for run in runs]  # also warms up
        seconds[precision] = sum(min(_timed(run) for _ in range(ROUNDS)) for run in runs)
    likeness = min(map(_likeness, rows["fp32"], rows["bf16"]))
    gain = seconds["fp32"] / seconds["bf16"]
    why = f"on this {where.type}, bf16 is {gain:.2f} x as fast, and its cosine {likeness:.5f}"
    return Choice("bf16" if gain >= FASTER and likeness >= SAME else "fp32", why)


def _on_a_worker(source: dict[str, dict[str, Any]], device: str) -> Choice:
    torch.set_num_threads(1)  # as when it extracts
    choice = choose_precision(source, device)
    return choice._replace(why=f"measured by a worker on {platform.node()}: {choice.why}")


def _sample(network: FrameBackbone | SoundBackbone) -> Callable[[], NDArray[np.float32]]:
    """Return the network's work on soft clouds, or on five seconds of noise that swells."""
    rng = np.random.default_rng(0)
    if network.reads == "sound":
        swell = np.linspace(0, 0.3, 5 * SAMPLE_RATE)
        window = (rng.normal(0, 1, len(swell)) * swell).astype(np.float32)
        return lambda: network(window[None])[0]
    clouds = rng.integers(0, 256, (FRAMES_PER_BATCH, 24, 32, 3), np.uint8).repeat(10, 1)
    prepare = network.prepare
    pictures = [
        prepare.small(cloud) if isinstance(prepare, FrameWindow) else cloud for cloud in clouds
    ]
    frames = [prepare([picture] * len(prepare.instants)) for picture in pictures]
    return lambda: network(frames)


def _timed(run: Callable[[], object]) -> float:
    before = time.perf_counter()
    run()
    return time.perf_counter() - before


def _likeness(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    present = lengths > 0  # rows of flow are zeros where nothing moves
    return float(((one * other).sum(1)[present] / lengths[present]).min(initial=1.0))
