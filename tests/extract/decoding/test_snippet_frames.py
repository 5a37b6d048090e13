"""Windows of frames: those that ffmpeg shows then, read once, whatever is read beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recorded import HEIGHT, WIDTH, number_of, numbers, record, times

from extract.decoding.child import read_clip
from extract.decoding.frames import CLOCK_SLACK
from extract.decoding.messages import Files, Frame, Request
from extract.preprocessing import FrameWindow, Preparation

STEP = 0.25
SIZE = (HEIGHT, WIDTH)


@dataclass(frozen=True)
class Counting(FrameWindow):
    """Notes how many frames it has made small, and how many of them are alive at once."""

    alive: list[object] = field(default_factory=list)

    def small(self, frame):  # type: ignore[no-untyped-def]
        self.alive.append(frame)
        return super().small(frame)


def window(frames: int, seconds: float) -> Counting:
    instants = tuple((n - (frames - 1) / 2) * seconds for n in range(frames))
    return Counting(SIZE, SIZE, False, instants)


def read(path: Path, **prepare: Preparation | FrameWindow) -> dict[str, dict[int, list[int]]]:
    """Return for each stream the numbers that the pictures of a snippet show."""
    found: dict[str, dict[int, list[int]]] = {stream: {} for stream in prepare}
    for message in read_clip(Request(Files(path), STEP, dict(prepare))):
        if isinstance(message, Frame):
            pictures = message.pixels if message.pixels.ndim == 4 else [message.pixels]
            found[message.stream][message.snippet] = [number_of(picture) for picture in pictures]
    return found


@pytest.mark.parametrize(("frames", "seconds"), [(16, 1 / 15), (5, 0.3), (8, 2.0)])
def test_a_window_is_around_its_snippet_or_moved_into_the_clip(
    tmp_path: Path, frames: int, seconds: float
) -> None:
    path = record(tmp_path / "a.mkv", "-c:v", "libx264", "-preset", "veryfast", "-bf", "3")
    eye = Preparation(HEIGHT, SIZE, Image.Resampling.BILINEAR)
    action = window(frames, seconds)
    found = read(path, action=action, video=eye)
    at, shown = times(path)["video"], numbers(path)
    at = at - at[0]
    for snippet in range(len(found["video"])):
        wanted = (snippet + 0.5) * STEP + np.array(action.instants)
        if wanted[-1] > at[-1]:
            wanted -= wanted[-1] - at[-1]
        if wanted[0] < 0:
            wanted -= wanted[0]
        expected = [shown[k] for k in np.searchsorted(at, wanted + CLOCK_SLACK) - 1]
        assert found["action"][snippet] == expected
    assert len(action.alive) <= len(at)  # each frame is made small once
    assert read(path, video=eye)["video"] == found["video"]
    assert read(path, action=window(frames, seconds))["action"] == found["action"]
