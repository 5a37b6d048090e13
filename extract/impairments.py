"""Impairments of pictures and sound, as cameras in use have them, to test robustness.

They are applied to frames and samples after decoding. They are no part of a recipe: features of an
impaired clip are never put into a store.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from extract.decoding.sound_placement import SAMPLE_RATE

NOISE_SECONDS = 30  # after which noise repeats itself, without a seam
NOISES = ("white", "babble", "traffic-like")
RATIOS = (20, 10, 0, -5)  # dB, of a clip's sound to the noise
DELAYS = (0.5, 1.0, 2.0)  # seconds
FRAME_RATES = (5, 1)  # frames a second
DARKNESS = 0.2  # what is left of a pixel's value
BLUR = 0.02  # standard deviation of the blur, share of the picture's height
TALKERS, VEHICLES, PASSING = 8, 6, 1.5  # of the noises; seconds that one takes to pass

Blocks = Iterator[tuple[int, NDArray[np.float32]]]  # first sample, samples


class Impairment:
    """Leaves a clip as it is; each kind changes a part of it.

    Attributes:
        reads: what it is done to; only networks that read this are run. None: all are.
    """

    reads: ClassVar[Literal["frames", "sound"] | None] = None

    def times(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return when the frames are shown that are seen at some times, in seconds."""
        return times

    def picture(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return what is seen of a (H, W, 3) RGB frame."""
        return frame

    def sound(self, read: Callable[[], Blocks]) -> Blocks:
        """Return what is heard of a sound, which `read` reads from its beginning."""
        return read()


@dataclass(frozen=True)
class Dark(Impairment):
    """Every pixel's value is multiplied."""

    reads = "frames"
    factor: float

    def picture(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        darker: NDArray[np.uint8] = np.rint(frame * np.float32(self.factor)).astype(np.uint8)
        return darker


@dataclass(frozen=True)
class Blurred(Impairment):
    """A Gaussian blur; `share` of the height is its standard deviation."""

    reads = "frames"
    share: float

    def picture(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        blur = ImageFilter.GaussianBlur(self.share * len(frame))
        return np.asarray(Image.fromarray(frame).filter(blur))


@dataclass(frozen=True)
class Frozen(Impairment):
    """The first frame stays."""

    reads = "frames"

    def times(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.full_like(times, max(times.min(initial=np.inf), 0.0))


@dataclass(frozen=True)
class LowFrameRate(Impairment):
    """`rate` frames a second, each shown until the next one."""

    reads = "frames"
    rate: float

    def times(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.floor(times * self.rate) / self.rate


@dataclass(frozen=True)
class LateSound(Impairment):
    """The sound is `seconds` later than the picture; before it there is none."""

    reads = "sound"
    seconds: float

    def sound(self, read: Callable[[], Blocks]) -> Blocks:
        for first, samples in read():
            yield first + round(self.seconds * SAMPLE_RATE), samples


@dataclass(frozen=True)
class Noisy(Impairment):
    """Noise is added; where a clip is silent altogether, there is none.

    Attributes:
        noise: one of `NOISES`.
        ratio: dB, of the whole clip's sound to the noise that is added to it.
        seed: makes the noise.
        start: sample of the noise at which the clip begins.
    """

    reads = "sound"
    noise: str
    ratio: float
    seed: int
    start: int

    def sound(self, read: Callable[[], Blocks]) -> Blocks:
        power = np.zeros(2)
        for first, samples in read():
            known = np.nan_to_num(samples, posinf=0, neginf=0)
            pair = (known, self._noise(first, len(samples)))
            power += [np.square(part, dtype=np.float64).sum() for part in pair]
        gain = np.sqrt(power[0] / max(power[1], 1e-30)) * 10 ** (-self.ratio / 20)
        for first, samples in read():
            yield first, samples + np.float32(gain) * self._noise(first, len(samples))

    def _noise(self, first: int, count: int) -> NDArray[np.float32]:
        whole = noise(self.noise, self.seed)
        return np.take(whole, np.arange(first, first + count) + self.start, mode="wrap")


def impairments(clip_id: str, seed: int) -> dict[str, Impairment]:
    """Return name -> impairment, of one clip.

    Args:
        clip_id: chooses which part of a noise it hears.
        seed: makes the noises.
    """
    start = zlib.crc32(clip_id.encode("utf-8", "surrogatepass")) % (NOISE_SECONDS * SAMPLE_RATE)
    found: dict[str, Impairment] = {
        f"{kind} noise, {ratio} dB".replace("babble noise", "babble"): Noisy(
            kind, ratio, seed, start
        )
        for kind in NOISES
        for ratio in RATIOS
    }
    found |= {f"sound {seconds:g} s late": LateSound(seconds) for seconds in DELAYS}
    found |= {"dark": Dark(DARKNESS), "blurred": Blurred(BLUR), "frozen": Frozen()}
    return found | {
        f"{rate} {'frame' if rate == 1 else 'frames'} a second": LowFrameRate(rate)
        for rate in FRAME_RATES
    }


@lru_cache(maxsize=len(NOISES))
def noise(kind: str, seed: int) -> NDArray[np.float32]:
    """Return `NOISE_SECONDS` of a noise, its end as if its beginning came next.

    Babble: voices of moving pitch that come and go with their syllables, in about the spectrum that
    speech has on average (Byrne et al., JASA 1994), without words. Traffic-like: a rumble, and
    vehicles that pass.

    Args:
        kind: one of `NOISES`.
        seed: makes it.
    """
    rng = np.random.default_rng([seed, NOISES.index(kind)])
    count = NOISE_SECONDS * SAMPLE_RATE
    if kind == "white":
        return rng.normal(size=count).astype(np.float32)
    total = np.zeros(count)
    if kind == "babble":
        for _ in range(TALKERS):
            octaves = 0.2 * _filtered(rng.normal(size=count), lambda hertz: hertz < 2)
            phase = np.cumsum(rng.uniform(90, 240) * 2**octaves) / SAMPLE_RATE
            pulses = np.diff(np.floor(phase), prepend=0)
            syllables = _filtered(rng.normal(size=count), lambda hertz: hertz < 4).clip(0)
            total += syllables * (pulses + 0.02 * rng.normal(size=count))
        total = _filtered(total, lambda hertz: (hertz > 80) * (500 / hertz.clip(500)) ** 1.5)
    else:
        rumble = _filtered(
            rng.normal(size=count), lambda hertz: (hertz > 30) * 100 / hertz.clip(100)
        )
        seconds = np.arange(count) / SAMPLE_RATE
        for passes in rng.uniform(0, NOISE_SECONDS, VEHICLES):
            apart = (seconds - passes + NOISE_SECONDS / 2) % NOISE_SECONDS - NOISE_SECONDS / 2
            total += np.exp(-0.5 * np.square(apart / PASSING))
        total = (0.2 + total) * rumble
    return total.astype(np.float32)


def _filtered(
    signal: NDArray[np.float64], gain: Callable[[NDArray[np.float64]], NDArray[Any]]
) -> NDArray[np.float64]:
    """Return a signal that repeats itself with its frequencies weighted; its deviation is 1."""
    hertz: NDArray[np.float64] = np.fft.rfftfreq(len(signal), 1 / SAMPLE_RATE).astype(np.float64)
    passed = np.fft.irfft(np.fft.rfft(signal) * gain(hertz), len(signal))
    return np.asarray(passed / passed.std())
