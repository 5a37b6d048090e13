"""What goes to the reading process, and what comes back.

It answers each `Request` with one `Begin`, a `Frame` for each snippet that has one, `Sound` if the
clip has any, and an `End`; or with a `Failed` at any point.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from extract.impairments import Impairment
from extract.preprocessing import Prepare

AS_IT_IS = Impairment()


class Readable(Protocol):
    """What has a clip's files, such as `Files` or a `Task`; it may have an ``impairment`` too."""

    @property
    def video(self) -> Path: ...
    @property
    def audio(self) -> Path | None: ...


class Files(NamedTuple):
    """A clip's files.

    Attributes:
        video: any video that FFmpeg reads.
        audio: its sound, if not in the video nor in a file of its name beside it.
    """

    video: Path
    audio: Path | None = None


class Request(NamedTuple):
    """One clip to read.

    Attributes:
        files: the clip's.
        snippet_seconds: one step of the time grid.
        prepare: for each stream of frames; if there is none, only sound is read.
        impairment: with which it is read.
    """

    files: Files
    snippet_seconds: float
    prepare: dict[str, Prepare]
    impairment: Impairment = AS_IT_IS


class Begin(NamedTuple):
    """The first message of a clip, also of a second try: what came before is void."""

    snippets: int
    duration: float  # seconds


class Frame(NamedTuple):
    """What a stream's `Prepare` has made of the frames of a snippet."""

    stream: str
    snippet: int
    pixels: NDArray[np.uint8]


class Sound(NamedTuple):
    """The next samples of the sound, mono at 16 kHz.

    Where `first` is not behind the last ones, there is a hole.
    """

    first: int  # samples after the clip's first frame, at which these begin
    samples: NDArray[np.float32]


class End(NamedTuple):
    """All was sent."""

    sound_damaged: bool
    source: str  # SHA-256 of the video file
    flags: frozenset[str] = frozenset()  # names of `features.Flag`, which is not imported here


class Failed(NamedTuple):
    """Nothing of the clip's picture can be read."""

    reason: str


Message = Begin | Frame | Sound | End | Failed
