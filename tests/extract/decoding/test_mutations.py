"""A thousand damaged videos: each is read or reported, and the reading process never hangs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from PIL import Image

from extract.decoding.messages import Begin, End, Failed, Frame, Sound
from extract.decoding.reader import Reader
from extract.decoding.sound_placement import SAMPLE_RATE
from extract.preprocessing import Preparation

pytestmark = pytest.mark.slow

CASES = 1000
PREPARE = {"video": Preparation(64, (64, 64), Image.Resampling.BILINEAR)}
INTERESTING = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x01", b"\0\x01\0\0"]


class Files(NamedTuple):
    video: Path
    audio: Path | None = None


def encode(path: Path, codec: str, sound: str) -> bytes:
    """Half a second of noise of 64 x 64 and its sound."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        assert isinstance(video, av.VideoStream)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream(sound, rate=16_000)
        assert isinstance(audio, av.AudioStream)
        for _ in range(12):
            picture = av.VideoFrame.from_ndarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        samples = rng.normal(0, 0.1, (1, 8000)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
        frame.rate = 16_000
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path.read_bytes()


def mutate(whole: bytes, rng: np.random.Generator) -> bytes:
    content = bytearray(whole)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(content)))
        kind = rng.integers(6)
        if kind == 0:
            content[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            content[at : at + 4] = INTERESTING[int(rng.integers(len(INTERESTING)))]
        elif kind == 2:
            content[at : at + 64] = rng.bytes(64)
        elif kind == 3:
            content = content[: max(1, at)]
        elif kind == 4:
            other = int(rng.integers(len(content)))
            content[at:at] = content[other : other + 200]
        else:  # the size or the name of a box, where most harm is done
            boxes = [content.find(name) for name in (b"moov", b"stsz", b"stts", b"stco", b"avcC")]
            found = [box for box in boxes if box >= 4]
            if found:
                box = found[int(rng.integers(len(found)))] + int(rng.integers(-4, 16))
                content[box : box + 4] = INTERESTING[int(rng.integers(len(INTERESTING)))]
    return bytes(content)


SOAK = [pytest.param(seed, marks=pytest.mark.soak) for seed in range(50, 100)]


@pytest.mark.parametrize("seed", [4, *SOAK])
def test_a_thousand_damaged_videos(seed: int, tmp_path: Path) -> None:
    codecs = [("libx264", "aac"), ("mpeg4", "aac"), ("libx265", "aac"), ("mpeg2video", "aac")]
    wholes = [encode(tmp_path / f"{codec}.mp4", codec, sound) for codec, sound in codecs]
    rng = np.random.default_rng(seed)
    files = []
    for number in range(CASES):
        file = tmp_path / f"{number}.mp4"
        file.write_bytes(mutate(wholes[number % len(wholes)], rng))
        files.append(Files(file))
    reader = Reader(patience=60.0)
    ends: dict[str, End | Failed] = {}
    snippets = 0
    for clip, message in reader.read(files, 0.25, PREPARE):
        if isinstance(message, Begin):
            snippets = message.snippets
            assert snippets <= 4 * 3600  # whatever the file's clock says
        elif isinstance(message, Frame):
            assert 0 <= message.snippet < snippets
            assert message.pixels.shape == (64, 64, 3)
        elif isinstance(message, Sound):
            assert message.first >= 0
            assert message.first + len(message.samples) <= round(snippets * 0.25 * SAMPLE_RATE)
        else:
            assert clip.video.name not in ends
            ends[clip.video.name] = message
    reader.close()
    assert len(ends) == CASES
    reasons = [end.reason for end in ends.values() if isinstance(end, Failed)]
    assert all(reasons)
    assert 50 < len(reasons) < CASES - 50  # some of both kinds
