"""One clip's features, alone and in a job; sound and picture line up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from compare import cosine

from extract import ClipError, Cluster, Extractor, Task, WeightsError, extract, make_recipe
from extract.synthetic import SOUND_RATE, make_clip, write_video
from features import Features, Flag, Recipe, Store, verify


@pytest.fixture(scope="module")
def extractor(recipe: Recipe) -> Extractor:
    return Extractor(recipe)


def tasks(folder: Path) -> list[Task]:
    return [Task(f"{p.parent.name}/{p.stem}", p) for p in sorted(folder.glob("*/*.mp4"))]


def test_shapes_and_missing_sound(extractor: Extractor, clips: Path) -> None:
    features = extractor(clips / "Explosion" / "0.mp4")
    assert features.video.shape == (4, 320)
    assert features.audio.shape == (4, 32)
    assert features.video_valid.all()
    assert features.audio_valid.all()
    assert features.duration == pytest.approx(1.0)
    assert len(features.source) == 64
    silent = extractor(clips / "Normal" / "1.mp4")
    assert not silent.audio_valid.any()
    assert silent.flags == Flag.NONE


def flash_and_beep(path: Path, at: float) -> Path:
    """Four seconds, dark and nearly silent but for a flash and a beep at the same instant."""
    pictures = np.full((100, 120, 160, 3), 20, np.uint8)
    pictures[round(at * 25) : round(at * 25) + 6] = 240
    clock = np.arange(4 * SOUND_RATE) / SOUND_RATE
    sound = np.random.default_rng(0).normal(0, 0.01, len(clock))
    sound += 0.5 * np.sin(2 * np.pi * 1500 * clock) * ((clock >= at) & (clock < at + 0.2))
    return write_video(path, pictures, 25, sound.astype(np.float32))


@pytest.mark.parametrize("at", [0.52, 1.52, 3.0])
def test_a_flash_and_a_beep_fall_into_the_same_snippet(
    extractor: Extractor, tmp_path: Path, at: float
) -> None:
    features = extractor(flash_and_beep(tmp_path / "a.mp4", at))
    for name, rows in features.streams.items():
        unusual = np.linalg.norm(rows.astype(np.float32) - np.median(rows, axis=0), axis=1)
        assert int(unusual.argmax()) == int(at / 0.25), name


def test_sound_beside_a_video_wins(extractor: Extractor, clips: Path, tmp_path: Path) -> None:
    shutil.copy(clips / "Normal" / "1.mp4", tmp_path / "a.mp4")
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000)
    soundfile.write(tmp_path / "a.wav", noise, 16_000)
    assert extractor(tmp_path / "a.mp4").audio_valid.all()
    (tmp_path / "a.wav").rename(tmp_path / "named.wav")
    assert not extractor(tmp_path / "a.mp4").audio_valid.any()
    assert extractor(tmp_path / "a.mp4", tmp_path / "named.wav").audio_valid.all()
    (tmp_path / "named.wav").write_bytes(b"rubbish")
    damaged = extractor(tmp_path / "a.mp4", tmp_path / "named.wav")
    assert damaged.flags == Flag.SOUND_DAMAGED
    assert not damaged.audio_valid.any()


def test_other_weights_than_the_recipes_are_refused(recipe: Recipe) -> None:
    streams = {**recipe.streams, "video": {**recipe.streams["video"], "weights_sha256": "0"}}
    with pytest.raises(WeightsError, match="weights_sha256"):
        Extractor(Recipe(recipe.snippet_seconds, recipe.precision, streams, recipe.source))


def test_every_real_file_has_a_defined_end(extractor: Extractor, shared: Path) -> None:
    ends = {}
    for path in sorted((shared / "media").iterdir()):
        try:
            ends[path.name] = len(extractor(path))
        except ClipError as error:
            ends[path.name] = str(error)  # type: ignore[assignment]
    assert ends == {
        "av1_video.mkv": 20,
        "corrupted.mp4": 20,
        "flipping_a_pancake.mkv": 42,
        "h265_10bits.mp4": 4,
        "nasa_13013.mp4": 53,
        "nasa_13013.mp4.audio.mp3": "there is no picture in it; a clip needs a video stream",
        "video_90.mov": 1,
    }


def same(one: Features, other: Features) -> bool:
    return all(
        (one.valid[name] == other.valid[name]).all()
        and cosine(one.streams[name][one.valid[name]], other.streams[name][one.valid[name]])
        > 0.9999
        for name in one.streams
        if one.valid[name].any()
    )


def test_alone_in_one_worker_or_in_two(
    extractor: Extractor, recipe: Recipe, clips: Path, tmp_path: Path
) -> None:
    stores = []
    for workers in (1, 2):
        summary = extract(
            tasks(clips), tmp_path / str(workers), recipe, cluster=Cluster(workers=workers)
        )
        assert len(summary.extracted) == 12
        assert summary.footage == pytest.approx(12.0)
        stores.append(Store(tmp_path / str(workers)))
        assert verify(stores[-1].path) == (12, [])
    for task in tasks(clips):
        alone = extractor(task.video)
        assert all(same(alone, store[task.clip_id]) for store in stores)


def test_one_bad_clip_never_stops_the_others(recipe: Recipe, clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(clips, folder)
    (folder / "Normal" / "empty.mp4").touch()
    (folder / "Normal" / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    cut = (folder / "Normal" / "0.mp4").read_bytes()
    (folder / "Normal" / "cut.mp4").write_bytes(cut[: len(cut) // 2])
    some = [*tasks(folder), Task("gone", folder / "gone.mp4")]
    ticks: list[tuple[float, float]] = []
    summary = extract(
        some, tmp_path / "store", recipe, progress=lambda done, total: ticks.append((done, total))
    )
    assert len(summary.extracted) == 12
    assert set(summary.failed) == {"Normal/empty", "Normal/noise", "Normal/cut", "gone"}
    assert all(summary.failed.values())
    assert ticks[0] == (0.0, pytest.approx(12.0, abs=1.0))
    assert ticks[-1][0] == pytest.approx(ticks[-1][1])
    # the same call again does only what is left
    again = extract(some, tmp_path / "store", recipe)
    assert len(again.already) == 12
    assert not again.extracted
    assert set(again.failed) == set(summary.failed)


JOB = """
import sys
from pathlib import Path
from extract import Cluster, Task, extract
from features import Recipe
if __name__ == "__main__":
    store, videos, recipe = map(Path, sys.argv[1:])
    tasks = [Task(f"{p.parent.name}/{p.stem}", p) for p in sorted(videos.glob("*/*.mp4"))]
    extract(tasks, store, Recipe.from_json(recipe.read_text()), cluster=Cluster(workers=1))
"""


def test_killed_in_the_middle_and_run_again(recipe: Recipe, clips: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    recipe.save(tmp_path / "recipe.json")
    (tmp_path / "job.py").write_text(JOB)
    command = [sys.executable, str(tmp_path / "job.py"), str(store), str(clips)]
    job = subprocess.Popen([*command, str(tmp_path / "recipe.json")], start_new_session=True)
    finished = 0
    while job.poll() is None and finished < 3:
        finished = len(list(store.glob(".spool-*/*.safetensors")))
        time.sleep(0.02)
    workers = psutil.Process(job.pid).children(recursive=True)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    psutil.wait_procs(workers, timeout=100)  # until then they hold what they have finished
    assert len(list(store.glob("*.h5"))) == 0  # killed before anything was sealed
    summary = extract(tasks(clips), store, recipe, cluster=Cluster(workers=1))
    assert len(summary.already) >= finished >= 3
    assert len(summary.already) + len(summary.extracted) == 12
    assert verify(store) == (12, [])
    assert sum(len(shard) for shard in Store(store).shards) == 12  # none twice
    assert not list(store.glob(".*"))


def test_two_thousand_clips_leave_a_worker_as_it_was(sound_model: str, tmp_path: Path) -> None:
    recipe = make_recipe("test_vit", sound_model, weights="random", snippet_seconds=0.5)
    files = [
        make_clip(tmp_path / f"{seed}.mp4", "Crash", seed, seconds=0.5, sound=seed > 0)
        for seed in range(4)
    ]
    some = [Task(str(number), files[number % len(files)], None, 0.5) for number in range(2000)]
    sizes: list[tuple[float, int]] = []  # (share of the footage done, bytes)

    def weigh(done: float, total: float) -> None:
        family = psutil.Process().children(recursive=True)
        readers = [p for p in family if "extract.reader" in " ".join(p.cmdline())]
        if readers:
            worker = readers[0].parent()
            assert worker is not None
            size = sum(p.memory_info().rss for p in (worker, readers[0]))
            sizes.append((done / total, size))

    summary = extract(some, tmp_path / "s", recipe, cluster=Cluster(workers=1), progress=weigh)
    assert len(summary.extracted) == 2000
    early = max(size for share, size in sizes if share < 0.3)
    late = max(size for share, size in sizes if share > 0.7)
    assert late - early < 10e6
