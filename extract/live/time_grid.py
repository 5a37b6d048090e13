"""Frames and sound of a stream, as they come, cut into snippets."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import av
import numpy as np
from numpy.typing import NDArray

from extract.decoding.frames import CLOCK_SLACK, upright
from extract.decoding.sound_placement import SAMPLE_RATE, SoundPiece, SoundPlacement
from extract.live.trailing_windows import Runs, Tail, span
from extract.preprocessing import Prepare

APART = 1.0  # seconds by which a stream's picture and sound may come apart
FROZEN = 2.0  # seconds for which a frame without a successor is what is to be seen
CLOCK_JUMP = 10.0  # seconds from one frame to the next; more is another clock
SOUND_KEPT = 30.0  # seconds, at most, of sound that waits for its picture


class TimeGrid:
    """A stretch of a stream without a break, on a time grid that starts at its first frame.

    Args:
        step: seconds of a snippet.
        window: seconds of sound that end with each snippet; 0 if no sound is wanted.
        prepare: for each stream of frames.

    Attributes:
        origin: the container's time of the first frame; None before it.
    """

    def __init__(self, step: float, window: float, prepare: Mapping[str, Prepare]) -> None:
        self.origin: float | None = None
        self._step, self._window, self._prepare = step, window, prepare
        self._instants = sorted({at for p in prepare.values() for at in p.instants}) or [0.0]
        self._number = 0  # of the next snippet
        # all times are those of the container
        self._newest: av.VideoFrame | None = None
        self._shown_since = -math.inf
        self._pace = 0.0  # seconds from frame to frame
        self._sampled = 0  # instants
        self._sampled_frames: list[NDArray[np.uint8] | None] = []  # of the next snippet's instants
        self._pictures: deque[dict[str, NDArray[np.uint8]]] = deque()  # of the next snippets
        self._placing = SoundPlacement()
        self._early: list[SoundPiece] = []  # sound that came before the first frame
        self._sound = Runs()

    def jumps(self, at: float) -> bool:
        """Whether a frame's time is of another clock than the last one's."""
        return self.origin is not None and not -APART < at - self._shown_since < CLOCK_JUMP

    def add_frame(self, frame: av.VideoFrame, at: float) -> None:
        """Take the next frame.

        Args:
            frame: as decoded.
            at: when it is shown.
        """
        if self.origin is None:
            self.origin = self._shown_since = at
            early, self._early = self._early, []
            self._keep(early)
        self._sample(at)
        self._pace, self._newest = at - self._shown_since, frame
        self._shown_since = max(self._shown_since, at)

    def _sample(self, until: float) -> None:
        """Take the newest frame for all instants until then."""
        while (due := self._due()) + CLOCK_SLACK < until:
            assert self._newest is not None
            visible = due - self._shown_since <= FROZEN
            self._sampled_frames.append(upright(self._newest) if visible else None)
            self._sampled += 1
            if len(self._sampled_frames) == len(self._instants):
                shown_at = dict(zip(self._instants, self._sampled_frames, strict=True))
                self._sampled_frames = []
                self._pictures.append({})
                for stream, prepare in self._prepare.items():
                    taken = [view for at in prepare.instants if (view := shown_at[at]) is not None]
                    if len(taken) == len(prepare.instants):
                        self._pictures[-1][stream] = prepare(taken)

    def _due(self) -> float:
        """Return when the next frame is to be taken."""
        assert self.origin is not None
        snippet, instant = divmod(self._sampled, len(self._instants))
        return self.origin + (snippet + 0.5) * self._step + self._instants[instant]

    def add_sound(self, frame: av.AudioFrame) -> None:
        """Take the next frame of sound."""
        self._keep(self._placing.take(frame, frame.time))

    def _keep(self, pieces: Iterable[SoundPiece]) -> None:
        if self.origin is None:
            self._early += pieces
            while self._early and self._early[-1].begins_at - self._early[0].begins_at > SOUND_KEPT:
                del self._early[0]
            return
        for piece in pieces:
            self._sound.add(piece.first(self.origin), piece.samples)
        if self._sound.end is not None:
            self._sound.drop(self._sound.end - round(SOUND_KEPT * SAMPLE_RATE))

    def complete_snippets(
        self, last: bool = False
    ) -> Iterator[tuple[int, dict[str, NDArray[np.uint8]], tuple[Tail, ...]]]:
        """Yield (number, pixels, sound) of the snippets of which all has come; see `SnippetData`.

        Args:
            last: nothing more comes, so that what is missing is not waited for.
        """
        if last:
            self._keep(self._placing.finish())
        while self.origin is not None:
            stop = (self._number + 1) * self._step
            begin, end = span(self._number, self._step, self._window)
            # the last frame is taken to be shown as long as the one before it
            seen = self._shown_since - self.origin + (self._pace if last else 0.0)
            heard = -math.inf if self._sound.end is None else self._sound.end
            newest = max(seen, heard / SAMPLE_RATE) + CLOCK_SLACK
            come = self._pictures and (not self._window or heard >= end)
            if newest < stop or not (come or last or newest >= stop + APART):
                return
            if heard < end:  # no more is waited for: this is the end of a run
                self._keep(self._placing.finish())
            if not self._pictures:
                self._sample(self.origin + stop + 2 * CLOCK_SLACK)
            sound = self._sound.tails(self._number, self._step, self._window)
            yield self._number, self._pictures.popleft(), sound
            self._sound.drop(begin)
            self._number += 1
