"""One clip's features, put together from what the reading process sends and the networks return."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from extract.audio_windows import AudioWindows
from extract.backbones.base import SoundBackbone
from extract.centred_windows import CentredWindows
from extract.decoding.container import ClipError
from extract.decoding.messages import AS_IT_IS, Begin, End, Failed, Frame, Readable, Sound
from extract.decoding.sound_placement import SAMPLE_RATE
from extract.finite import Extracted, as_stored, clean_sound
from extract.impairments import Impairment
from extract.live.trailing_windows import TRAILING, TrailingWindows
from extract.recipe import Networks
from features import Features, Flag

T = TypeVar("T", bound=Readable)
Windows = AudioWindows | CentredWindows | TrailingWindows


class ClipAssembly(Generic[T]):
    """A clip that is being extracted: its rows so far.

    Args:
        item: has the clip's files.
        snippet_seconds: one step of the time grid.
        networks: of the recipe; of an impairment of the sound or the picture only those are run
            that read it.

    Attributes:
        impairment: with which it is read.
        pending_frames: how many frames wait for a network.
    """

    def __init__(self, item: T, snippet_seconds: float, networks: Networks) -> None:
        self.item = item
        self.impairment: Impairment = getattr(item, "impairment", AS_IT_IS)
        reads = self.impairment.reads
        networks = {s: n for s, n in networks.items() if reads in (None, n.reads)}
        self.pending_frames = 0
        self._snippet_seconds = snippet_seconds
        self._networks = networks
        self._begin: Begin | None = None
        self._end: End | Failed | None = None
        self._sound: dict[str, Windows] = {}  # stream -> those of its network

    @property
    def video(self) -> Path:
        return self.item.video

    @property
    def audio(self) -> Path | None:
        return self.item.audio

    @property
    def complete(self) -> bool:
        """Whether nothing more comes of it."""
        return self._end is not None and not self.pending_frames

    def begin(self, message: Begin) -> None:
        """Start with empty rows, also where an earlier try was given up."""
        snippets = message.snippets
        self._begin = message
        self._sound = {}
        self._rows = {
            stream: np.zeros((snippets, network.features), np.float16)
            for stream, network in self._networks.items()
        }
        self._valid = {stream: np.zeros(snippets, bool) for stream in self._networks}
        # rows that are left out though there was something to see or hear
        self._left_out = {stream: np.zeros(snippets, bool) for stream in self._networks}
        self._broken_sound = np.zeros(snippets, bool)  # some of its samples are not finite

    def add_row(self, frame: Frame, row: NDArray[np.float32]) -> None:
        """Take the row that a network made of a frame.

        Args:
            frame: as it was sent.
            row: (features,).
        """
        stored, finite = as_stored(row)
        self._rows[frame.stream][frame.snippet] = stored
        self._valid[frame.stream][frame.snippet] = finite
        self._left_out[frame.stream][frame.snippet] = not finite
        self.pending_frames -= 1

    def add_sound(self, message: Sound) -> None:
        """Run the networks of sound on the next samples, as far as their windows are full."""
        assert self._begin is not None
        if not self._sound:
            self._sound = {
                stream: _windows_of(network)(network, self._begin.snippets, self._snippet_seconds)
                for stream, network in self._networks.items()
                if network.reads == "sound"
            }
        samples, broken = clean_sound(message.samples)
        if broken.any():
            at = (message.first + np.flatnonzero(broken)) / (self._snippet_seconds * SAMPLE_RATE)
            snippet = np.minimum(at.astype(np.int64), len(self._broken_sound) - 1)
            self._broken_sound[snippet] = True
        for windows in self._sound.values():
            windows.add(message.first, samples)

    def end(self, message: End) -> None:
        """Run the networks of sound on the last windows."""
        for stream, windows in self._sound.items():
            rows, valid = windows.finish()
            stored, finite = as_stored(rows)
            usable = finite & ~self._broken_sound
            self._rows[stream] = np.where(usable[:, None], stored, np.float16(0))
            self._valid[stream] = valid & usable
            self._left_out[stream] = valid & ~usable
        self._sound.clear()
        self._end = message

    def fail(self, message: Failed) -> None:
        """Note that the clip cannot be read."""
        self._end = message

    def result(self) -> Features | ClipError:
        """Return the features of a complete clip, or why there are none."""
        if isinstance(self._end, Failed):
            return ClipError(self._end.reason)
        assert self._begin is not None
        assert self._end is not None
        flags, all_seen = Flag.NONE, True
        rows, broken, not_finite = {}, {}, {}
        for stream, network in self._networks.items():
            valid, left_out = self._valid[stream], self._left_out[stream]
            rows[stream] = int((valid | left_out).sum())
            if network.reads == "frames":
                broken[stream] = 0
                all_seen &= rows[stream] == len(valid)
            else:
                broken[stream] = int((left_out & self._broken_sound).sum())
            not_finite[stream] = int(left_out.sum()) - broken[stream]
            if left_out.any():
                flags |= Flag.NOT_FINITE
        if not all_seen:
            flags |= Flag.PICTURE_DAMAGED
        if self._end.sound_damaged:
            flags |= Flag.SOUND_DAMAGED
        for name in self._end.flags:
            flags |= Flag[name]
        return Extracted(
            streams=self._rows,
            valid=self._valid,
            snippet_seconds=self._snippet_seconds,
            duration=self._begin.duration,
            flags=flags,
            source=self._end.source,
            rows=rows,
            broken=broken,
            not_finite=not_finite,
        )


def _windows_of(network: SoundBackbone) -> type[Windows]:
    if TRAILING in network.recipe:
        return TrailingWindows
    return AudioWindows if network.stride else CentredWindows
