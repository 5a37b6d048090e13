"""Sound for the tests, and its way through a network, block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.audio_windows import AudioWindows
from extract.live.trailing_windows import TrailingWindows


def noise(samples: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0.1, 0.3, samples).astype(np.float32)


def heard(
    kind: type[AudioWindows] | type[TrailingWindows],
    network: Any,
    waveform: NDArray[np.float32],
    first: int,
    snippets: int,
    block: int = 160_000,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return rows and validity of a waveform whose snippets are of 0.25 s."""
    listening = kind(network, snippets, 0.25)
    for begin in range(0, len(waveform), block):
        listening.add(first + begin, waveform[begin : begin + block])
    return listening.finish()
