"""Sound as a live stream has it: each snippet is heard in a window that ends with it.

`avarnet extract --live` hears files so and `avarnet watch` hears streams so, by the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from extract.decode import SAMPLE_RATE

if TYPE_CHECKING:  # the receiving process must stay without torch
    from extract.backbones import SoundBackbone

TRAILING = "trailing_seconds"  # the length of the window, in a stream's recipe and source
BATCH_SECONDS = 16.0  # of sound that a network reads at once


def trailing_seconds(snippet_seconds: float) -> float:
    """Return the length of the window: of more, two cores could not keep up with a stream."""
    return max(1.0, snippet_seconds)


class Tail(NamedTuple):
    """The sound of one snippet.

    Attributes:
        window: (samples,) mono at 16 kHz, which end with the snippet.
        since: the sample at which the snippet starts.
    """

    window: NDArray[np.float32]
    since: int


def span(snippet: int, snippet_seconds: float, seconds: float) -> tuple[int, int]:
    """Return where a snippet's window of so many seconds begins and ends, in samples."""
    stop = round((snippet + 1) * snippet_seconds * SAMPLE_RATE)
    return max(0, stop - round(seconds * SAMPLE_RATE)), stop


def tail(
    sound: NDArray[np.float32], first: int, snippet: int, snippet_seconds: float, seconds: float
) -> Tail | None:
    """Cut out a snippet's window, as far as there is sound; None if the snippet itself has none.

    Args:
        sound: (samples,), whose first one is sample `first` after the first frame (negative: it
            comes before, and is not heard).
    """
    begin, stop = span(snippet, snippet_seconds, seconds)
    window = sound[max(0, begin - first) : max(0, stop - first)]
    since = max(0, round(snippet * snippet_seconds * SAMPLE_RATE) - max(begin, first))
    return Tail(window, since) if len(window) > since else None


def rows_of(network: SoundBackbone, tails: Sequence[Tail]) -> list[NDArray[np.float32] | None]:
    """Return the row of each snippet, None where the network cannot hear so little.

    A row is the mean of the output frames whose centre is in the snippet.

    Args:
        tails: whose windows have one length.
    """
    if len(tails[0].window) < network.field:
        return [None] * len(tails)
    outputs = network(np.stack([tail.window for tail in tails]))
    centres = network.stride * np.arange(outputs.shape[1]) + network.field / 2
    within = [frames[centres >= tail.since] for frames, tail in zip(outputs, tails, strict=True)]
    return [frames.mean(0) if len(frames) else None for frames in within]


class Trailing:
    """A clip's sound on its way through a network, block by block, in bounded memory.

    Args: as `extract.listening.Listening`'s.
    """

    def __init__(
        self, network: SoundBackbone, first: int, snippets: int, snippet_seconds: float
    ) -> None:
        self._network = network
        self._seconds = float(network.recipe[TRAILING])
        self._step = snippet_seconds
        self._first = first  # of what is kept
        self._kept: NDArray[np.float32] = np.empty(0, np.float32)
        self._next = 0  # snippet
        # which windows share a batch depends on the clip alone
        self._batch = max(1, int(BATCH_SECONDS / self._seconds))
        self._waiting: list[tuple[int, Tail]] = []  # of one length
        self._rows = np.zeros((snippets, network.features), np.float32)
        self._valid = np.zeros(snippets, bool)

    def add(self, samples: NDArray[np.float32]) -> None:
        """Take the next samples."""
        self._kept = np.concatenate([self._kept, samples])
        end = self._first + len(self._kept)
        while self._next < len(self._rows) and self._span()[1] <= end:
            self._take()
        drop = max(0, self._span()[0] - self._first)
        self._kept, self._first = self._kept[drop:], self._first + drop

    def finish(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return (T, features) rows, and (T,) validity: False where there was no sound."""
        while self._next < len(self._rows):
            self._take()
        self._hear()
        return self._rows, self._valid

    def _span(self) -> tuple[int, int]:
        return span(self._next, self._step, self._seconds)

    def _take(self) -> None:
        snippet, self._next = self._next, self._next + 1
        found = tail(self._kept, self._first, snippet, self._step, self._seconds)
        if found is None:
            return
        if self._waiting and len(found.window) != len(self._waiting[0][1].window):
            self._hear()
        self._waiting.append((snippet, found))
        if len(self._waiting) == self._batch:
            self._hear()

    def _hear(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            rows = rows_of(self._network, [found for _, found in waiting])
            for (snippet, _), row in zip(waiting, rows, strict=True):
                if row is not None:
                    self._rows[snippet], self._valid[snippet] = row, True
