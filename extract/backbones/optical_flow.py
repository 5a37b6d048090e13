"""Motion by optical flow: an example of a third stream, and of how a backbone is added.

A row says how fast what is seen moves, into which direction, and where: histograms of oriented
optical flow (Laptev et al., CVPR 2008) of the dense flow by inverse search (Kroeger et al., ECCV
2016; OpenCV's) between two frames. Nothing in it is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    import torch

SIDE = 128  # pixels; the whole picture is squeezed into a square
CELLS = 4  # by 4, over the picture
DIRECTIONS = 8
APART = 0.1  # seconds from one frame to the other


@dataclass(frozen=True)
class Pair:
    """Two grey pictures, shortly before and after the middle of the snippet."""

    instants: tuple[float, ...] = (-APART / 2, APART / 2)

    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Turn two (H, W, 3) RGB frames into (2, SIDE, SIDE)."""
        grey = (Image.fromarray(f).convert("L").resize((SIDE, SIDE)) for f in frames)
        return np.stack([np.asarray(picture) for picture in grey])


class Flow:
    """A `FrameBackbone` without weights: (cells x directions) speeds, in pictures a second.

    Args:
        source: nothing of it is used.
        device: it always works on the processor.
        precision: likewise.
    """

    reads: Literal["frames"] = "frames"
    features = CELLS * CELLS * DIRECTIONS
    prepare = Pair()

    def __init__(self, source: dict[str, Any], device: torch.device, precision: str) -> None:
        import cv2  # the reading process imports this module, and needs no OpenCV

        cv2.setNumThreads(1)  # the workers are the parallelism
        flow: Any = cv2  # its types leave some of it out
        self._dense = flow.DISOpticalFlow_create(flow.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.recipe = {
            "model": "histograms of optical flow by dense inverse search, medium",
            "features": self.features,
            "side": SIDE,
            "cells": CELLS,
            "directions": DIRECTIONS,
            "seconds_apart": APART,
        }

    def __call__(self, prepared: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Turn pairs of grey pictures into (n, features)."""
        return np.stack([self._histograms(*pair) for pair in prepared])

    def _histograms(
        self, before: NDArray[np.uint8], after: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        right, down = np.moveaxis(self._dense.calc(before, after, None), 2, 0)
        speed = np.hypot(right, down) / (SIDE * APART)
        turn = np.round(np.arctan2(down, right) / (2 * np.pi) * DIRECTIONS)
        direction = turn.astype(np.int64) % DIRECTIONS
        across = np.arange(SIDE) * CELLS // SIDE
        cell = across[:, None] * CELLS + across
        bins = (cell * DIRECTIONS + direction).ravel()
        total = np.bincount(bins, weights=speed.ravel(), minlength=self.features)
        return (total / (SIDE / CELLS) ** 2).astype(np.float32)
