"""Sound as a live stream has it: each snippet is read in a window that ends with it.

`avarnet extract --live` reads files so and `avarnet watch` reads streams so, by the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from extract.audio_windows import frame_centres
from extract.decoding.sound_placement import SAMPLE_RATE

if TYPE_CHECKING:  # the receiving process must stay without torch
    from extract.backbones.base import SoundBackbone

TRAILING = "trailing_seconds"  # the length of the window, in a stream's recipe and source
BATCH_SECONDS = 16.0  # of sound that a network reads at once


def trailing_seconds(snippet_seconds: float) -> float:
    """Return the length of the window: of more, two cores could not keep up with a stream."""
    return max(1.0, snippet_seconds)


class Tail(NamedTuple):
    """The sound of one snippet, or of one run of sound in it if there is a hole.

    Attributes:
        window: (samples,) mono at 16 kHz, which end with the snippet or the run.
        since: the sample at which the snippet starts.
    """

    window: NDArray[np.float32]
    since: int


def span(snippet: int, snippet_seconds: float, seconds: float) -> tuple[int, int]:
    """Return where a snippet's window of so many seconds begins and ends, in samples.

    Args:
        snippet: its number.
        snippet_seconds: one step of the time grid.
        seconds: the length of the window.
    """
    stop = round((snippet + 1) * snippet_seconds * SAMPLE_RATE)
    return max(0, stop - round(seconds * SAMPLE_RATE)), stop


class Runs:
    """Sound as far as it is kept: runs without a hole, in the order of time.

    Attributes:
        end: where the last one ends, in samples after the first frame; None before the first.
    """

    def __init__(self) -> None:
        self.end: int | None = None
        self._runs: list[tuple[int, NDArray[np.float32]]] = []  # first sample, samples

    def add(self, first: int, samples: NDArray[np.float32]) -> None:
        """Take the next samples.

        Args:
            first: number of the first one: a hole if it is not the next. Negative ones come before
                the first frame, and are not read.
            samples: (n,), mono at 16 kHz.
        """
        if self._runs and first == self.end:
            begin, before = self._runs[-1]
            self._runs[-1] = begin, np.concatenate([before, samples])
        else:
            self._runs.append((first, samples))
        self.end = first + len(samples)

    def tails(self, snippet: int, snippet_seconds: float, seconds: float) -> tuple[Tail, ...]:
        """Cut out a snippet's window: of each run that has sound in the snippet, what is in it.

        Args:
            snippet, snippet_seconds, seconds: see `span`.
        """
        start = round(snippet * snippet_seconds * SAMPLE_RATE)
        found = []
        for first, window in self.between(*span(snippet, snippet_seconds, seconds)):
            since = max(0, start - first)
            if len(window) > since:
                found.append(Tail(window, since))
        return tuple(found)

    def between(self, begin: int, stop: int) -> list[tuple[int, NDArray[np.float32]]]:
        """Return of each run its first sample within some bounds, and its samples there.

        Args:
            begin, stop: the bounds, in samples.
        """
        return [
            (max(begin, first), samples[max(0, begin - first) : max(0, stop - first)])
            for first, samples in self._runs
        ]

    def drop(self, before: int) -> None:
        """Forget what is before a sample."""
        kept = []
        for first, samples in self._runs:
            gone = max(0, before - first)
            if gone < len(samples):
                kept.append((first + gone, samples[gone:]))
        self._runs = kept


def frames_of(network: SoundBackbone, tails: Sequence[Tail]) -> list[NDArray[np.float32]]:
    """Return the output frames whose centre is in the snippet of each window, (n, features).

    Of a network without a time axis, it is the one of the whole window.

    Args:
        tails: whose windows have one length.
    """
    if len(tails[0].window) < network.field:
        return [np.empty((0, network.features), np.float32)] * len(tails)
    outputs = network(np.stack([tail.window for tail in tails]))
    if not network.stride:  # it has no time axis
        return list(outputs)
    centres = frame_centres(network, outputs.shape[1])
    return [frames[centres >= tail.since] for frames, tail in zip(outputs, tails, strict=True)]


def row_of(frames: Sequence[NDArray[np.float32]]) -> NDArray[np.float32] | None:
    """Return a snippet's row: the mean of its output frames, (features,); None if it has none."""
    heard = np.concatenate(frames) if frames else ()
    return heard.mean(0) if len(heard) else None  # type: ignore[union-attr]


class TrailingWindows:
    """A clip's sound on its way through a network, block by block, in bounded memory.

    Args:
        network: that reads the sound; its recipe has the length of the windows.
        snippets: T, how many the clip has.
        snippet_seconds: their length.
    """

    def __init__(self, network: SoundBackbone, snippets: int, snippet_seconds: float) -> None:
        self._network = network
        self._seconds = float(network.recipe[TRAILING])
        self._step = snippet_seconds
        self._kept = Runs()
        self._next = 0  # snippet
        # which windows share a batch depends on the clip alone
        self._batch = max(1, int(BATCH_SECONDS / self._seconds))
        self._pending: list[tuple[int, Tail]] = []  # of one length
        self._frames: list[NDArray[np.float32]] = []  # of the snippet that was read last
        self._last = 0  # its number
        self._rows = np.zeros((snippets, network.features), np.float32)
        self._valid = np.zeros(snippets, bool)

    def add(self, first: int, samples: NDArray[np.float32]) -> None:
        """Take the next samples; see `Runs.add`.

        Args:
            first, samples: see `Runs.add`.
        """
        self._kept.add(first, samples)
        while self._next < len(self._rows) and self._span()[1] <= first + len(samples):
            self._cut_next()
        self._kept.drop(self._span()[0])

    def finish(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return (T, features) rows, and (T,) validity: False where there was no sound."""
        while self._next < len(self._rows):
            self._cut_next()
        self._run_batch()
        return self._rows, self._valid

    def _span(self) -> tuple[int, int]:
        return span(self._next, self._step, self._seconds)

    def _cut_next(self) -> None:
        snippet, self._next = self._next, self._next + 1
        for found in self._kept.tails(snippet, self._step, self._seconds):
            if self._pending and len(found.window) != len(self._pending[0][1].window):
                self._run_batch()
            self._pending.append((snippet, found))
            if len(self._pending) == self._batch:
                self._run_batch()

    def _run_batch(self) -> None:
        batch, self._pending = self._pending, []
        if not batch:
            return
        outputs = frames_of(self._network, [found for _, found in batch])
        for (snippet, _), frames in zip(batch, outputs, strict=True):
            # a snippet with a hole in it has several windows, one after the other
            self._frames = [*self._frames, frames] if snippet == self._last else [frames]
            self._last = snippet
            row = row_of(self._frames)
            if row is not None:
                self._rows[snippet], self._valid[snippet] = row, True
