"""The ffmpeg program as what tests compare with, and the media that it makes for them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

BITS = 8
WIDTH, HEIGHT = 16 * BITS, 64  # of a numbered frame
RATE = 25  # frames a second


def ffmpeg(*words: object, given: bytes = b"") -> tuple[bytes, str]:
    """Run ffmpeg with `given` on its standard input; return what it writes there and says."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("what is right comes from the ffmpeg program, which is not installed")
    command = ["ffmpeg", "-y", *map(str, words)]
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    output = done.stderr.decode(errors="replace")
    assert done.returncode == 0, output
    return done.stdout, output


def numbered(number: int) -> NDArray[np.uint8]:
    """Return a picture that shows its number in black and white bars."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(BITS):
        picture[:, 16 * bit : 16 * (bit + 1)] = 255 * (number >> bit & 1)
    return picture


def number_of(picture: NDArray[np.uint8]) -> int:
    """Return the number that a picture shows."""
    width = picture.shape[1] / BITS
    bars = (
        picture[:, round(width * (bit + 0.25)) : round(width * (bit + 0.75))].mean() > 128
        for bit in range(BITS)
    )
    return sum(1 << bit for bit, white in enumerate(bars) if white)


def record(path: Path, *how: object, frames: int = 150, sound: bool = True) -> Path:
    """Write numbered frames, with a tone; `how` are ffmpeg's options of the output."""
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", RATE]
    tone = ["-f", "lavfi", "-i", f"sine=d={frames / RATE}"] if sound else []
    pictures = b"".join(numbered(number % (1 << BITS)).tobytes() for number in range(frames))
    ffmpeg(*source, "-i", "-", *tone, "-pix_fmt", "yuv420p", *how, path, given=pictures)
    return path


def join(path: Path, *parts: Path) -> Path:
    """Write files one behind the other."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def times(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return when ffmpeg has the frames of video and audio, in seconds from the file's start."""
    filters = ["-vf", "showinfo", "-af", "ashowinfo", "-fps_mode", "passthrough"]
    _, output = ffmpeg("-i", path, *filters, "-f", "null", "-")
    return {
        kind: np.array(re.findall(rf"_{name}_.*pts_time: *(-?[\d.]+)", output), float)
        for kind, name in (("video", "showinfo"), ("audio", "ashowinfo"))
    }


def numbers(path: Path) -> list[int]:
    """Return the numbers of the frames that ffmpeg gets out of a file, in its order."""
    size = ["-vf", f"scale={WIDTH}:{HEIGHT}", "-fps_mode", "passthrough", "-pix_fmt", "rgb24"]
    raw, _ = ffmpeg("-i", path, "-map", "0:v:0", *size, "-f", "rawvideo", "-")
    return [number_of(p) for p in np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)]
