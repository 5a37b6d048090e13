"""Rows by a network of sound without a time axis: of windows centred on their snippets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from extract.decoding.sound_placement import SAMPLE_RATE
from extract.live.trailing_windows import Runs

if TYPE_CHECKING:
    from extract.backbones.base import SoundBackbone

STRIDE = "stride_seconds"  # from one window to the next, in a stream's recipe and source


class CentredWindows:
    """A clip's sound on its way through a network, block by block, in bounded memory.

    A window is centred on a snippet, or on a stride of several, which then have one row. It ends
    where the sound does: none reaches over a hole, and what is shorter than a window is filled up
    by the network, as in its training. A snippet with a hole in it has the mean of the rows of both
    sides, weighted by how much of it is theirs.

    Args:
        network: that reads the sound; its recipe has the stride, if it is not one snippet.
        snippets: T, how many the clip has.
        snippet_seconds: their length.
    """

    def __init__(self, network: SoundBackbone, snippets: int, snippet_seconds: float) -> None:
        self._network = network
        self._step = snippet_seconds * SAMPLE_RATE
        self._stride = round(network.recipe.get(STRIDE, snippet_seconds) / snippet_seconds)
        self._kept = Runs()
        self._next = 0  # snippet
        self._rows = np.zeros((snippets, network.features), np.float32)
        self._heard = np.zeros(snippets, np.int64)  # samples

    def add(self, first: int, samples: NDArray[np.float32]) -> None:
        """Take the next samples; see `Runs.add`.

        Args:
            first, samples: see `Runs.add`.
        """
        self._kept.add(first, samples)
        while self._next < len(self._rows) and self._window()[1] <= first + len(samples):
            self._read_next()
        self._kept.drop(self._window()[0])

    def finish(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return (T, features) rows, and (T,) validity: False where there was no sound."""
        while self._next < len(self._rows):
            self._read_next()
        valid = self._heard > 0
        self._rows[valid] /= self._heard[valid, None]
        return self._rows, valid

    def _window(self) -> tuple[int, int]:
        """Return where the next window begins and ends, in samples."""
        length: int = self._network.window  # type: ignore[attr-defined]
        begin = round((self._next + self._stride / 2) * self._step - length / 2)
        return max(0, begin), begin + length

    def _read_next(self) -> None:
        """Read the next window, and give its row to its snippets."""
        (begin, stop), start = self._window(), self._next
        self._next = min(start + self._stride, len(self._rows))
        edges = np.round(np.arange(start, self._next + 1) * self._step).astype(np.int64)
        for first, samples in self._kept.between(begin, stop):
            inside = np.diff(edges.clip(first, first + len(samples)))
            inside[inside < self._network.field] = 0
            if inside.any():
                (row,) = self._network(samples[None])[0]
                self._rows[start : self._next] += inside[:, None] * row
                self._heard[start : self._next] += inside
