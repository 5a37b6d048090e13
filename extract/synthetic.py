"""Small synthetic videos with sound, for the demonstration and the tests.

Each class of VAAR has a picture and a sound of its own; colours, places, pitch, loudness and the
moment of the event differ from clip to clip, so that no single value gives a class away.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from extract.decoding.container import ffmpeg_name

WIDTH, HEIGHT, FPS = 160, 120, 12
SOUND_RATE = 44_100  # Hz
SECONDS = 2.0
CLIPS_PER_CLASS = 8
SILENT_EVERY = 7  # each seventh clip has no sound track


class Look(NamedTuple):
    """What a class looks and sounds like."""

    discs: int  # moving discs
    radius: float  # of a disc, share of the height
    speed: float  # of a disc, picture heights per second
    shake: float  # how much it trembles, share of the height
    flash: float  # brightness added after the event, fading
    sirens: bool  # alternating red and blue halves
    tone: float  # Hz
    sweep: float  # how far the tone moves, share of it
    beat: float  # changes of loudness per second
    noise: float  # share of noise in the sound
    burst: float  # loudness of a bang at the event


LOOKS = {
    "Abuse": Look(2, 0.16, 0.1, 0.10, 0.0, False, 110, 0.0, 3.0, 0.3, 0.0),
    "Baby cry": Look(1, 0.12, 0.0, 0.04, 0.0, False, 450, 0.3, 1.2, 0.0, 0.0),
    "Brawling": Look(6, 0.12, 0.9, 0.12, 0.0, False, 220, 0.1, 6.0, 0.6, 0.0),
    "Crash": Look(1, 0.28, 1.4, 0.0, 0.4, False, 70, 0.0, 0.0, 0.2, 1.0),
    "Explosion": Look(0, 0.0, 0.0, 0.0, 2.0, False, 40, 0.0, 0.0, 0.8, 2.0),
    "Intruder": Look(1, 0.22, 0.25, 0.0, 0.0, False, 2500, 0.0, 0.7, 0.1, 0.0),
    "Normal": Look(0, 0.0, 0.0, 0.0, 0.0, False, 60, 0.0, 0.0, 0.05, 0.0),
    "Pain": Look(1, 0.2, 0.0, 0.15, 0.0, False, 800, 0.5, 0.5, 0.1, 0.0),
    "Police siren": Look(0, 0.0, 0.0, 0.0, 0.0, True, 900, 0.4, 0.0, 0.0, 0.0),
    "Vandalism": Look(9, 0.05, 1.2, 0.02, 0.2, False, 3500, 0.2, 4.0, 0.7, 0.4),
}


def make_videos(folder: Path) -> None:
    """Write the demonstration's clips as ``folder/CLASS/NUMBER.mp4``; those there are kept."""
    for kind, name in enumerate(LOOKS):
        for number in range(CLIPS_PER_CLASS):
            seed = kind * CLIPS_PER_CLASS + number
            path = folder / name / f"{number:02d}.mp4"
            if not path.exists():
                make_clip(path, name, seed, sound=seed % SILENT_EVERY != 0)


def make_clip(
    path: Path, name: str, seed: int, seconds: float = SECONDS, sound: bool = True
) -> Path:
    """Write one H.264 + AAC clip of the class `name` and return its path.

    Args:
        path: of the file.
        name: of a class.
        seed: decides on all that is random.
        seconds: its length.
        sound: whether it has a sound track.
    """
    rng = np.random.default_rng(seed)
    look, event = LOOKS[name], rng.uniform(0.3, 0.6) * seconds
    waveform = _waveform(look, event, seconds, rng) if sound else None
    return write_video(path, _pictures(look, event, seconds, rng), FPS, waveform)


def write_video(
    path: Path,
    pictures: NDArray[np.uint8],
    fps: int,
    waveform: NDArray[np.float32] | None = None,
    codec: str = "libx264",
    sound_codec: str = "aac",
    sound_rate: int = SOUND_RATE,
) -> Path:
    """Write an MP4, which appears under its name only when it is whole.

    Args:
        path: of the file.
        pictures: (frames, H, W, 3) RGB.
        fps: frames a second.
        waveform: (samples,) mono; None for no sound track.
        codec: FFmpeg's name of an encoder.
        sound_codec: likewise.
        sound_rate: samples of `waveform` a second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with av.open(ffmpeg_name(temporary), "w", format="mp4") as container:
        video: Any = container.add_stream(codec, rate=fps)
        video.height, video.width = pictures.shape[1:3]
        video.pix_fmt = "yuv420p"
        audio: Any = None
        if waveform is not None:
            audio = container.add_stream(sound_codec, rate=sound_rate)
            audio.layout = "mono"
        for picture in pictures:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        if audio is not None and waveform is not None:
            for first in range(0, len(waveform), 1024):
                block = waveform[None, first : first + 1024]
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = sound_rate, first
                frame.time_base = Fraction(1, sound_rate)
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return temporary.replace(path)


def _pictures(
    look: Look, event: float, seconds: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    times = np.arange(int(seconds * FPS)) / FPS
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / HEIGHT
    scene = rng.uniform(0.2, 0.5) + rng.uniform(-0.2, 0.2) * x + rng.uniform(-0.2, 0.2) * y
    centre = rng.uniform(0.2, 0.8, (look.discs, 2)) * [1, WIDTH / HEIGHT]
    angle = rng.uniform(0, 2 * np.pi, look.discs)
    heading = np.stack([np.sin(angle), np.cos(angle)], axis=1) * look.speed
    colour = rng.uniform(0, 1, (look.discs, 3))
    film = []
    for time in times:
        picture = np.repeat(scene[..., None], 3, axis=2)
        for disc in range(look.discs):
            place = centre[disc] + heading[disc] * time + rng.normal(0, look.shake / 2, 2)
            down, across = place % [1, WIDTH / HEIGHT]
            picture[(y - down) ** 2 + (x - across) ** 2 < look.radius**2] = colour[disc]
        if look.sirens:
            red = int(time * 4) % 2 == 0
            left = x < WIDTH / HEIGHT / 2
            picture[left == red, 0] += 0.5
            picture[left != red, 2] += 0.5
        if time >= event:
            picture = picture + look.flash * np.exp(-3 * (time - event))
        picture = picture + rng.normal(0, 0.02, picture.shape)
        film.append((picture.clip(0, 1) * 255).astype(np.uint8))
    return np.stack(film)


def _waveform(
    look: Look, event: float, seconds: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    time = np.arange(int(seconds * SOUND_RATE)) / SOUND_RATE
    pitch = look.tone * rng.uniform(0.9, 1.1)
    moved = pitch * (1 + look.sweep * np.sin(2 * np.pi * 0.8 * time + rng.uniform(0, 6)))
    tone = np.sin(2 * np.pi * np.cumsum(moved) / SOUND_RATE)
    sound = (1 - look.noise) * tone + look.noise * rng.normal(0, 0.5, len(time))
    sound *= 0.5 + 0.5 * np.sin(2 * np.pi * look.beat * time + rng.uniform(0, 6) * bool(look.beat))
    after = np.clip(time - event, 0, None)
    bang = look.burst * np.exp(-5 * after) * rng.normal(0, 0.7, len(time)) * (time >= event)
    loudness = rng.uniform(0.1, 0.3)
    return np.clip(loudness * (sound + bang), -1, 1).astype(np.float32)
