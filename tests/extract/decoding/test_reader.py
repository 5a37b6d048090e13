"""The reading process: what it sends is right, and no file and no signal takes others with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import psutil
import pytest
import soundfile
import timm
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from extract import ClipError, Extractor
from extract.backbones.timm_image import _preparation
from extract.decoding.container import Media
from extract.decoding.messages import Begin, End, Failed, Frame, Sound
from extract.decoding.reader import Reader
from extract.decoding.sound_file import LONG_SOUND, SoundFault, read_sound_file, sound_blocks
from extract.decoding.sound_placement import SAMPLE_RATE
from extract.preprocessing import Preparation
from extract.synthetic import make_clip
from features import Features, Recipe

PREPARE = {"video": Preparation(64, (64, 64), Image.Resampling.BILINEAR)}


class Files(NamedTuple):
    video: Path
    audio: Path | None = None


def sent(reader: Reader, *paths: Path) -> dict[str, list[object]]:
    found: dict[str, list[object]] = {path.name: [] for path in paths}
    for clip, message in reader.read(map(Files, paths), 0.25, PREPARE):
        found[clip.video.name].append(message)
    return found


@given(
    st.sampled_from(["mobilevit_s", "mobilevitv2_050", "resnet18", "vit_tiny_patch16_224"]),
    st.integers(20, 700),
    st.integers(20, 700),
)
@settings(max_examples=40, deadline=None)
def test_frames_are_prepared_as_timm_does(model: str, height: int, width: int) -> None:
    config = timm.data.resolve_data_config(timm.get_pretrained_cfg(model).to_dict())
    resize, crop, *_ = timm.data.create_transform(**config, is_training=False).transforms
    frame = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    theirs = np.asarray(crop(resize(Image.fromarray(frame))))
    assert (_preparation(config)([frame]) == theirs).all()


def test_libraries_may_print(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "soundfile.py").write_text("print('hello')\nLibsndfileError = OSError")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    reader = Reader()
    *_, end = sent(reader, clips / "Normal" / "0.mp4")["0.mp4"]
    assert isinstance(end, End)
    reader.close()


def test_messages_of_a_clip(clips: Path) -> None:
    reader = Reader()
    paths = [clips / "Explosion" / "0.mp4", clips / "Normal" / "1.mp4"]
    loud, silent = sent(reader, *paths).values()
    begin, *middle, end = loud
    assert begin == Begin(4, 1.0)
    pictures = [m for m in middle if isinstance(m, Frame)]
    assert [m.snippet for m in pictures] == [0, 1, 2, 3]
    assert {m.pixels.shape for m in pictures} == {(64, 64, 3)}
    assert sum(len(m.samples) for m in middle if isinstance(m, Sound)) == SAMPLE_RATE
    assert isinstance(end, End)
    assert len(end.source) == 64
    assert not any(isinstance(m, Sound) for m in silent)
    reader.close()


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_sound_file_in_blocks_is_the_same(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 30 * SAMPLE_RATE)
    soundfile.write(path, sound, SAMPLE_RATE)
    media, fault = Media(0.5, np.zeros(1), LONG_SOUND + 1, False), SoundFault()
    firsts, blocks = zip(*sound_blocks(tmp_path / "a.mp4", path, media, fault), strict=True)
    assert [first // SAMPLE_RATE for first in firsts] == [0, 10, 20]
    assert np.allclose(np.concatenate(blocks), read_sound_file(path), atol=1e-4)
    assert fault == SoundFault()


def write_huge(path: Path) -> None:
    """One frame of 16,000 x 16,000, a few KB in the file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = 16_000
        stream.pix_fmt = "rgb24"
        frame = av.VideoFrame(16_000, 16_000, "rgb24")
        np.frombuffer(frame.planes[0], np.uint8)[:] = 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


@pytest.mark.slow
def test_files_that_are_none_or_lie(clips: Path, tmp_path: Path) -> None:
    whole = (clips / "Explosion" / "0.mp4").read_bytes()
    at = whole.index(b"mvhd")
    lie = bytearray(whole)  # ten hours, in its own time scale
    scale = int.from_bytes(whole[at + 16 : at + 20], "big")
    lie[at + 20 : at + 24] = (36_000 * scale).to_bytes(4, "big")
    (tmp_path / "lie.mp4").write_bytes(lie)
    (tmp_path / "moov.mp4").write_bytes(whole[: whole.index(b"moov") + 100])
    (tmp_path / "random.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    write_huge(tmp_path / "huge.mov")
    (tmp_path / "good.mp4").write_bytes(whole)
    names = ["moov", "random", "empty", "folder", "pipe", "dangling", "lie", "good"]
    reader = Reader(memory_bytes=2**30)  # the huge frame takes 768 MB, and again as an array
    found = sent(reader, tmp_path / "huge.mov", *(tmp_path / f"{name}.mp4" for name in names))
    reader.close()
    ends = {name: messages[-1] for name, messages in found.items()}
    assert isinstance(ends.pop("good.mp4"), End)
    assert isinstance(ends.pop("lie.mp4"), End)
    assert found["lie.mp4"][0] == Begin(4, 1.0)
    assert all(isinstance(end, Failed) for end in ends.values()), ends
    reasons = {name: end.reason for name, end in ends.items() if isinstance(end, Failed)}
    assert "empty" in reasons["empty.mp4"]
    assert "not a regular file" in reasons["pipe.mp4"]
    assert "no such file" in reasons["dangling.mp4"]
    assert reasons["huge.mov"] == "reading it needs more than 1 GB of memory"


@pytest.fixture
def long_clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "fatal.mp4", "Normal", 0, seconds=60)


def strike(reader: Reader, number: signal.Signals, path: Path, over: threading.Event) -> None:
    """Send a signal to the reading process whenever it has a file open."""
    while not over.wait(0.01):
        process = reader.process
        if process is not None:
            try:
                if any(f.path == str(path) for f in psutil.Process(process.pid).open_files()):
                    os.kill(process.pid, number)
            except (psutil.Error, OSError):
                pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, "reading it crashed (SIGSEGV), 2 times"),
        (signal.SIGSTOP, "reading it came to nothing for 5 s, 2 times"),
    ],
)
def test_a_crash_or_a_hang_takes_one_clip_only(
    recipe: Recipe, clips: Path, long_clip: Path, number: signal.Signals, reason: str
) -> None:
    extractor, over = Extractor(recipe, patience=5.0), threading.Event()
    killer = threading.Thread(
        target=strike, args=(extractor.readers.each[0], number, long_clip, over)
    )
    killer.start()
    good = sorted((clips / "Explosion").glob("*.mp4"))
    try:
        files = [Files(good[0]), Files(long_clip), Files(good[1]), Files(good[2])]
        results = dict(extractor.stream(files))
    finally:
        over.set()
        killer.join()
        extractor.close()
    error = results.pop(Files(long_clip))
    assert isinstance(error, ClipError)
    assert str(error) == reason
    for clip, features in results.items():
        assert isinstance(features, Features)
        alone = extractor(clip.video)
        assert (features.video == alone.video).all()
        assert (features.audio == alone.audio).all()
    extractor.close()


def test_several_reading_processes_give_what_one_gives(
    recipe: Recipe, clips: Path, long_clip: Path
) -> None:
    """Also where one of them crashes twice, and the reading is given up in the middle."""
    one, three = Extractor(recipe), Extractor(recipe, readers=3)
    files = [Files(path) for path in sorted(clips.glob("*/*.mp4"))]
    expected = dict(one.stream(files))
    over = threading.Event()
    killers = [
        threading.Thread(target=strike, args=(reader, signal.SIGKILL, long_clip, over))
        for reader in three.readers.each
    ]
    for killer in killers:
        killer.start()
    try:
        results = dict(three.stream([*files[:2], Files(long_clip), *files[2:]]))
    finally:
        over.set()
        for killer in killers:
            killer.join()
    assert list(results) == [*files[:2], Files(long_clip), *files[2:]]
    assert str(results.pop(Files(long_clip))) == "reading it crashed (SIGKILL), 2 times"
    for clip, features in expected.items():
        same = results[clip]
        assert isinstance(same, Features)
        assert isinstance(features, Features)
        for stream, rows in features.streams.items():
            assert np.abs(rows.astype(float) - same.streams[stream].astype(float)).max() < 0.01
            assert (features.valid[stream] == same.valid[stream]).all()
    for stopped, _ in three.stream(files):
        assert stopped == files[0]
        break
    assert list(dict(three.stream(files))) == files
    one.close()
    three.close()


def test_a_mistake_where_the_clips_come_from_is_raised_and_does_not_hang(
    recipe: Recipe, clips: Path
) -> None:
    def missing() -> Iterator[Files]:
        yield Files(next(clips.glob("*/*.mp4")))
        raise KeyError("the list of clips ends here")

    extractor = Extractor(recipe, readers=2)
    with pytest.raises(KeyError, match="ends here"):
        list(extractor.stream(missing()))
    extractor.close()


@pytest.mark.slow
def test_a_second_try_counts(recipe: Recipe, clips: Path, long_clip: Path) -> None:
    """Killed once in the middle: the clip is read again, and nothing of the first try stays."""
    extractor = Extractor(recipe)
    expected = extractor(long_clip)

    def kill_once() -> None:
        time.sleep(0.5)
        process = extractor.readers.each[0].process
        assert process is not None
        process.kill()

    killer = threading.Thread(target=kill_once)
    killer.start()
    again = extractor(long_clip)
    killer.join()
    extractor.close()
    assert (again.video == expected.video).all()
    assert (again.audio == expected.audio).all()


PARENT = """
import sys, time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from PIL import Image
from extract.decoding.reader import Reader
from extract.preprocessing import Preparation
class Files(NamedTuple):
    video: Path
    audio: Path | None = None
reader = Reader()
prepare = {"video": Preparation(64, (64, 64), Image.Resampling.BILINEAR)}
messages = reader.read([Files(Path(sys.argv[1]))], 0.25, prepare)
next(messages)
print(reader.process.pid, "torch" in sys.modules, flush=True)
time.sleep(600)
"""


def test_it_dies_with_its_parent(long_clip: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(long_clip)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, has_torch = parent.stdout.readline().split()
        child = psutil.Process(int(pid))
        assert has_torch == "False"  # nor has the reading process, which imports the same
        os.kill(child.pid, signal.SIGINT)  # Ctrl-C reaches it too; it is the parent's business
        time.sleep(0.2)
        assert child.is_running()
        parent.kill()
    gone, _ = psutil.wait_procs([child], timeout=100)
    assert gone or child.status() == psutil.STATUS_ZOMBIE


def test_batch_mates_do_not_matter(recipe: Recipe, clips: Path) -> None:
    extractor = Extractor(recipe)
    files = [Files(path) for path in sorted(clips.glob("*/*.mp4"))]
    together = dict(extractor.stream(files))
    assert list(together) == files
    for clip in files[::4]:
        alone, mate = extractor(clip.video), together[clip]
        assert isinstance(mate, Features)
        assert np.abs(alone.video.astype(float) - mate.video.astype(float)).max() < 0.01
        assert (alone.audio == mate.audio).all()
    extractor.close()
