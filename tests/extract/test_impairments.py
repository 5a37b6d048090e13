"""What impairments do to frames and samples, measured; what they leave alone is as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal import welch

from extract import Cluster, Extractor, Files, Task, extract, make_recipe
from extract.decoding.child import read_clip
from extract.decoding.messages import AS_IT_IS, Frame, Request, Sound
from extract.impairments import (
    NOISES,
    SAMPLE_RATE,
    Blurred,
    Dark,
    Frozen,
    Impairment,
    LateSound,
    LowFrameRate,
    Noisy,
    impairments,
    noise,
)
from extract.synthetic import SOUND_RATE, make_clip, write_video
from features import Features, Recipe, Store

STEP, FPS, SECONDS = 0.25, 8, 3


class Impaired(NamedTuple):
    """A clip that is read with an impairment."""

    video: Path
    audio: Path | None
    impairment: Impairment


@dataclass(frozen=True)
class Whole:
    """The frame as it is seen."""

    instants: tuple[float, ...] = (0.0,)

    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        return frames[0]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame k has a left half of value 20 + 9 k; the sound is noise that grows louder."""
    pictures = np.full((FPS * SECONDS, 96, 128, 3), 120, np.uint8)
    pictures[:, :, :64] = 20 + 9 * np.arange(FPS * SECONDS)[:, None, None, None]
    growing = np.linspace(0.01, 0.1, SECONDS * SOUND_RATE)
    sound = (np.random.default_rng(0).normal(size=len(growing)) * growing).astype(np.float32)
    return write_video(tmp_path_factory.mktemp("film") / "a.mp4", pictures, FPS, sound)


def seen(film: Path, impairment: Impairment = AS_IT_IS) -> NDArray[np.uint8]:
    """Return (T, H, W, 3), the frame of each snippet."""
    request = Request(Files(film), STEP, {"video": Whole()}, impairment)
    frames = [m.pixels for m in read_clip(request) if isinstance(m, Frame)]
    assert len(frames) == SECONDS / STEP
    return np.stack(frames)


def heard(film: Path, impairment: Impairment = AS_IT_IS) -> NDArray[np.float32]:
    """Return the samples of the whole clip; not a number where there is no sound."""
    whole = np.full(SECONDS * SAMPLE_RATE, np.nan, np.float32)
    for message in read_clip(Request(Files(film), STEP, {}, impairment)):
        if isinstance(message, Sound):
            whole[message.first : message.first + len(message.samples)] = message.samples
    return whole


def shown(frames: NDArray[np.uint8]) -> list[int]:
    """Return the numbers of frames of the film, by their left half."""
    return [round((frame[:, :48].mean() - 20) / 9) for frame in frames]


def test_dark_is_a_fifth_of_every_value(film: Path) -> None:
    assert (seen(film, Dark(0.2)) == np.rint(seen(film) * 0.2)).all()


def test_blurred_is_gaussian(film: Path) -> None:
    deviation = 0.05 * 96
    expected = gaussian_filter(
        seen(film).astype(float), (0, deviation, deviation, 0), mode="nearest"
    )
    found = seen(film, Blurred(0.05)).astype(float)
    assert np.abs(found - expected).max() < 4  # Pillow's is several box blurs
    assert np.abs(found - seen(film)).max() > 30


def test_frozen_and_few_frames(film: Path) -> None:
    middles = (np.arange(SECONDS / STEP) + 0.5) * STEP
    assert shown(seen(film)) == [int(at * FPS) for at in middles]
    frozen = seen(film, Frozen())
    assert (frozen == seen(film)[0]).all()
    assert shown(seen(film, LowFrameRate(1))) == [int(at) * FPS for at in middles]
    assert shown(seen(film, LowFrameRate(2))) == [int(at * 2) * FPS // 2 for at in middles]
    assert (seen(film, LowFrameRate(1000)) == seen(film)).all()


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.0, 3.0])
def test_late_sound_is_the_same_and_later(film: Path, seconds: float) -> None:
    whole, late = heard(film), heard(film, LateSound(seconds))
    first = round(seconds * SAMPLE_RATE)
    assert np.isnan(late[:first]).all()
    assert np.array_equal(late[first:], whole[: len(whole) - first], equal_nan=True)


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("ratio", [20, 10, 0, -5])
def test_noise_is_as_loud_as_asked(film: Path, kind: str, ratio: int) -> None:
    whole = heard(film)
    added = heard(film, Noisy(kind, ratio, seed=1, start=12_345)) - whole
    known = ~np.isnan(whole)
    assert known.mean() > 0.95
    power = [np.square(part[known], dtype=np.float64).mean() for part in (whole, added)]
    assert 10 * np.log10(power[0] / power[1]) == pytest.approx(ratio, abs=0.05)


def test_noise_is_the_seeds_and_the_clips(film: Path) -> None:
    one = heard(film, Noisy("babble", 0, seed=1, start=5))
    assert np.array_equal(one, heard(film, Noisy("babble", 0, seed=1, start=5)), equal_nan=True)
    for other in (Noisy("babble", 0, 2, 5), Noisy("babble", 0, 1, 6)):
        assert not np.array_equal(one, heard(film, other), equal_nan=True)
    names = [imp.start for imp in (impairments(i, 0)["babble, 0 dB"] for i in "ab")]  # type: ignore[attr-defined]
    assert names[0] != names[1]


def test_silence_stays_silent_and_long_sound_needs_no_memory() -> None:
    silent = np.zeros(1000, np.float32)
    ((_, samples),) = Noisy("white", 0, 0, 0).sound(lambda: iter([(0, silent)]))
    assert (samples == 0).all()
    block = np.random.default_rng(0).normal(size=SAMPLE_RATE).astype(np.float32)

    def read() -> Iterator[tuple[int, NDArray[np.float32]]]:
        for second in range(70):  # the noise repeats itself after 30 s
            yield second * SAMPLE_RATE, block

    power = 0.0
    for count, (first, samples) in enumerate(Noisy("traffic-like", -5, 0, 77).sound(read)):
        assert (first, len(samples)) == (count * SAMPLE_RATE, SAMPLE_RATE)
        power += np.square(samples - block, dtype=np.float64).sum()
    ratio = 70 * np.square(block, dtype=np.float64).sum() / power
    assert 10 * np.log10(ratio) == pytest.approx(-5, abs=0.05)


def test_noises_sound_as_they_are_called() -> None:
    def share_below(kind: str, hertz: float) -> float:
        at, power = welch(noise(kind, 0), SAMPLE_RATE, nperseg=4096)
        return float(power[at < hertz].sum() / power.sum())

    def changes(kind: str) -> float:
        """How much the loudness of 50 ms differs from one to another."""
        loud = np.square(noise(kind, 0)).reshape(-1, SAMPLE_RATE // 20).mean(1) ** 0.5
        return float(loud.std() / loud.mean())

    assert share_below("white", 4000) == pytest.approx(0.5, abs=0.01)
    assert share_below("traffic-like", 500) > 0.8  # of white noise 0.06
    assert share_below("babble", 80) < 0.01
    assert 0.3 < share_below("babble", 500) < 0.9
    assert share_below("babble", 4000) > 0.95
    assert changes("white") < 0.05
    assert changes("babble") > 0.15
    for kind in NOISES:  # the end goes on with the beginning
        steps = np.abs(np.diff(noise(kind, 0)))
        assert abs(noise(kind, 0)[0] - noise(kind, 0)[-1]) <= steps.max()


@pytest.mark.slow
def test_only_what_is_impaired_is_read_and_the_clean_reading_is_the_stores(
    recipe: Recipe, tmp_path: Path
) -> None:
    video = make_clip(tmp_path / "a.mp4", "Crash", 1, seconds=2.0)
    extract([Task("a", video)], tmp_path / "store", recipe, cluster=Cluster(workers=1))
    stored = Store(tmp_path / "store")["a"]
    kinds = impairments("a", 0)
    extractor = Extractor(recipe)
    files = [
        Impaired(video, None, kind) for kind in (AS_IT_IS, kinds["frozen"], kinds["sound 1 s late"])
    ]
    clean, frozen, late = (found for _, found in extractor.stream(files))
    extractor.close()
    assert isinstance(clean, Features)
    assert isinstance(frozen, Features)
    assert isinstance(late, Features)
    for name, rows in stored.streams.items():
        assert clean.streams[name].tobytes() == rows.tobytes()
        assert (clean.valid[name] == stored.valid[name]).all()
    assert frozen.streams.keys() == {"video"}
    assert (frozen.streams["video"] == frozen.streams["video"][0]).all()
    assert (frozen.streams["video"][0] == stored.streams["video"][0]).all()
    assert late.streams.keys() == {"audio"}
    assert late.valid["audio"].tolist() == [False] * 4 + [True] * 4
    assert "impairment" not in Task._fields  # by which a store is filled


@pytest.mark.slow
def test_nothing_flows_in_a_frozen_picture(tmp_path: Path) -> None:
    video = make_clip(tmp_path / "a.mp4", "Brawling", 1, seconds=1.0)
    extractor = Extractor(make_recipe(only=["flow"]))
    files = [Impaired(video, None, kind) for kind in (AS_IT_IS, Frozen())]
    moving, frozen = (found for _, found in extractor.stream(files))
    extractor.close()
    assert isinstance(moving, Features)
    assert isinstance(frozen, Features)
    assert moving.streams["flow"].any()
    assert not frozen.streams["flow"].any()
    assert frozen.valid["flow"].all()
