"""A file is the one of its name, whatever FFmpeg, fsspec and libsndfile may read into the name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from small_stores import clip, fill

from extract.decoding import sound_file
from extract.decoding.container import ClipError, ffmpeg_name, footage, probe
from extract.decoding.messages import Begin, End, Failed, Frame, Sound
from extract.decoding.reader import Reader
from extract.decoding.sound_placement import SAMPLE_RATE
from extract.live import stream_receiver as receiver
from extract.live.stream_receiver import ReceivedSnippet, Receiver
from extract.preprocessing import Preparation
from extract.synthetic import make_clip
from features import Store, pull, push

NAMES = [
    "12:30:00.mp4",
    "2024:05:01/12:30:00.mp4",
    "file:x.mp4",
    "http:x.mp4",
    "data:x.mp4",
    "concat:a|b.mp4",
    "subfile,,start,0,end,9,,:x.mp4",
    "-.mp4",
    "%03d.mp4",
    "a?b#c [x]*.mp4",
]
PREPARE = {"video": Preparation(32, (32, 32), 2)}


class Files:
    def __init__(self, video: Path, audio: Path | None = None) -> None:
        self.video, self.audio = video, audio


def read(video: Path, audio: Path | None = None) -> dict[str, Any]:
    """Return all that the reading process says of a clip."""
    reader = Reader()
    messages: dict[str, Any] = {"frames": [], "sound": []}
    for _, message in reader.read([Files(video, audio)], 0.25, PREPARE):
        if isinstance(message, Begin):
            messages["begin"] = message
        elif isinstance(message, Frame):
            messages["frames"].append(message.pixels)
        elif isinstance(message, Sound):
            messages["sound"].append(message.samples)
        else:
            messages["end"] = message
    reader.close()
    return {**messages, "sound": np.concatenate(messages["sound"] or [np.zeros(0, np.float32)])}


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clip whose name nobody can mistake; relative paths begin in its folder."""
    monkeypatch.chdir(tmp_path)
    return make_clip(tmp_path / "plain.mp4", "Explosion", 3, seconds=1.0)


def test_a_clip_reads_the_same_under_any_name(plain: Path) -> None:
    expected = read(plain)
    assert len(expected["frames"]) == 4
    assert len(expected["sound"]) == SAMPLE_RATE
    for name in NAMES:
        relative = Path(name)
        relative.parent.mkdir(exist_ok=True)
        shutil.copy(plain, relative)
        received = read(relative)
        assert received["end"] == expected["end"], name
        assert received["begin"] == expected["begin"], name
        assert np.array_equal(received["frames"], expected["frames"]), name
        assert np.array_equal(received["sound"], expected["sound"]), name
        assert footage(relative) == footage(plain) > 0.9
        assert probe(relative).duration == probe(plain).duration


def test_long_and_separate_sound_under_any_name(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tone = (0.5 * np.sin(np.arange(SAMPLE_RATE) / 5)).astype(np.float32)
    soundfile.write("12:30:00.wav", tone, SAMPLE_RATE, subtype="FLOAT")
    shutil.copy(plain, "12:30:00.mp4")
    # libsndfile takes a file of this name for standard input, which is the requests' here
    shutil.copy("12:30:00.wav", "-")
    for audio in (None, Path("12:30:00.wav"), Path("-")):
        received = read(Path("12:30:00.mp4"), audio)
        assert isinstance(received["end"], End)
        assert not received["end"].sound_damaged
        assert np.array_equal(received["sound"], tone), audio
    os.remove("12:30:00.wav")
    monkeypatch.setattr(sound_file, "LONG_SOUND", 0.0)  # PyAV reads it, block by block
    blocks = []
    for path in (Path("12:30:00.mp4"), plain):
        read_blocks = sound_file.sound_blocks(path, None, probe(path), sound_file.SoundFault())
        blocks.append(np.concatenate([samples for _, samples in read_blocks]))
    assert len(blocks[0]) > 0.9 * SAMPLE_RATE
    assert np.array_equal(*blocks)


def test_a_growing_file_under_any_name(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "GROWN_SECONDS", 0.5)
    shutil.copy(plain, "file:12:30.mp4")
    several = f"/{plain}"  # as of "$FOLDER/plain.mp4" where FOLDER is /
    for source in ("file:12:30.mp4", several):
        events = list(Receiver(source, 0.25, 0.0, PREPARE))
        assert [event.start for event in events] == [0.0, 0.25, 0.5, 0.75]
        assert all(isinstance(event, ReceivedSnippet) and event.pixels for event in events)
    # or it would be opened as a URL is, which does not wait for the file to grow
    assert "://" not in ffmpeg_name(several)


def test_a_clip_is_written_under_any_name(plain: Path) -> None:
    assert footage(make_clip(Path("12:30/demo:1.mp4"), "Normal", 3, seconds=1.0)) > 0.9


def test_a_name_that_is_no_text_is_named(plain: Path) -> None:
    strange = Path(os.fsdecode(b"\xff.mp4"))
    try:
        shutil.copy(plain, strange)
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    with pytest.raises(ClipError, match=r"not Unicode text; rename the file: \\xff\.mp4"):
        probe(strange)
    assert footage(strange) == 0.0
    received = read(strange)["end"]
    assert isinstance(received, Failed)
    assert "rename the file" in received.reason


@pytest.mark.parametrize("name", ["12:30:00", "a::b", "file:x", "data:x", "http-team"])
def test_a_store_in_a_folder_of_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "store", {"one": clip(4, 1)})
    push(Path("store"), name)
    assert list(Store(tmp_path / name)) == ["one"]
    pull(name, Path("back"))
    assert list(Store(tmp_path / "back")) == ["one"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"store", name, "back"}
