"""From a live source to whole snippets: connect, decode, cut on a time grid, and connect again."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from extract.decode import CLOCK_SLACK, SAMPLE_RATE, ClipError, reason, upright
from extract.reader import Prepare

OPEN_SECONDS = 10.0  # to wait for a server's answer
SILENT_SECONDS = 10.0  # without data from a server, after which the stream counts as cut
GROWN_SECONDS = 5.0  # in which a file has not grown, after which it is whole
BLIND_SECONDS = 30.0  # of data without a picture in it; streams have key frames more often
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds before connecting again
MOST_LATE = 10.0  # seconds for which snippets wait for the networks, or that they last together
APART = 1.0  # seconds by which a stream's picture and sound may come apart
FROZEN = 2.0  # seconds for which a frame without a successor is what is to be seen
CLOCK_JUMP = 10.0  # seconds from one frame to the next; more is another clock
HOLE = 0.1  # seconds of lost sound, over which no window reaches
SOUND_KEPT = 30.0  # seconds, at most, of sound that waits for its picture
# RTSP over TCP: by UDP, what is lost is lost without a word
OPTIONS = {"rtsp_transport": "tcp", "analyzeduration": "1000000"}


class Whole(NamedTuple):
    """A snippet of which everything has come.

    Attributes:
        start, end: seconds on the stream's clock, which is zero at the first frame, and in gaps
            runs on by the clock on the wall.
        pixels: stream -> what its `Prepare` made of the frames, where all could be seen.
        sound: (samples,) mono at 16 kHz, which end with the snippet; none if it has no sound.
        since: the sample at which the snippet starts.
        received: `time.monotonic` when the last of it had come.
    """

    start: float
    end: float
    pixels: dict[str, NDArray[np.uint8]]
    sound: NDArray[np.float32]
    since: int
    received: float


class Gap(NamedTuple):
    """A stretch of a stream for which there are no snippets.

    Attributes:
        start: where the last snippet ended, on the stream's clock.
        end: where the next one starts; None as long as it is not over.
        why: in one line.
    """

    start: float
    end: float | None
    why: str


class Receiver:
    """Receives a source in a thread of its own, for as long as it is iterated over.

    Args:
        source: a URL, a file, or ``-`` for standard input.
        step: seconds of a snippet.
        window: seconds of sound that end with each snippet; 0 if nobody listens.
        prepare: for each stream of frames.
        retries: how often in a row a URL is opened again in vain; None for ever.
    """

    def __init__(
        self,
        source: str,
        step: float,
        window: float,
        prepare: Mapping[str, Prepare],
        retries: int | None = None,
    ) -> None:
        self.source, self.retries = source, retries
        self.step, self.window, self.prepare = step, window, prepare
        self._remote = "://" in source
        # a file, or who writes to a pipe, can wait until there is room; a camera cannot
        room = 0 if self._remote else max(1, round(MOST_LATE / step))
        self._events: queue.Queue[Whole | Gap | Exception | None] = queue.Queue(room)
        self._stop = threading.Event()
        self._clock: float | None = None  # where the last snippet ended
        self._ahead = 0.0  # the stream's clock less that on the wall, at the newest frame
        self._gap: Gap | None = None  # that is not over

    def __iter__(self) -> Iterator[Whole | Gap]:
        """Yield what comes: each snippet once; each gap when it begins and when it is over.

        Raises:
            ClipError: the source cannot be opened, or not again.
        """
        threading.Thread(target=self._run, daemon=True).start()
        try:
            while (event := self._events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self._stop.set()
            self._drain()  # the thread may be waiting for room

    def _run(self) -> None:
        try:
            self._receive_all()
            self._events.put(None)
        except Exception as error:  # raised again where the events are asked for
            self._events.put(error)

    def _receive_all(self) -> None:
        failures = 0
        while not self._stop.is_set():
            before, why = self._clock, "the stream ended"
            try:
                with self._open() as container:
                    self._receive(container)
            except av.ExitError:  # FFmpeg's word for a time that is up
                why = f"nothing came for {SILENT_SECONDS if self._remote else GROWN_SECONDS:g} s"
            except (av.FFmpegError, OSError, ValueError, ClipError) as error:
                why = reason(error)
                self._break(why)
            if self._clock is None:
                name = "standard input" if self.source == "-" else self.source
                raise ClipError(f"{name} cannot be watched: {why}")
            if not self._remote:
                return
            self._break(why)
            failures = failures + 1 if self._clock == before else 1
            if self.retries is not None and failures > self.retries:
                raise ClipError(f"{self.source} is given up after {self.retries} retries: {why}")
            self._stop.wait(min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE))

    def _open(self) -> av.container.InputContainer:
        if self._remote:
            return av.open(self.source, options=OPTIONS, timeout=(OPEN_SECONDS, SILENT_SECONDS))
        if self.source == "-":
            return av.open("pipe:0", options=OPTIONS)
        follow = {**OPTIONS, "follow": "1"}  # wait for more at the file's end, till time is up
        return av.open(f"file:{self.source}", options=follow, timeout=GROWN_SECONDS)

    def _receive(self, container: av.container.InputContainer) -> None:
        """Hand on a source's snippets until it ends or breaks."""
        video, sound = container.streams.best("video"), container.streams.best("audio")
        if not isinstance(video, av.VideoStream):
            raise ClipError("there is no picture in it")
        video.codec_context.thread_count = 1  # the networks want the cores
        streams: list[av.VideoStream | av.AudioStream] = [video]
        if isinstance(sound, av.AudioStream) and self.window:
            streams.append(sound)
        window = self.window if len(streams) > 1 else 0.0
        began = time.monotonic()
        grid = _Grid(self.step, window, self.prepare)
        try:
            for received, frames in _decoded(container, streams):
                for frame in frames:
                    at = frame.time or 0.0
                    if isinstance(frame, av.AudioFrame):
                        grid.hear(frame, at)
                        continue
                    if grid.jumps(at):
                        self._hand_on(grid, received, last=True)
                        self._break("the stream's clock jumped")
                        grid = _Grid(self.step, window, self.prepare)
                    grid.see(frame, at)
                    self._tell_time(grid, at, received)
                self._hand_on(grid, received)
                if self._stop.is_set():
                    return
                if grid.origin is None and received > began + BLIND_SECONDS:
                    raise ClipError(f"none of its frames could be decoded in {BLIND_SECONDS:g} s")
        finally:
            self._hand_on(grid, time.monotonic(), last=True)

    def _tell_time(self, grid: _Grid, at: float, now: float) -> None:
        """Keep the stream's clock: that of its frames, and over gaps that on the wall."""
        assert grid.origin is not None
        if grid.base is None:
            grid.base = 0.0 if self._clock is None else max(self._clock, now + self._ahead)
            self._clock = self._clock or 0.0
        self._ahead = grid.base + at - grid.origin - now

    def _hand_on(self, grid: _Grid, received: float, last: bool = False) -> None:
        for number, pixels, sound, since in grid.whole(last):
            assert grid.base is not None
            start = grid.base + number * self.step
            if not pixels and not len(sound):
                self._break("there was neither picture nor sound")
                continue
            if self._remote:
                self._pass_over(received)
            if self._gap is not None:
                self._events.put(self._gap._replace(end=start))
                self._gap = None
            self._clock = start + self.step
            self._events.put(Whole(start, self._clock, pixels, sound, since, received))

    def _pass_over(self, now: float) -> None:
        """Forget what waits for the networks, if that is too much or waits for too long."""
        with self._events.mutex:
            waiting = [event for event in self._events.queue if isinstance(event, Whole)]
        if not waiting or (
            now - waiting[0].received < MOST_LATE and len(waiting) * self.step < MOST_LATE
        ):
            return
        starts = [event.start for event in self._drain()]
        if self._gap is not None:
            starts.append(self._gap.start)
        if starts:
            self._gap = Gap(min(starts), None, f"too slow: the networks were {MOST_LATE:g} s late")
            self._events.put(self._gap)

    def _break(self, why: str) -> None:
        """Say that a gap begins, unless there is one already."""
        if self._gap is None and self._clock is not None:
            self._gap = Gap(self._clock, None, why)
            self._events.put(self._gap)

    def _drain(self) -> list[Whole | Gap]:
        events = []
        while True:
            try:
                events.append(self._events.get_nowait())
            except queue.Empty:
                return [event for event in events if isinstance(event, Whole | Gap)]


class _Grid:
    """A stretch of a stream without a break, on a time grid that starts at its first frame.

    Args: as the `Receiver`'s.

    Attributes:
        origin: the container's time of the first frame; None before it.
        base: the stream's.
    """

    def __init__(self, step: float, window: float, prepare: Mapping[str, Prepare]) -> None:
        self.origin: float | None = None
        self.base: float | None = None
        self._step, self._window, self._prepare = step, window, prepare
        self._instants = sorted({at for p in prepare.values() for at in p.instants}) or [0.0]
        self._number = 0  # of the next snippet
        # all times are those of the container
        self._shown: av.VideoFrame | None = None  # the newest frame
        self._seen = self._heard = -math.inf  # since when; the end of the sound
        self._pace = 0.0  # seconds from frame to frame
        self._looked = 0  # instants
        self._views: list[NDArray[np.uint8] | None] = []  # of the next snippet's instants
        self._pictures: deque[dict[str, NDArray[np.uint8]]] = deque()  # of the next snippets
        self._sound: NDArray[np.float32] = np.empty(0, np.float32)  # the last of it
        self._kind: tuple[str, str, int] | None = None  # of the frames of sound

    def jumps(self, at: float) -> bool:
        """Whether a frame's time is of another clock than the last one's."""
        return self.origin is not None and not -APART < at - self._seen < CLOCK_JUMP

    def see(self, frame: av.VideoFrame, at: float) -> None:
        """Take the next frame, which is shown from `at` on."""
        if self.origin is None:
            self.origin = self._seen = at
        self._look(at)
        self._pace, self._shown, self._seen = at - self._seen, frame, max(self._seen, at)

    def _look(self, until: float) -> None:
        """Take the newest frame for what is shown until then."""
        while (due := self._due()) + CLOCK_SLACK < until:
            assert self._shown is not None
            there = due - self._seen <= FROZEN
            self._views.append(upright(self._shown) if there else None)
            self._looked += 1
            if len(self._views) == len(self._instants):
                views = dict(zip(self._instants, self._views, strict=True))
                self._views = []
                self._pictures.append({})
                for stream, prepare in self._prepare.items():
                    taken = [view for at in prepare.instants if (view := views[at]) is not None]
                    if len(taken) == len(prepare.instants):
                        self._pictures[-1][stream] = prepare(taken)

    def _due(self) -> float:
        """Return when the next instant to look at is."""
        assert self.origin is not None
        snippet, instant = divmod(self._looked, len(self._instants))
        return self.origin + (snippet + 0.5) * self._step + self._instants[instant]

    def hear(self, frame: av.AudioFrame, at: float) -> None:
        """Take the next frame of sound, which begins at `at`."""
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._kind or not abs(at - self._heard) < HOLE:
            self._kind = kind
            self._resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
            self._sound, self._owed = self._sound[:0], 0.0
        parts = [part.to_ndarray()[0] for part in self._resampler.resample(frame)]
        self._sound = np.concatenate([self._sound, *parts])[-round(SOUND_KEPT * SAMPLE_RATE) :]
        # the resampler keeps back what it cannot tell before more has come: about a millisecond
        self._owed += frame.samples / frame.sample_rate - sum(map(len, parts)) / SAMPLE_RATE
        self._heard = at + frame.samples / frame.sample_rate - self._owed

    def whole(
        self, last: bool = False
    ) -> Iterator[tuple[int, dict[str, NDArray[np.uint8]], NDArray[np.float32], int]]:
        """Yield (number, pixels, sound, since) of the snippets of which all has come; see `Whole`.

        Args:
            last: nothing more comes, so that what lacks is not waited for.
        """
        while self.origin is not None:
            start = self.origin + self._number * self._step
            stop = start + self._step
            # the last frame is taken to be shown as long as the one before it
            seen = self._seen + self._pace if last else self._seen
            newest = max(seen, self._heard) + CLOCK_SLACK
            come = self._pictures and (not self._window or self._heard + CLOCK_SLACK >= stop)
            if newest < stop or not (come or last or newest >= stop + APART):
                return
            if not self._pictures:
                self._look(stop + 2 * CLOCK_SLACK)
            yield self._number, self._pictures.popleft(), *self._listen(start, stop)
            self._number += 1

    def _listen(self, start: float, stop: float) -> tuple[NDArray[np.float32], int]:
        """Return the window that ends at `stop`, and which of its samples is at `start`."""
        assert self.origin is not None
        if not len(self._sound):
            return self._sound, 0
        first = self._heard - len(self._sound) / SAMPLE_RATE

        def sample(moment: float) -> int:
            return max(0, round((moment - first) * SAMPLE_RATE))

        low = sample(max(self.origin, stop - self._window))
        window, since = self._sound[low : sample(stop)], max(0, sample(start) - low)
        self._sound = self._sound[sample(stop + self._step - self._window) :]
        return (window, since) if len(window) > since else (window[:0], 0)


def _decoded(
    container: av.container.InputContainer, streams: Sequence[av.VideoStream | av.AudioStream]
) -> Iterator[tuple[float, list[av.VideoFrame | av.AudioFrame]]]:
    """Yield when a packet came, and its frames; damaged ones are left out.

    What the decoders still hold comes at the end, also where that is an error.
    """
    try:
        for packet in container.demux(streams):
            yield time.monotonic(), _frames(packet.decode)
    except av.FFmpegError:
        for stream in streams:
            end = av.Packet()
            end.stream, end.time_base = stream, stream.time_base or Fraction(1)  # of its frames
            yield time.monotonic(), _frames(end.decode)
        raise


def _frames(decode: Callable[[], list[Any]]) -> list[av.VideoFrame | av.AudioFrame]:
    try:
        return [frame for frame in decode() if frame.time is not None and not frame.is_corrupt]
    except av.FFmpegError:
        return []
