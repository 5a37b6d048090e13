"""The steps of `gpu.py`, a module each: its `run` adds what it finds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CPU = torch.device("cpu")
STEP_SECONDS = 0.25  # of a snippet


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        device: where to run what is compared with the CPU.
        tiny: small networks and few clips, to try the script itself.
        efficientnet: weights of EfficientNet-Lite0, or None.
        folder: for what is written.
    """

    device: torch.device
    tiny: bool
    efficientnet: Path | None
    folder: Path


class Findings:
    """The rows of a step, each written as soon as it is known."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def add(self, what: str, value: object, goal: str = "", met: bool | None = None) -> None:
        """Add a row; `met` says whether the goal is, if there is one."""
        row = {"what": what, "value": str(value), "goal": goal, "met": met}
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def timed(work: Callable[..., object], *args: object) -> float:
    """Return how many seconds a call takes, with what it has begun on a GPU."""
    start = time.perf_counter()
    work(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def sources(options: Options) -> dict[str, dict[str, Any]]:
    """Return the networks to try: stream -> its source."""
    random = {"weights": "random"}
    if options.tiny:
        sound, clip = _tiny_networks(options.folder)
        return {
            "video": {"name": "test_vit", **random},
            "audio": {"name": str(sound), **random},
            "clip": {"name": str(clip), **random},
        }
    lite: dict[str, Any] = {"backbone": "timm", "name": "tf_efficientnet_lite0", **random}
    if options.efficientnet:
        lite |= {"weights": "pretrained", "file": str(options.efficientnet)}
    return {
        "video": {"name": "mobilevit_s", **random},
        "audio": {"name": "facebook/wav2vec2-base", **random},
        "efficientnet": lite,
        "clip": random,
    }


def _tiny_networks(folder: Path) -> tuple[Path, Path]:
    """Write configurations of a Wav2Vec2 and a CLIP that run in no time."""
    from transformers import CLIPConfig, Wav2Vec2Config

    half = {"hidden_size": 32, "intermediate_size": 64}
    half |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    sound, clip = folder / "wav2vec2", folder / "clip"
    Wav2Vec2Config(
        **half, conv_dim=(32,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4
    ).save_pretrained(sound)
    CLIPConfig(
        text_config=half, vision_config={**half, "patch_size": 32}, projection_dim=16
    ).save_pretrained(clip)
    return sound, clip
