"""The features of one clip: one row per snippet and stream, on one time grid."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Self

import numpy as np
from numpy.typing import NDArray

from features.foreign_text import html_table, in_one_line
from features.recipe import FeatureError


class Flag(IntFlag):
    """What went wrong with a clip whose features are usable all the same."""

    NONE = 0
    PICTURE_DAMAGED = 1  # some frames could not be decoded; their rows are flagged invalid
    SOUND_DAMAGED = 2  # there is a sound track, but some or all of it could not be decoded
    SOUND_GAP = 4  # sound is missing in the middle of its track; the rows there are flagged invalid
    CLOCK_JUMP = 8  # the file's clock restarted or jumped; what follows was moved to its place
    CUT_SHORT = 16  # the file ends before the duration that its container states, or in a packet
    NOT_FINITE = 32  # rows with values that are not finite in float16; they are flagged invalid


@dataclass(frozen=True)
class Features:
    """Features of one clip; T snippets long.

    Attributes:
        streams: stream name -> (T, D) float16, one row per snippet.
        valid: stream name -> (T,) bool; False where no frame or sound was read. Such rows
            mean nothing: go by this mask, not by the row.
        snippet_seconds: snippet t covers [t, t+1) x snippet_seconds, from the first frame on.
        duration: seconds of footage.
        flags: see `Flag`.
        source: SHA-256 of the video file, 64 hexadecimal digits; empty if there was no file.
    """

    streams: dict[str, NDArray[np.float16]]
    valid: dict[str, NDArray[np.bool_]]
    snippet_seconds: float
    duration: float
    flags: Flag = Flag.NONE
    source: str = ""

    def __post_init__(self) -> None:
        if not self.streams or self.streams.keys() != self.valid.keys():
            raise FeatureError("features need one validity per stream, and at least one stream")
        lengths = [*map(len, self.streams.values()), *map(len, self.valid.values())]
        if lengths.count(lengths[0]) != len(lengths):
            raise FeatureError("all streams of a clip need the same number of snippets")

    @classmethod
    def unchecked(
        cls,
        streams: dict[str, NDArray[np.float16]],
        valid: dict[str, NDArray[np.bool_]],
        snippet_seconds: float,
        duration: float,
        flags: Flag,
        source: str,
    ) -> Self:
        """Make features of arrays that are known to fit each other, in a third of the time.

        Args:
            streams: rows of each stream; see `Features`.
            valid: one mask for each stream.
            snippet_seconds: length of a snippet.
            duration: seconds of footage.
            flags: what went wrong.
            source: SHA-256 of the video file.
        """
        features = object.__new__(cls)
        features.__dict__.update(
            streams=streams,
            valid=valid,
            snippet_seconds=snippet_seconds,
            duration=duration,
            flags=flags,
            source=source,
        )
        return features

    def __len__(self) -> int:
        """Return T, the number of snippets."""
        return len(next(iter(self.streams.values())))

    def _shown(self) -> dict[str, str]:
        shown = {
            "duration": f"{self.duration:g} s, {len(self)} snippets of {self.snippet_seconds:g} s"
        }
        for name, rows in self.streams.items():
            shown[name] = f"{rows.shape[1]} values, {self.valid[name].sum()} of {len(self)} valid"
        if self.flags:
            shown["flags"] = ", ".join(str(flag.name) for flag in self.flags)
        return shown

    def __repr__(self) -> str:
        return f"<Features: {in_one_line(self._shown())}>"

    def _repr_html_(self) -> str:
        return html_table("Features", self._shown())

    @property
    def video(self) -> NDArray[np.float16]:
        """(T, Dv) rows of the frames."""
        return self.streams["video"]

    @property
    def audio(self) -> NDArray[np.float16]:
        """(T, Da) rows of the sound."""
        return self.streams["audio"]

    @property
    def video_valid(self) -> NDArray[np.bool_]:
        """(T,) where there was a frame."""
        return self.valid["video"]

    @property
    def audio_valid(self) -> NDArray[np.bool_]:
        """(T,) where there was sound."""
        return self.valid["audio"]
