"""From the output frames of a network of sound to rows on a clip's time grid."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from extract.decoding.sound_placement import SAMPLE_RATE

if TYPE_CHECKING:  # which imports this module
    from extract.backbones.base import SoundBackbone

WINDOW_SECONDS = 20.0  # of sound that a network reads at once, if it can read any number
OVERLAP = 0.2  # of a window, in which its rows fade into the next one's


def frame_centres(network: SoundBackbone, frames: int) -> NDArray[np.float64]:
    """Return on which sample of a window each of so many output frames is centred.

    Args:
        network: whose they are.
        frames: how many.
    """
    first = getattr(network, "centre", network.field / 2)
    return np.asarray(first + network.stride * np.arange(frames), np.float64)


def window_seconds(network: SoundBackbone) -> float:
    """Return how much sound a network reads at once."""
    samples: int | None = getattr(network, "window", None)
    return samples / SAMPLE_RATE if samples else WINDOW_SECONDS


class AudioWindows:
    """A clip's sound on its way through a network, block by block, in bounded memory.

    The network reads windows that overlap, and whose rows fade into each other. A row is the mean
    of the output frames whose centre is in its snippet. No window reaches over a hole in the sound:
    each run without one is read as if it were alone.

    Args:
        network: that reads the sound.
        snippets: T, how many the clip has.
        snippet_seconds: their length.
    """

    def __init__(self, network: SoundBackbone, snippets: int, snippet_seconds: float) -> None:
        self._network = network
        self._snippets = snippets
        self._step = snippet_seconds * SAMPLE_RATE  # samples per snippet
        seconds = window_seconds(network)
        length = seconds / snippet_seconds
        limited = getattr(network, "window", None) is not None
        self._length = max(1, int(length) if limited else round(length))
        self._overlap = min(round(OVERLAP * seconds / snippet_seconds), self._length - 1)
        self._rows = np.zeros((snippets, network.features), np.float32)
        self._weight = np.zeros(snippets, np.float32)
        self._count = np.zeros(snippets, np.int64)  # of the frames whose mean a row is
        self._open(0)

    def _open(self, first: int) -> None:
        """Begin a run that begins at sample `first`."""
        self._first = self._low = self._last = first  # of the run, of what is kept; its end
        self._begin = self._start = int(first / self._step)  # of the run, of the next window
        self._kept: NDArray[np.float32] = np.empty(0, np.float32)
        # the snippet in which one run ends and another begins has rows of both
        shared = slice(self._begin, self._begin + 1)
        self._before = self._rows[shared].copy(), self._count[shared].copy()
        self._rows[shared] = self._weight[shared] = self._count[shared] = 0

    def _close(self) -> None:
        """End a run."""
        end = self._end()
        if self._begin < end:
            self._run(max(self._begin, end - self._length), end, more=False)
        run = slice(self._begin, end)
        heard = self._weight[run] > 0
        self._rows[run][heard] /= self._weight[run][heard, None]
        rows, count = self._before
        if count.any():
            shared = slice(self._begin, self._begin + 1)
            total = self._count[shared] + count
            self._rows[shared] *= (self._count[shared] / total)[:, None]
            self._rows[shared] += rows * (count / total)[:, None]
            self._count[shared], self._weight[shared] = total, 1

    def add(self, first: int, samples: NDArray[np.float32]) -> None:
        """Take the next samples, from sample `first` on: a hole if they are not the next.

        Args:
            first: on the clip's clock; not negative.
            samples: (n,), mono at 16 kHz.
        """
        if first != self._last:
            self._close()
            self._open(first)
        self._kept = np.concatenate([self._kept, samples])
        self._last += len(samples)
        while self._start + self._length < self._end():
            stop = self._start + self._length
            self._run(self._start, stop, more=True)
            # the last window begins behind this one's begin
            drop = max(0, math.floor(self._start * self._step) - self._low)
            self._kept, self._low = self._kept[drop:], self._low + drop
            self._start = stop - self._overlap

    def finish(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return (T, features) rows, and (T,) validity: False where there was no sound."""
        self._close()
        return self._rows, self._weight > 0

    def _end(self) -> int:
        return min(self._snippets, math.ceil(self._last / self._step))

    def _run(self, start: int, stop: int, more: bool) -> None:
        """Add the window [start, stop) to the rows; `more` if another one follows."""
        low = max(self._first, round(start * self._step))
        high = min(self._last, round(stop * self._step))
        if high - low < self._network.field:
            return
        (outputs,) = self._network(self._kept[None, low - self._low : high - self._low])
        centres = low + frame_centres(self._network, len(outputs))
        snippet = np.minimum((centres / self._step).astype(np.int64), stop - 1) - start
        count = np.bincount(snippet, minlength=stop - start)
        total = np.zeros((stop - start, self._network.features), np.float32)
        stops = np.cumsum(count)
        for number in np.flatnonzero(count):  # a tenth of the time of np.add.at
            total[number] = outputs[stops[number] - count[number] : stops[number]].sum(0)
        heard = count > 0
        fade = self._fade(start, stop, more) * heard
        self._rows[start:stop][heard] += fade[heard, None] * total[heard] / count[heard, None]
        self._weight[start:stop] += fade
        self._count[start:stop] = np.maximum(self._count[start:stop], count)

    def _fade(self, start: int, stop: int, more: bool) -> NDArray[np.float32]:
        """Return the weight of a window in each of its snippets: ramps where others overlap."""
        snippet = np.arange(start, stop)
        weight = np.ones(stop - start)
        if start > self._begin:
            weight = np.minimum(weight, (snippet - start + 1) / (self._overlap + 1))
        if more:
            weight = np.minimum(weight, (stop - snippet) / (self._overlap + 1))
        return weight.astype(np.float32)
