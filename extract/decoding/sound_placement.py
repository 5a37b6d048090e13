"""Decoded sound on a clock: blocks are placed by their time stamps, not by counting.

`SoundPlacement` does it, frame by frame, for files (`SoundTrack`) and for live streams
(`extract.live.time_grid`), so that both agree. What is missing is a hole between two runs of sound
and never made up. Within a run, samples are counted; where they come apart from the time stamps,
the resampler stretches them.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

SAMPLE_RATE = 16_000  # Hz; what Wav2Vec2 was trained on
# seconds by which a frame may come later than the last one's end without a hole: containers round
# to a millisecond, and the shortest packets that are in use and can be lost are longer
STEP = 6e-3
# what confirms that it is one: stamps that only tremble are back by then
CONFIRMED_BY, CONFIRMED_IN = 4, 0.2  # further frames, seconds
DRIFT = 2e-3  # seconds by which counted samples and time stamps may come apart
LARGEST_DRIFT = 0.1  # seconds by which they never do
DRIFT_SECONDS = 1.0  # over which it is measured, and then corrected
STEEPEST = 0.05  # share by which sound is stretched at most


class SoundPiece(NamedTuple):
    """The next samples of a run of sound without a hole.

    Attributes:
        begins: when the run begins, in seconds of the container's clock.
        offset: how many samples of the run were before these.
        samples: (samples,) mono at 16 kHz.
    """

    begins: float
    offset: int
    samples: NDArray[np.float32]

    @property
    def begins_at(self) -> float:
        """When its first sample is, in seconds of the container's clock."""
        return self.begins + self.offset / SAMPLE_RATE

    def first(self, origin: float) -> int:
        """Return the number of its first sample on a clock that is zero at `origin` (seconds)."""
        return round((self.begins - origin) * SAMPLE_RATE) + self.offset


class SoundPlacement:
    """Decoded frames on their way to samples, each run placed by the time stamps.

    Args:
        block: samples that are handed on at once, for speed; 0: all that is sure.
    """

    def __init__(self, block: int = 0) -> None:
        self._block = block
        self._unplaced: deque[tuple[av.AudioFrame, float]] = deque()  # their place is in doubt
        self._resampler: Graph | None = None
        self._kind = ("", "", 1)  # format, layout and rate of the frames in the resampler
        self._pushed = 0  # samples at 16 kHz since it was asked
        self._start, self._counted = 0.0, 0  # of its input: when, samples
        self._last = 0.0  # when the last frame ended, by its stamp
        self._begins, self._done = 0.0, 0  # of the run: when, samples that were handed on
        self._skip = 0  # samples that come a second time
        self._drift = 0.0  # seconds by which stamps are later than counted; is corrected
        self._lately: deque[tuple[float, float]] = deque()  # seconds counted, by how much later

    def take(self, frame: av.AudioFrame, at: float | None) -> Iterator[SoundPiece]:
        """Take the next frame; yield what is sure by now.

        Args:
            frame: is changed.
            at: its stamp, in seconds of the container's clock; None if it has none, and follows
                on the one before.
        """
        if frame.samples == 0:
            return
        if at is None and self._unplaced:
            before, began = self._unplaced[-1]
            at = began + before.samples / before.sample_rate
        self._unplaced.append((frame, self._expected() if at is None else at))
        while self._unplaced and not (self._in_doubt() and self._waits()):
            yield from self._place()

    def finish(self) -> Iterator[SoundPiece]:
        """Yield the rest: nothing more comes."""
        while self._unplaced:
            yield from self._place()
        yield from self._flush()

    def _expected(self) -> float:
        """Return when the next frame is due."""
        return self._start + self._counted / self._kind[2] + self._drift

    def _in_doubt(self) -> bool:
        """Whether the next frame comes when it is not due, all at once."""
        at = self._unplaced[0][1]
        late = abs(at - self._expected())
        if self._resampler is None or late <= STEP:
            return False
        # stamps that tremble, as those of arrival do, are late all the time
        trembling = max((abs(was - self._drift) for _, was in self._lately), default=0.0)
        return late > LARGEST_DRIFT or min(late, abs(at - self._last)) > STEP + trembling

    def _waits(self) -> bool:
        """Whether what follows a frame in doubt is still too little to be sure."""
        seconds = self._unplaced[-1][1] - self._unplaced[0][1]
        return len(self._unplaced) <= CONFIRMED_BY and seconds < CONFIRMED_IN

    def _steps(self) -> bool:
        """Whether the next frame and those after it agree that time has made a step."""
        due = self._expected()
        step = self._unplaced[0][1] - due
        for frame, at in self._unplaced:
            if abs(at - due) < abs(step) / 2 or (at > due) != (step > 0):
                return False
            due += frame.samples / frame.sample_rate
        return True

    def _place(self) -> Iterator[SoundPiece]:
        """Resample the next frame, in its place."""
        stepped = self._in_doubt() and self._steps()
        frame, at = self._unplaced.popleft()
        stamped = at
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        stamp: int | None = 0
        if self._resampler is None or stepped or kind != self._kind:
            due = self._expected()
            first = self._resampler is None
            yield from self._flush()
            end = self._begins + self._done / SAMPLE_RATE
            if first or (stepped and at > end):
                self._begins, self._done, self._skip = at, 0, 0
            elif stepped:
                self._skip = round((end - at) * SAMPLE_RATE)
            else:
                at = due  # of another rate or layout, in the same run
            self._start, self._counted, self._drift = at, 0, 0.0
            self._lately.clear()
            self._kind, self._resampler = kind, _resampler(kind, self._block)
            self._base = Fraction(1, frame.sample_rate)
        else:
            stamp = self._corrected(at)
        assert self._resampler is not None
        self._counted += frame.samples
        self._last = stamped + frame.samples / frame.sample_rate
        frame.pts, frame.time_base = stamp, self._base
        self._resampler.push(frame)
        self._pushed += frame.samples * SAMPLE_RATE // frame.sample_rate
        if self._pushed >= self._block:
            yield from self._pull()

    def _corrected(self, at: float) -> int | None:
        """Return where the next frame belongs, in samples, if the resampler is to move it there.

        Without a stamp the resampler counts. With one it stretches what follows, for a while.
        """
        counted = self._counted / self._kind[2]
        self._lately.append((counted, at - self._start - counted))
        if counted - self._lately[0][0] < DRIFT_SECONDS:
            return None
        half = counted - DRIFT_SECONDS / 2
        before = statistics.median(later for at, later in self._lately if at <= half)
        after = [later for at, later in self._lately if at > half]
        now = statistics.median(after)
        spread = statistics.median(abs(later - now) for later in after)
        if abs(now - before) > max(DRIFT / 2, 2 * spread):
            drift = now + 1.5 * (now - before)  # what it will be when it is corrected
        else:
            drift = statistics.median(later for _, later in self._lately)
        while self._lately[0][0] <= half:
            self._lately.popleft()
        if abs(drift - self._drift) < DRIFT:
            return None
        self._drift = drift
        return self._counted + round(drift * self._kind[2])

    def _flush(self) -> Iterator[SoundPiece]:
        """Yield what the resampler still holds."""
        if self._resampler is not None:
            self._resampler.push(None)
            yield from self._pull()
            self._resampler = None

    def _pull(self) -> Iterator[SoundPiece]:
        assert self._resampler is not None
        self._pushed = 0
        parts = []
        while True:
            try:
                part = self._resampler.pull()
            except (BlockingIOError, EOFError):  # FFmpeg's for: nothing yet, nothing more
                break
            assert isinstance(part, av.AudioFrame)
            # what to_ndarray does, in a third of the time
            parts.append(np.frombuffer(memoryview(part.planes[0]), np.float32, part.samples))
        samples = np.concatenate(parts) if parts else np.empty(0, np.float32)
        again = min(self._skip, len(samples))
        self._skip -= again
        if len(samples) > again:
            yield SoundPiece(self._begins, self._done, samples[again:])
            self._done += len(samples) - again


def _resampler(kind: tuple[str, str, int], block: int) -> Graph:
    """Return a graph that turns frames of a format, layout and rate into mono at 16 kHz.

    It hands on frames of `block` samples, or as they come if that is 0.
    """
    format_name, layout, rate = kind
    graph = Graph()
    chain = [
        graph.add(
            "abuffer",
            sample_fmt=format_name,
            channel_layout=layout,
            sample_rate=str(rate),
            time_base=f"1/{rate}",
        ),
        graph.add(
            "aresample",
            min_comp="0.0005",
            min_hard_comp="1e9",  # nothing is filled up or cut off
            comp_duration=str(DRIFT_SECONDS),
            max_soft_comp=str(STEEPEST),
        ),
        graph.add(
            "aformat", sample_fmts="flt", channel_layouts="mono", sample_rates=str(SAMPLE_RATE)
        ),
        graph.add("abuffersink"),
    ]
    for one, other in pairwise(chain):
        one.link_to(other)
    graph.configure()
    if block:
        graph.set_audio_frame_size(block)
    return graph
