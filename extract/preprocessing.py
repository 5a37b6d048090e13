"""What becomes of frames before they leave the reading process; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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


@dataclass(frozen=True)
class FrameWindow:
    """A `Prepare` whose frames reach beyond the snippet: each is made small as soon as it is read.

    At the ends of a clip the window is moved into it; in a shorter one, the last frame stays.

    Attributes:
        resize: pixels of the shorter edge, or (height, width).
        crop: (height, width) cut out of the middle.
        antialias: whether all pixels count in making a frame smaller, as PIL has it, or only those
            next to each point, as torchvision's video models were trained.
        instants: see `Prepare`.
    """

    resize: tuple[int, ...]
    crop: tuple[int, int]
    antialias: bool
    instants: tuple[float, ...]

    def small(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn a (H, W, 3) RGB frame into (*crop, 3)."""
        height, width = frame.shape[:2]
        if len(self.resize) == 1:
            (edge,), short = self.resize, min(height, width)
            tall, wide = int(edge * height / short), int(edge * width / short)
        else:
            tall, wide = self.resize
        if self.antialias:
            picture = Image.fromarray(frame).resize((wide, tall), Image.Resampling.BILINEAR)
        else:
            picture = Image.fromarray(_between_pixels(frame, tall, wide))
        top, left = round((tall - self.crop[0]) / 2), round((wide - self.crop[1]) / 2)
        return np.asarray(picture.crop((left, top, left + self.crop[1], top + self.crop[0])))

    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Turn what `small` made of the frames into (frames, *crop, 3)."""
        return np.stack(frames)


def _between_pixels(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Bring a frame to a size by bilinear interpolation between the pixels next to each point."""

    def places(count: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Any]:
        at = np.maximum((np.arange(count) + 0.5) * size / count - 0.5, 0)
        low = at.astype(np.int64)
        return low, np.minimum(low + 1, size - 1), (at - low).astype(np.float32)

    above, below, down = places(height, frame.shape[0])
    left, right, along = places(width, frame.shape[1])
    along = along[:, None]
    rows = [
        frame[part][:, left] * (1 - along) + frame[part][:, right] * along
        for part in (above, below)
    ]
    mixed = rows[0] * (1 - down[:, None, None]) + rows[1] * down[:, None, None]
    return np.asarray(np.rint(mixed), np.uint8)
