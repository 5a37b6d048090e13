"""What goes to the process that receives a stream, and what comes back.

It answers each `Request`, one for each connection, with a `Begin` for each stretch without a break,
`SnippetData` for each of its snippets, `Broken` where something is wrong, and an `End`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from extract.live.trailing_windows import Tail
from extract.preprocessing import Prepare


class Request(NamedTuple):
    """One connection to a source, and what becomes of it.

    Attributes:
        url: the source, as FFmpeg takes it.
        step, window, prepare: see `Receiver`.
        grown_seconds: in which a file has not grown, after which it is whole.
    """

    url: str
    step: float
    window: float
    prepare: dict[str, Prepare]
    grown_seconds: float


class Begin(NamedTuple):
    """The first frame of a stretch without a break has come."""

    received: float


class SnippetData(NamedTuple):
    """A whole snippet of a stretch.

    Attributes:
        number: from 0 on.
        ahead: the newest frame's time since the stretch's first one, less `time.monotonic`.
        pixels, sound, received: see `ReceivedSnippet`.
    """

    number: int
    ahead: float
    pixels: dict[str, NDArray[np.uint8]]
    sound: tuple[Tail, ...]
    received: float


class Broken(NamedTuple):
    """A gap begins."""

    why: str


class End(NamedTuple):
    """The connection is over."""

    why: str


Message = Begin | SnippetData | Broken | End
