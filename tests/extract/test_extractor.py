"""One clip's features, alone and in a job; sound and picture line up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
import torch
from fake_extractor import Instant
from numpy.typing import NDArray
from small_stores import RECIPE

from extract import ClipError, Cluster, Extractor, Files, Task, WeightsError, extract, make_recipe
from extract.preprocessing import Prepare
from extract.synthetic import SOUND_RATE, make_clip, write_video
from features import FeatureError, Features, Flag, Recipe, Store, Writer, verify

pytestmark = pytest.mark.slow


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
    """Whether two features have the same bytes."""
    return all(
        one.streams[name].tobytes() == other.streams[name].tobytes()
        and one.valid[name].tobytes() == other.valid[name].tobytes()
        for name in one.streams
    )


def test_in_any_company_the_same_bytes(sound_model: str, tmp_path: Path) -> None:
    """Of a network whose values depend on how many frames it is given at once."""
    rng = np.random.default_rng(0)
    files = []
    for number, length in enumerate((2, 14, 5, 30)):  # frames, four a second
        pictures = rng.integers(0, 256, (length, 8, 8, 3), np.uint8).repeat(16, 1).repeat(16, 2)
        sound = rng.normal(0, 0.1, length * SOUND_RATE // 4).astype(np.float32)
        files.append(Files(write_video(tmp_path / f"{number}.mp4", pictures, 4, sound), None))
    recipe = make_recipe("mobilevit_s", sound_model, weights="random")
    extractor = Extractor(recipe)
    together = dict(extractor.stream(files))
    for file in files:
        made = together[file]
        assert isinstance(made, Features)
        assert same(made, extractor(file.video))
    extractor.close()


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


class Counting:
    """Stands for a network: a row is the frame's own number, and how many it came with."""

    reads = "frames"
    features = 2

    def __init__(self, prepare: Prepare) -> None:
        self.prepare = prepare
        self.recipe: dict[str, Any] = {"features": 2}

    def __call__(self, prepared: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        rows = [(pixels.mean(), len(prepared)) for pixels in prepared]
        return np.array(rows, np.float32)


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_are_a_clips_own_or_full(
    recipe: Recipe, clips: Path, tmp_path: Path, device: str, readers: int
) -> None:
    """On the CPU a clip's frames are by themselves, on a GPU every batch has all of its frames."""
    short = sorted(clips.glob("Explosion/*.mp4"))  # of four snippets
    long = make_clip(tmp_path / "long.mp4", "Crash", 1, seconds=5.0)  # of twenty
    extractor = Extractor(recipe, "cpu", readers=readers)
    expected = {file: extractor(file).video for file in (*short, long)}
    eye = Counting(extractor.frame_networks["video"].prepare)
    extractor.frame_networks["video"] = extractor._networks["video"] = eye
    extractor.device = torch.device(device)
    made = dict(extractor.stream([Files(file, None) for file in (short[0], long, *short[1:])]))
    sizes = {}
    for (file, _), features in made.items():
        assert isinstance(features, Features)
        assert len(features) == len(expected[file])
        sizes[file.name if file == long else "short"] = features.video[:, 1].tolist()
        assert features.video_valid.all()
        assert len(set(features.video[:, 0].tolist())) > 1 or file != long
    if device == "cpu":
        assert sizes == {"short": [4] * 4, "long.mp4": [16] * 16 + [4] * 4}
    else:
        assert sizes == {"short": [16] * 4, "long.mp4": [16] * 20}
    extractor.close()


class Threads(Instant):
    """Fails each clip with the number of threads that torch has."""

    def stream(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Features | ClipError]]:
        for task in tasks:
            yield task, ClipError(f"{torch.get_num_threads()} threads")


def test_a_worker_has_one_thread_whatever_their_number(clips: Path, tmp_path: Path) -> None:
    """What two threads add up differs from what one does, in the last digits."""
    for workers in (1, 2):
        summary = extract(
            tasks(clips)[:2],
            tmp_path / str(workers),
            RECIPE,
            cluster=Cluster(workers=workers),
            make=Threads,
        )
        assert set(summary.failed.values()) == {"1 threads"}


def old(recipe: Recipe) -> Recipe:
    """As it was before the versions of the reading code were counted."""
    streams = {
        name: {key: value for key, value in settings.items() if key != "reading"}
        for name, settings in recipe.streams.items()
    }
    return replace(recipe, streams=streams)


def test_features_of_another_reading_code_are_not_mixed_with_todays(
    recipe: Recipe, clips: Path, tmp_path: Path
) -> None:
    assert {settings["reading"] for settings in recipe.streams.values()} == {2}
    before = old(recipe)
    assert before.fingerprint != recipe.fingerprint
    Writer(tmp_path / "store", before).__exit__(None, None, None)
    with pytest.raises(FeatureError, match=r"cannot be extended: .*time stamps"):
        extract(tasks(clips)[:1], tmp_path / "store", recipe)
    with pytest.raises(FeatureError, match=r"another version of avarnet: .*other_reading=True"):
        extract(tasks(clips)[:1], tmp_path / "store", before)
    assert not Store(tmp_path / "store")
    some = Extractor(before, other_reading=True)(clips / "Explosion" / "0.mp4")
    assert some.video.tobytes() == Extractor(recipe)(clips / "Explosion" / "0.mp4").video.tobytes()


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
        readers = [p for p in family if "extract.decoding.child" in " ".join(p.cmdline())]
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
