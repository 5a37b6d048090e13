"""From a live source to whole snippets: receive, and connect again after a cut.

Connecting and decoding is the work of a process of its own (`extract.live.child`), so that a
decoder that crashes is a gap like any other.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from extract.decoding.container import ClipError, ffmpeg_name
from extract.decoding.isolated_process import MEMORY_BYTES, IsolatedProcess
from extract.live.messages import Begin, Broken, End, Message, Request, SnippetData
from extract.live.trailing_windows import Tail
from extract.preprocessing import Prepare
from features import redacted

GROWN_SECONDS = 5.0  # in which a file has not grown, after which it is whole
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds before connecting again
MOST_LATE = 10.0  # seconds for which snippets wait for the networks, or that they last together
PIPE_WAY_OUT = (
    "; a pipe is read from front to back, as MPEG-TS and Matroska can be and most MP4 cannot: "
    "ffmpeg -i FILE -c copy -f mpegts - | avarnet watch RUN -"
)


class ReceivedSnippet(NamedTuple):
    """A snippet of which everything has come.

    Attributes:
        start, end: seconds on the stream's clock, which is zero at the first frame, and in gaps
            runs on by the clock on the wall.
        pixels: stream -> what its `Prepare` made of the frames, where all could be seen.
        sound: its windows: several if there is a hole in it, none if it has no sound.
        received: `time.monotonic` when the last of it had come.
    """

    start: float
    end: float
    pixels: dict[str, NDArray[np.uint8]]
    sound: tuple[Tail, ...]
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
    """Receives a source for as long as it is iterated over.

    Args:
        source: a URL, a file, or ``-`` for standard input.
        step: seconds of a snippet.
        window: seconds of sound that end with each snippet; 0 if no sound is wanted.
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
        self._events: queue.Queue[ReceivedSnippet | Gap | Exception | None] = queue.Queue(room)
        self._stop = threading.Event()
        self._process: IsolatedProcess | None = None
        self._clock: float | None = None  # where the last snippet ended
        self._ahead = 0.0  # the stream's clock less that on the wall, at the newest frame
        self._gap: Gap | None = None  # that is not over

    def __iter__(self) -> Iterator[ReceivedSnippet | Gap]:
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
            if (process := self._process) is not None:
                process.kill()
                process.wait()
            self._drain()  # the thread may be waiting for room

    def _run(self) -> None:
        try:
            self._receive_all()
            self._events.put(None)
        except Exception as error:  # raised again where the events are asked for
            self._events.put(error)

    def _receive_all(self) -> None:
        failures = 0
        name = "standard input" if self.source == "-" else redacted(self.source)
        while not self._stop.is_set():
            before, why = self._clock, self._receive()
            if self._clock is None:
                way_out = PIPE_WAY_OUT if self.source == "-" else ""
                raise ClipError(f"{name} cannot be watched: {why}{way_out}")
            if not self._remote:
                return
            self._break(why)
            failures = failures + 1 if self._clock == before else 1
            if self.retries is not None and failures > self.retries:
                raise ClipError(
                    f"{redacted(self.source)} is given up after {self.retries} retries: {why}"
                )
            self._stop.wait(min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE))

    def _receive(self) -> str:
        """Hand on the snippets of one connection; return why it is over."""
        base = 0.0  # where a stretch begins on the stream's clock
        for message in self._messages():
            if isinstance(message, Begin):
                if self._clock is not None:  # over gaps, the clock on the wall is the stream's
                    base = max(self._clock, message.received + self._ahead)
                self._clock = self._clock or 0.0
            elif isinstance(message, SnippetData):
                self._ahead = base + message.ahead
                self._hand_on(base + message.number * self.step, message)
            else:
                why = redacted(message.why, self.source)
                if isinstance(message, Broken):
                    self._break(why)
        return why

    def _messages(self) -> Iterator[Message]:
        """Yield the messages of one connection, up to its `End`."""
        url = self.source if self._remote else ffmpeg_name(self.source)
        if self._process is None:
            pipe = [os.dup(0)] if self.source == "-" else []  # its own 0 is for requests
            self._process = IsolatedProcess("extract.live.child", MEMORY_BYTES, pipe)
            for descriptor in pipe:
                url = f"pipe:{descriptor}"
                os.close(descriptor)
        process = self._process
        if self._stop.is_set():
            process.kill()
        try:
            process.send(Request(url, self.step, self.window, dict(self.prepare), GROWN_SECONDS))
            while True:
                message: Message = process.receive()
                yield message
                if isinstance(message, End):
                    return
        except (OSError, EOFError):
            process.kill()
            why = f"receiving it {process.wait()}"
            self._process = None
            yield Broken(why)
            yield End(why)

    def _hand_on(self, start: float, data: SnippetData) -> None:
        if not data.pixels and not data.sound:
            self._break("there was neither picture nor sound")
            return
        if self._remote:
            self._pass_over(data.received)
        if self._gap is not None:
            self._events.put(self._gap._replace(end=start))
            self._gap = None
        self._clock = start + self.step
        snippet = ReceivedSnippet(start, self._clock, data.pixels, data.sound, data.received)
        self._events.put(snippet)

    def _pass_over(self, now: float) -> None:
        """Drop what waits for the networks, if that is too much or waits for too long."""
        with self._events.mutex:
            waiting = [event for event in self._events.queue if isinstance(event, ReceivedSnippet)]
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
        """Begin a gap, unless there is one already."""
        if self._gap is None and self._clock is not None:
            self._gap = Gap(self._clock, None, why)
            self._events.put(self._gap)

    def _drain(self) -> list[ReceivedSnippet | Gap]:
        events = []
        while True:
            try:
                events.append(self._events.get_nowait())
            except queue.Empty:
                return [event for event in events if isinstance(event, ReceivedSnippet | Gap)]
