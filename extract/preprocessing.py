"""What becomes of frames before they leave the reading process; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Prepare(Protocol):
    """What becomes of a snippet's frames before they leave the reading process; picklable."""

    @property
    def instants(self) -> tuple[float, ...]:
        """When the frames are shown that it takes, in seconds after the snippet's middle."""
        ...

    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Turn a (H, W, 3) RGB frame for each instant into what the network takes."""
        ...


@dataclass(frozen=True)
class Preparation:
    """How a frame is brought to the size that a network reads: as timm does it for evaluation.

    Attributes:
        scale: pixels of the shorter edge after resizing.
        crop: (height, width) cut out of the middle.
        interpolation: a PIL resampling filter.
        instants: see `Prepare`.
    """

    scale: int
    crop: tuple[int, int]
    interpolation: int
    instants: tuple[float, ...] = (0.0,)

    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Turn one (H, W, 3) RGB frame into (*crop, 3)."""
        (frame,) = frames
        height, width = frame.shape[:2]
        short = min(height, width)
        size = (int(self.scale * width / short), int(self.scale * height / short))
        picture = Image.fromarray(frame).resize(size, Image.Resampling(self.interpolation))
        top = round((size[1] - self.crop[0]) / 2)
        left = round((size[0] - self.crop[1]) / 2)
        # where the crop is larger than the picture, PIL fills up with black, as torchvision does
        box = (left, top, left + self.crop[1], top + self.crop[0])
        return np.asarray(picture.crop(box))
