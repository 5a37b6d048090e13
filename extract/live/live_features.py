"""The features of a live stream, snippet by snippet.

A frame is the one shown at the snippet's middle, as offline. Sound cannot be as it usually is
offline, where a snippet lies within a window of 20 s: here the window ends with the snippet
(`extract.live.trailing_windows`). A recipe of `make_recipe(live=True)`, which is that of `avarnet
extract --live`, has the same windows, and the rows of a stream are those of its recording. By any
other recipe a window decides on each row of it, so that the rows of sound are of another kind:
with random weights, their cosine with the offline ones is 0.89 (benchmarks/RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from extract.backbones.base import SoundBackbone, WeightsError
from extract.device import pick_device
from extract.finite import as_stored, clean_sound
from extract.live.stream_receiver import Gap, ReceivedSnippet, Receiver
from extract.live.trailing_windows import TRAILING, Tail, frames_of, row_of, trailing_seconds
from extract.preprocessing import FrameWindow
from extract.recipe import Networks, networks_of
from features import Recipe


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
        device: ``auto`` (CUDA, then Apple's MPS, then the CPU) or a torch device.
        retries: how often in a row a URL is opened again in vain; None for ever.

    Raises:
        ClipError: the source cannot be opened, or not again.
        WeightsError: the networks cannot be loaded, or are not those of the recipe.
    """
    networks = networks_of(recipe, pick_device(device))
    for name, network in networks.items():
        if network.reads == "frames" and isinstance(network.prepare, FrameWindow):
            raise WeightsError(
                f"the stream {name} reads frames after its snippet, which a live stream does "
                "not have: train a run on other streams (train --streams)"
            )
    prepare = {name: net.prepare for name, net in networks.items() if net.reads == "frames"}
    sound_networks = [network for network in networks.values() if network.reads == "sound"]
    default = trailing_seconds(recipe.snippet_seconds)
    window = max((net.recipe.get(TRAILING, default) for net in sound_networks), default=0.0)
    for event in Receiver(source, recipe.snippet_seconds, window, prepare, retries):
        yield event if isinstance(event, Gap) else _snippet(event, networks)


def _row(network: SoundBackbone, tails: Sequence[Tail]) -> NDArray[np.float32] | None:
    """Return the row of a snippet's sound; none if some of its samples are no numbers."""
    frames = []
    for tail in tails:
        window, broken = clean_sound(tail.window)
        if broken[tail.since :].any():  # as in files: only what comes before may lack some
            return None
        frames += frames_of(network, [tail._replace(window=window)])
    return row_of(frames)


def _snippet(received: ReceivedSnippet, networks: Networks) -> Snippet:
    rows, valid = {}, {}
    for name, network in networks.items():
        row = None
        if network.reads == "sound":
            row = _row(network, received.sound)
        elif name in received.pixels:
            (row,) = network([received.pixels[name]])
        kept, fine = as_stored(np.zeros(network.features, np.float32) if row is None else row)
        rows[name], valid[name] = kept, row is not None and bool(fine)
    return Snippet(
        received.start,
        received.end,
        rows,
        valid,
        received.received,
    )
