"""The features of a live stream, snippet by snippet.

A frame is the one shown at the snippet's middle, as offline. Sound cannot be as offline, where a
snippet lies within a window of 20 s: here the window ends with the snippet, and a network answers
by all that it hears. With random weights, rows from 1 s have a cosine of 0.89 with the offline
ones, from 4 s of 0.92; a Wav2Vec2-base takes 87 and 257 ms for them on two cores
(benchmarks/RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from extract.backbones import SoundBackbone
from extract.extractor import Networks, networks_of, pick_device
from extract.receiver import Gap, Receiver, Whole
from features import Recipe

SOUND_SECONDS = 1.0  # of sound that a network hears for each snippet


class Snippet(NamedTuple):
    """The features of one snippet.

    Attributes:
        start, end: seconds on the stream's clock, which is zero at the first frame, and in gaps
            runs on by the clock on the wall.
        rows: stream -> (D,) float16; zeros where it has nothing to say.
        valid: stream -> whether it has something to say; one has.
        received: `time.monotonic` when the last of what it took had come.
    """

    start: float
    end: float
    rows: dict[str, NDArray[np.float16]]
    valid: dict[str, bool]
    received: float


def live_snippets(
    source: str, recipe: Recipe, device: str = "auto", retries: int | None = None
) -> Iterator[Snippet | Gap]:
    """Yield the snippets of a stream as they come, and its gaps: each when it begins and when over.

    A URL is opened again after a cut. A file and a pipe wait for the networks; the stream of a URL
    does not: what of it is too late is passed over, which is a gap.

    Args:
        source: a URL that FFmpeg reads (``rtsp://``, ``http://``), a file that may still grow, or
            ``-`` for standard input.
        recipe: of the features.
        device: as the `Extractor`'s.
        retries: how often in a row a URL is opened again in vain; None for ever.

    Raises:
        ClipError: the source cannot be opened, or not again.
        WeightsError: the networks cannot be had, or are not those of the recipe.
    """
    networks = networks_of(recipe, pick_device(device))
    prepare = {name: eye.prepare for name, eye in networks.items() if eye.reads == "frames"}
    window = SOUND_SECONDS if len(prepare) < len(networks) else 0.0
    for event in Receiver(source, recipe.snippet_seconds, window, prepare, retries):
        yield event if isinstance(event, Gap) else _snippet(event, networks)


def _snippet(whole: Whole, networks: Networks) -> Snippet:
    rows, valid = {}, {}
    for name, network in networks.items():
        row = None
        if network.reads == "sound":
            row = _heard(network, whole.sound, whole.since)
        elif name in whole.pixels:
            (row,) = network([whole.pixels[name]])
        valid[name] = row is not None
        rows[name] = np.zeros(network.features) if row is None else row
    return Snippet(
        whole.start,
        whole.end,
        {name: row.astype(np.float16) for name, row in rows.items()},
        valid,
        whole.received,
    )


def _heard(
    network: SoundBackbone, sound: NDArray[np.float32], since: int
) -> NDArray[np.float32] | None:
    """Return the mean of the output frames whose centre is at sample `since` or later."""
    if len(sound) < network.field:
        return None
    outputs = network(sound)
    centres = network.stride * np.arange(len(outputs)) + network.field / 2
    within = outputs[centres >= since]
    return within.mean(0) if len(within) else None
