"""What a clip looks and sounds like, small enough for a report."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from extract.decoding.container import ClipError
from extract.decoding.messages import Failed, Files, Frame, Sound
from extract.decoding.reader import Reader
from extract.preprocessing import Preparation, Prepare

FRAMES = 4
HEIGHT, WIDTH = 90, 120  # pixels of each
LOUDNESS = 200  # stretches of a clip
SILENCE = 2.0**-15  # the least that 16 bits can hold; a silent track is often decoded to less


class Glimpse(NamedTuple):
    """Attributes: `picture`, some frames side by side, a JPEG; `loudness`, see `peaks`."""

    picture: bytes
    loudness: NDArray[np.float32]


def glimpse(
    reader: Reader, video: str | Path, audio: str | Path | None, duration: float
) -> Glimpse:
    """Read a clip once more, for people.

    Args:
        reader: that reads it, in its own process.
        video, audio: the clip's files, as for `Extractor`.
        duration: of the clip, in seconds.

    Raises:
        ClipError: nothing of the picture can be read.
    """
    resample = int(Image.Resampling.BILINEAR)
    prepare: dict[str, Prepare] = {"": Preparation(HEIGHT, (HEIGHT, WIDTH), resample)}
    strip = np.zeros((HEIGHT, FRAMES, WIDTH, 3), np.uint8)
    sound: list[NDArray[np.float32]] = []
    files = Files(Path(video), Path(audio) if audio else None)
    # the middles of its quarters
    for _, message in reader.read([files], duration / FRAMES, prepare):
        if isinstance(message, Frame) and message.snippet < FRAMES:
            strip[:, message.snippet] = message.pixels
        elif isinstance(message, Sound):
            sound.append(message.samples)
        elif isinstance(message, Failed):
            raise ClipError(message.reason)
    buffer = io.BytesIO()
    Image.fromarray(strip.reshape(HEIGHT, -1, 3)).save(buffer, "JPEG", quality=80)
    return Glimpse(buffer.getvalue(), peaks(sound))


def peaks(blocks: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the loudest sample of each of `LOUDNESS` stretches of equal length; none of silence.

    >>> peaks([np.linspace(-1, 0, 400, dtype=np.float32)])[:2].round(2)
    array([1.  , 0.99], dtype=float32)
    """
    whole = np.abs(np.concatenate(blocks)) if blocks else np.zeros(0, np.float32)
    stretches = np.array_split(whole, LOUDNESS) if whole.max(initial=0) > SILENCE else []
    return np.array([part.max() if len(part) else 0 for part in stretches], np.float32)
