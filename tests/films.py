"""Films of flashes and clicks for the tests, and what the `ffmpeg` program makes of a file."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

FPS, SECONDS, SIZE = 25, 8, 64
SOUND_RATE, RATE = 48_000, 16_000  # Hz, of what is written and of what is compared
INSTANTS = (0.6, 1.8, 2.44, 4.6, 5.2, 7.0)  # seconds; of a flash and a click each
HOLE = (2.8, 4.2)  # seconds without sound
LATE = 1.3  # seconds after which late sound begins
# the codecs of picture and sound that are usual in a container
CODECS = {
    "mp4": ("libx264", "aac"),
    "mkv": ("libx264", "flac"),
    "webm": ("libvpx", "libopus"),
    "mov": ("libx264", "alac"),
    "ts": ("libx264", "mp2"),
    "flv": ("flv", "libmp3lame"),
    "avi": ("mpeg4", "libmp3lame"),
    "wmv": ("wmv2", "wmav2"),
}


def ffmpeg(*words: str | Path, given: bytes = b"", program: str = "ffmpeg") -> bytes:
    """Run `ffmpeg`, and return what it writes to standard output."""
    if shutil.which(program) is None:
        pytest.skip(f"no {program} on this machine, by which the reader is judged here")
    quiet = ["-v", "error", *([] if program == "ffprobe" else ["-nostdin", "-y"])]
    done = subprocess.run([program, *quiet, *map(str, words)], input=given, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def clicks(instants: tuple[float, ...] = INSTANTS, seconds: float = SECONDS) -> NDArray[np.float32]:
    """Return sound at `SOUND_RATE`, in which a burst of 8 ms is in the middle of each instant."""
    time = np.arange(round(seconds * SOUND_RATE)) / SOUND_RATE
    sound = 0.01 * np.sin(2 * np.pi * 150 * time)
    for instant in instants:
        near = np.abs(time - instant) < 0.004
        sound[near] += 0.8 * np.sin(2 * np.pi * 1500 * (time[near] - instant + 1 / 6000))
    return sound.astype(np.float32)


def film(
    path: Path, *options: str, late: float = 0.0, codecs: tuple[str, str] | None = None
) -> Path:
    """Write grey frames with a white one at each instant, and clicks at the same instants.

    Args:
        path: its suffix chooses the container.
        options: further ones of `ffmpeg`, for the output.
        late: seconds after which the sound begins; no click is before it.
        codecs: of picture and sound, instead of those of `CODECS`.
    """
    picture, sound = path.with_suffix(".gray"), path.with_suffix(".f32")
    frames = np.full((FPS * SECONDS, SIZE, SIZE), 40, np.uint8)
    frames[[round(instant * FPS) for instant in INSTANTS]] = 255
    frames.tofile(picture)
    clicks()[round(late * SOUND_RATE) :].tofile(sound)
    coded = codecs or CODECS[path.suffix[1:]]
    ffmpeg(
        *("-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{SIZE}x{SIZE}", "-r", FPS, "-i", picture),
        *("-itsoffset", late, "-f", "f32le", "-ar", SOUND_RATE, "-ac", 1, "-i", sound),
        *("-c:v", coded[0], "-pix_fmt", "yuv420p", "-bf", 0, "-b:v", "500k", "-c:a", coded[1]),
        *(*options, path),
    )
    return path


def remade(source: Path, target: Path, change: Callable[[Any], Any]) -> Path:
    """Copy a film's packets, those of the sound as `change` returns them; None leaves one out."""
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        streams = {s.index: made.add_stream_from_template(s) for s in given.streams}
        for packet in given.demux():
            if packet.dts is None:
                continue
            stream = streams[packet.stream_index]
            changed = change(packet) if packet.stream.type == "audio" else packet
            if changed is not None:
                changed.stream = stream
                made.mux(changed)
    return target


def holed(source: Path, target: Path, hole: tuple[float, float] = HOLE) -> Path:
    """Copy a film without the packets of sound in a hole."""
    start = frame_times(source)[0]

    def outside(packet: Any) -> Any:
        at = float(packet.pts * packet.time_base) - start
        return None if hole[0] <= at < hole[1] else packet

    return remade(source, target, outside)


def heard_by_ffmpeg(path: Path, track: int = 0, how: str = "async=1") -> NDArray[np.float32]:
    """Return a file's sound at `RATE`, from second zero of the container's clock on."""
    placed = f"aresample={RATE}:{how}:first_pts=0"
    output = ("-map", f"0:a:{track}", "-af", placed, "-ac", "1", "-f", "f32le", "-")
    return np.frombuffer(ffmpeg("-copyts", "-i", path, *output), np.float32)


def seen_by_ffmpeg(path: Path) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return when each frame is shown, as `frame_times`, and whether it is a flash."""
    given = ("-i", path, "-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", "gray", "-")
    grey = np.frombuffer(ffmpeg(*given), np.uint8).reshape(-1, SIZE * SIZE)
    times = frame_times(path)
    assert len(times) == len(grey)
    return times, grey.mean(1) > 128


def frame_times(path: Path) -> NDArray[np.float64]:
    """Return when each frame is shown, in seconds of the container's clock."""
    entries = ("-select_streams", "v:0", "-show_entries", "frame=best_effort_timestamp_time")
    found: Any = json.loads(ffmpeg(*entries, "-of", "json", path, program="ffprobe"))
    return np.array([float(frame["best_effort_timestamp_time"]) for frame in found["frames"]])


def peaks(sound: NDArray[np.float32], near: list[float]) -> list[float]:
    """Return where the middle of the burst near each instant is, in seconds; NaN if there is none.

    Args:
        sound: at `RATE`.
        near: seconds.
    """
    power = np.convolve(np.square(sound, dtype=np.float64), np.ones(128) / 128, "same")
    found = []
    for instant in near:
        low, high = (round((instant + by) * RATE) for by in (-0.2, 0.2))
        part = power[max(0, low) : max(0, high)]
        loud = len(part) > 0 and part.max() > 0.02
        found.append((max(0, low) + int(part.argmax())) / RATE if loud else np.nan)
    return found
