"""Frames and sound on one clock, from every container and out of damaged files."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from extract.decoding.container import ClipError, footage, probe
from extract.decoding.frames import frames
from extract.decoding.sound_file import SoundFault, read_sound_file, sound_beside, sound_blocks

RATE = 44_100
BITS = 8


def numbered(number: int) -> np.ndarray:
    """A picture that shows its number in black and white bars."""
    picture = np.zeros((64, 16 * BITS, 3), np.uint8)
    for bit in range(BITS):
        picture[:, 16 * bit : 16 * (bit + 1)] = 255 * (number >> bit & 1)
    return picture


def number_of(picture: np.ndarray) -> int:
    bars = (picture[:, 16 * bit + 4 : 16 * bit + 12].mean() > 128 for bit in range(BITS))
    return sum(1 << bit for bit, white in enumerate(bars) if white)


def film(path: Path, codec: str, times: np.ndarray, sound_from: float | None = None) -> Path:
    """Write numbered frames shown at `times` and, from `sound_from` on, a beep at 2.0 s."""
    ticks = 12_800
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = 16 * BITS, 64, "yuv420p"
        video.bit_rate = 2_000_000
        if codec.startswith("libx26"):
            video.codec_context.time_base = Fraction(1, ticks)
        audio = None
        if sound_from is not None:
            audio = container.add_stream("aac", rate=RATE)
            audio.layout = "mono"
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            if codec.startswith("libx26"):
                frame.pts, frame.time_base = round(time * ticks), Fraction(1, ticks)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None and sound_from is not None:
            time = np.arange(round(sound_from * RATE), 4 * RATE) / RATE
            beep = 0.8 * np.sin(2 * np.pi * 1000 * time) * ((time >= 2.0) & (time < 2.25))
            for first in range(0, len(beep), 1024):
                block = beep[None, first : first + 1024].astype(np.float32)
                sound = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
                sound.sample_rate, sound.time_base = RATE, Fraction(1, RATE)
                sound.pts = round(sound_from * RATE) + first
                container.mux(audio.encode(sound))
            container.mux(audio.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("hevc.mp4", "libx265"),
        ("a.mkv", "libx264"),
        ("a.ts", "libx264"),
        ("a.avi", "mpeg4"),
        ("a.mpg", "mpeg2video"),
        ("a.wmv", "wmv2"),
        ("a.webm", "libvpx-vp9"),
    ],
)
def test_the_right_frame_from_every_container(tmp_path: Path, name: str, codec: str) -> None:
    path = film(tmp_path / name, codec, np.arange(150) / 25)
    media = probe(path)
    assert len(media.frame_times) == 150
    assert media.duration == pytest.approx(6.0, abs=0.05)
    wanted = np.array([3, 3, 28, 53, 78, 103, 149])
    assert [number_of(picture) for picture in frames(path, media, wanted)] == wanted.tolist()
    assert footage(path) > 5


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("first_frame", "sound_from"), [(0.0, 0.0), (0.0, 0.7), (0.72, 0.0)], ids=str
)
def test_sound_and_picture_share_a_clock(
    tmp_path: Path, suffix: str, first_frame: float, sound_from: float
) -> None:
    """The beep is at 2.0 s of the container's time, whichever stream starts later."""
    times = np.arange(round(first_frame * 25), 100) / 25
    path = film(tmp_path / f"a.{suffix}", "libx264", times, sound_from)
    media = probe(path)
    assert media.has_sound
    blocks = sound_blocks(path, None, media, SoundFault())
    (loud, *_) = (first + np.flatnonzero(np.abs(sound) > 0.2) for first, sound in blocks)
    beep = loud[0] / 16_000
    assert beep == pytest.approx(2.0 - first_frame, abs=0.01)


def test_variable_frame_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.01, 0.2, 60))
    path = film(tmp_path / "a.mp4", "libx264", times)
    media = probe(path)
    assert np.allclose(media.frame_times, times - times[0], atol=2e-3)
    instant = 2.0
    shown = int(np.searchsorted(media.frame_times, instant) - 1)
    (picture,) = frames(path, media, np.array([shown]))
    assert number_of(picture) == np.flatnonzero(times - times[0] <= instant)[-1]


def test_a_phone_video_is_upright(shared: Path) -> None:
    path = shared / "media" / "video_90.mov"
    (picture,) = frames(path, probe(path), np.array([0]))
    assert picture.shape == (568, 320, 3)


def test_a_damaged_middle_leaves_the_rest(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", "libx264", np.arange(150) / 25)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 10] = bytes(len(content) // 10)
    path.write_bytes(content)
    wanted = np.arange(0, 150, 5)
    media = probe(path)
    wanted = wanted[wanted < len(media.frame_times)]
    pictures = list(frames(path, media, wanted))
    assert len(pictures) == len(wanted)
    whole = [number_of(picture) for picture in pictures if picture.size]
    assert whole[:5] == [0, 5, 10, 15, 20]


def test_a_cut_file_keeps_its_valid_part(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", "libx264", np.arange(150) / 25)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    media = probe(path)
    assert 10 < len(media.frame_times) < 150
    pictures = list(frames(path, media, np.array([0, 5, 10])))
    assert [number_of(picture) for picture in pictures] == [0, 5, 10]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.touch(), "empty"),
        (lambda path: path.write_bytes(os.urandom(5000)), "not a readable media file"),
        (lambda path: path.write_text("<html>not found</html>"), "not a readable media file"),
        (lambda path: path.symlink_to("nowhere"), "no such file"),
    ],
    ids=["absent", "folder", "fifo", "empty", "noise", "html", "dangling"],
)
def test_rubbish_is_named(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "x.mp4"
    make(path)  # type: ignore[operator]
    with pytest.raises(ClipError, match=message):
        probe(path)
    assert footage(path) == 0.0


def test_sound_alone_is_no_clip(shared: Path) -> None:
    with pytest.raises(ClipError, match="no picture"):
        probe(shared / "media" / "nasa_13013.mp4.audio.mp3")


def test_sound_file_beside_a_video(tmp_path: Path) -> None:
    time = np.arange(2 * 22_050) / 22_050
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "clip.flac", np.stack([tone, tone], axis=1), 22_050)
    beside = sound_beside(tmp_path / "clip.mp4")
    assert beside == tmp_path / "clip.flac"
    mono = read_sound_file(beside)
    assert len(mono) == 32_000
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)
    assert np.abs(mono - expected)[100:-100].max() < 0.01
    for name in ("001.WAV", "002.Wav", "003.FLAC"):  # as some recorders write them
        (tmp_path / name).touch()
        assert sound_beside(tmp_path / f"{name[:3]}.MP4") == tmp_path / name
    assert sound_beside(tmp_path / "004.mp4") is None
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    with pytest.raises(ClipError, match="sound file"):
        read_sound_file(tmp_path / "bad.wav")
