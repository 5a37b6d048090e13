"""Rows of each network on the device, against those of float32 on the CPU."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_steps import CPU, STEP_SECONDS, Findings, Options, sources
from extract.recipe import load_networks

Array = NDArray[np.floating]
LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.999}
SOUND_SECONDS = 28  # two windows that overlap


def run(options: Options, findings: Findings) -> None:
    """Compare both precisions, and what cuDNN would do with float32 by itself."""
    for stream, source in sources(options).items():
        expected = rows_of(load_networks({stream: source}, CPU, "fp32")[stream], batch_only=True)
        for precision, goal in LEAST_COSINE.items():
            network = load_networks({stream: source}, options.device, precision)[stream]
            found = rows_of(network)
            name = f"{stream}, {precision}"
            least = cosine(expected, found)
            findings.add(f"{name}: cosine", f"{least:.7f}", f"{goal}", least >= goal)
            compare_batches(name, network, found, findings)
            if precision == "fp32" and options.device.type == "cuda":
                with patch("torch.backends.cudnn.flags", lambda **_: nullcontext()):
                    rounded = rows_of(network)
                findings.add(f"{name} with TF32: cosine", f"{cosine(expected, rounded):.7f}")


def compare_batches(name: str, network: Any, found: dict[str, Array], findings: Findings) -> None:
    """Say which bytes of float16 depend on the batch, on the place in it, or on chance."""
    again = rows_of(network)
    same = all((again[kind] == found[kind]).all() for kind in found)
    findings.add(f"{name}: two equal runs give the same bytes", same, "True", same)
    if "batch" in found:
        stored = {kind: rows.astype(np.float16) for kind, rows in found.items()}
        for kind, what in (("alone", "alone and in a batch"), ("turned", "with the place in it")):
            apart = np.abs(stored[kind].astype(float) - stored["batch"])
            share, most = (apart > 0).mean(), apart.max()
            findings.add(f"{name}: values that differ {what}", f"{share:.3%}, at most {most:.1e}")


def rows_of(network: Any, batch_only: bool = False) -> dict[str, Array]:
    """Return the rows of a network: of frames together and alone, or of windows of sound."""
    rng = np.random.default_rng(0)
    if network.reads == "sound":
        from extract.audio_windows import SAMPLE_RATE, AudioWindows

        at = np.arange(SOUND_SECONDS * SAMPLE_RATE) / SAMPLE_RATE
        tone = np.sin(2 * np.pi * 200 * at * (1 + at / 14)) * (np.sin(3 * at) > 0)
        sound = (0.2 * tone + 0.02 * rng.normal(size=len(at))).astype(np.float32)
        listening = AudioWindows(network, round(SOUND_SECONDS / STEP_SECONDS), STEP_SECONDS)
        listening.add(0, sound)
        rows, valid = listening.finish()
        return {"windows": rows[valid]}
    clouds = rng.integers(0, 256, (64, 24, 32, 3), np.uint8).repeat(10, 1).repeat(10, 2)
    frames = [network.prepare([cloud] * len(network.prepare.instants)) for cloud in clouds]
    batch = network(frames)
    if batch_only:
        return {"batch": batch}
    alone = [network([frame]) for frame in frames[:8]]
    return {
        "batch": batch,
        "alone": np.concatenate([*alone, batch[8:]]),
        "turned": network(frames[::-1])[::-1],
    }


def cosine(expected: dict[str, Array], found: dict[str, Array]) -> float:
    """Return the least cosine of two rows."""
    least = 1.0
    for kind, one in expected.items():
        other = found[kind].astype(np.float64)
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        least = min(least, float(((one * other).sum(1) / lengths).min()))
    return least
