"""From a live source to whole snippets: connect, decode, cut on a time grid, and connect again.

Connecting and decoding is the work of a process of its own, so that a decoder that crashes is a gap
like any other. `main` is that process: it gets a `Request` for each connection on its standard
input, and answers with a `Begin` for each stretch without a break and a `Part` for each of its
snippets, `Broken` where something is wrong, and an `End`.
"""

from __future__ import annotations

import math
import os
import pickle
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from extract.decoding.media import CLOCK_SLACK, ClipError, Showing, ffmpeg_name, reason, upright
from extract.decoding.packet_clock import demux
from extract.decoding.reader import MEMORY_BYTES, Prepare, ending, shelter, start
from extract.decoding.sound_track import SAMPLE_RATE, Piece, Placing, Stamps, choose
from extract.live.trailing_windows import Runs, Tail, span

OPEN_SECONDS = 10.0  # to wait for a server's answer
SILENT_SECONDS = 10.0  # without data from a server, after which the stream counts as cut
GROWN_SECONDS = 5.0  # in which a file has not grown, after which it is whole
BLIND_SECONDS = 30.0  # of data without a picture in it; streams have key frames more often
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds before connecting again
MOST_LATE = 10.0  # seconds for which snippets wait for the networks, or that they last together
APART = 1.0  # seconds by which a stream's picture and sound may come apart
FROZEN = 2.0  # seconds for which a frame without a successor is what is to be seen
RAW = ("h264", "hevc", "vvc")  # FFmpeg's names of streams that are in no container
CLOCK_JUMP = 10.0  # seconds from one frame to the next; more is another clock
SOUND_KEPT = 30.0  # seconds, at most, of sound that waits for its picture
# RTSP over TCP: by UDP, what is lost is lost without a word. To guess the rate of frames, which
# nobody asks for, FFmpeg would keep back the first second
OPTIONS = {"rtsp_transport": "tcp", "analyzeduration": "1000000", "fpsprobesize": "0"}


class Whole(NamedTuple):
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


class Request(NamedTuple):
    """One connection to a source, and what becomes of it; see `Receiver`."""

    url: str
    step: float
    window: float
    prepare: dict[str, Prepare]
    grown_seconds: float


class Begin(NamedTuple):
    """The first frame of a stretch without a break has come."""

    received: float


class Part(NamedTuple):
    """A whole snippet of a stretch.

    Attributes:
        number: from 0 on.
        ahead: the newest frame's time since the stretch's first one, less `time.monotonic`.
        pixels, sound, received: see `Whole`.
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


Message = Begin | Part | Broken | End
Send = Callable[[Message], None]


class Receiver:
    """Receives a source for as long as it is iterated over.

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
        self._process: subprocess.Popen[bytes] | None = None
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
        while not self._stop.is_set():
            before, why = self._clock, self._receive()
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

    def _receive(self) -> str:
        """Hand on the snippets of one connection; return why it is over."""
        base = 0.0  # where a stretch begins on the stream's clock
        for message in self._messages():
            if isinstance(message, Begin):
                if self._clock is not None:  # over gaps, the clock on the wall is the stream's
                    base = max(self._clock, message.received + self._ahead)
                self._clock = self._clock or 0.0
            elif isinstance(message, Part):
                self._ahead = base + message.ahead
                self._hand_on(base + message.number * self.step, message)
            else:
                why = message.why
                if isinstance(message, Broken):
                    self._break(why)
        return why

    def _messages(self) -> Iterator[Message]:
        """Yield what the process says of one connection, up to its `End`."""
        url = self.source if self._remote else ffmpeg_name(self.source)
        if self._process is None:
            pipe = [os.dup(0)] if self.source == "-" else []  # its own 0 is for requests
            self._process = start("extract.live.stream_receiver", MEMORY_BYTES, pipe)
            for descriptor in pipe:
                url = f"pipe:{descriptor}"
                os.close(descriptor)
        process = self._process
        if self._stop.is_set():
            process.kill()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            request = Request(url, self.step, self.window, dict(self.prepare), GROWN_SECONDS)
            pickle.dump(request, process.stdin)
            process.stdin.flush()
            while True:
                message: Message = pickle.load(process.stdout)
                yield message
                if isinstance(message, End):
                    return
        except Exception:  # it is gone, perhaps in the middle of a message
            process.kill()
            why = f"receiving it {ending(process)}"
            self._process = None
            yield Broken(why)
            yield End(why)

    def _hand_on(self, start: float, part: Part) -> None:
        if not part.pixels and not part.sound:
            self._break("there was neither picture nor sound")
            return
        if self._remote:
            self._pass_over(part.received)
        if self._gap is not None:
            self._events.put(self._gap._replace(end=start))
            self._gap = None
        self._clock = start + self.step
        self._events.put(Whole(start, self._clock, part.pixels, part.sound, part.received))

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


def main(pipe: int, memory_bytes: int, parent: int) -> None:
    """Answer requests until there are no more, on the file descriptor `pipe`."""
    requests, answers = shelter(pipe, memory_bytes, parent)

    def send(message: Message) -> None:
        pickle.dump(message, answers, protocol=5)
        answers.flush()

    with suppress(EOFError):
        while True:
            _receive(pickle.load(requests), send)


def _receive(request: Request, send: Send) -> None:
    """Send what comes of a source until it ends or breaks."""
    why = "the stream ended"
    try:
        with _open(request) as container:
            _decode(container, request, send)
    except av.ExitError:  # FFmpeg's word for a time that is up
        patience = SILENT_SECONDS if "://" in request.url else request.grown_seconds
        why = f"nothing came for {patience:g} s"
    except (av.FFmpegError, OSError, ValueError, ClipError) as error:
        why = reason(error)
        send(Broken(why))
    send(End(why))


def _open(request: Request) -> av.container.InputContainer:
    url = request.url
    if "://" in url:
        return av.open(url, options=OPTIONS, timeout=(OPEN_SECONDS, SILENT_SECONDS))
    if url.startswith("pipe:"):
        return av.open(url, options=OPTIONS)
    options = {**OPTIONS, "follow": "1"}  # wait for more at the file's end, till time is up
    with suppress(OSError):  # FFmpeg says what is wrong with it
        if time.time() - os.path.getmtime(url.removeprefix("file:")) > request.grown_seconds:
            del options["analyzeduration"]  # all is there: also a track that begins late is found
    return av.open(url, options=options, timeout=request.grown_seconds)


def _decode(container: av.container.InputContainer, request: Request, send: Send) -> None:
    video, sound = container.streams.best("video"), choose(container)
    if not isinstance(video, av.VideoStream):
        raise ClipError("there is no picture in it")
    if container.format.name in RAW:
        raise ClipError(
            f"it is a raw {container.format.name} stream, without times that say when a frame is "
            "shown; put it into a container at its camera's rate: ffmpeg -framerate RATE -i SOURCE "
            "-c:v libx264 -tune zerolatency -f mpegts - | avarnet watch -"
        )
    video.codec_context.thread_count = 1  # the networks want the cores
    streams: list[av.VideoStream | av.AudioStream] = [video]
    if sound is not None and request.window:
        streams.append(sound)
    window = request.window if len(streams) > 1 else 0.0
    began = time.monotonic()
    grid = _Grid(request.step, window, request.prepare)
    showing = Showing(container, video)
    ahead = 0.0

    def send_whole(last: bool = False) -> None:
        for number, pixels, heard in grid.whole(last):
            send(Part(number, ahead, pixels, heard, received))

    try:
        for received, frames in _decoded(container, streams, showing):
            for frame in frames:
                if isinstance(frame, av.AudioFrame):
                    grid.hear(frame)
                    continue
                at = showing.time(frame)
                if at is None:
                    continue
                if grid.jumps(at):
                    send_whole(last=True)
                    send(Broken("the stream's clock jumped"))
                    grid = _Grid(request.step, window, request.prepare)
                if grid.origin is None:
                    send(Begin(received))
                grid.see(frame, at)
                assert grid.origin is not None
                ahead = at - grid.origin - received
            send_whole()
            if grid.origin is None and received > began + BLIND_SECONDS:
                raise ClipError(f"none of its frames could be decoded in {BLIND_SECONDS:g} s")
    finally:
        received = time.monotonic()
        send_whole(last=True)


class _Grid:
    """A stretch of a stream without a break, on a time grid that starts at its first frame.

    Args: as the `Receiver`'s.

    Attributes:
        origin: the container's time of the first frame; None before it.
    """

    def __init__(self, step: float, window: float, prepare: Mapping[str, Prepare]) -> None:
        self.origin: float | None = None
        self._step, self._window, self._prepare = step, window, prepare
        self._instants = sorted({at for p in prepare.values() for at in p.instants}) or [0.0]
        self._number = 0  # of the next snippet
        # all times are those of the container
        self._shown: av.VideoFrame | None = None  # the newest frame
        self._seen = -math.inf  # since when
        self._pace = 0.0  # seconds from frame to frame
        self._looked = 0  # instants
        self._views: list[NDArray[np.uint8] | None] = []  # of the next snippet's instants
        self._pictures: deque[dict[str, NDArray[np.uint8]]] = deque()  # of the next snippets
        self._placing = Placing()
        self._early: list[Piece] = []  # sound that came before the first frame
        self._sound = Runs()

    def jumps(self, at: float) -> bool:
        """Whether a frame's time is of another clock than the last one's."""
        return self.origin is not None and not -APART < at - self._seen < CLOCK_JUMP

    def see(self, frame: av.VideoFrame, at: float) -> None:
        """Take the next frame, which is shown from `at` on."""
        if self.origin is None:
            self.origin = self._seen = at
            early, self._early = self._early, []
            self._keep(early)
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

    def hear(self, frame: av.AudioFrame) -> None:
        """Take the next frame of sound."""
        self._keep(self._placing.take(frame, frame.time))

    def _keep(self, pieces: Iterable[Piece]) -> None:
        if self.origin is None:
            self._early += pieces
            while self._early and self._early[-1].begins_at - self._early[0].begins_at > SOUND_KEPT:
                del self._early[0]
            return
        for piece in pieces:
            self._sound.add(piece.first(self.origin), piece.samples)
        if self._sound.end is not None:
            self._sound.drop(self._sound.end - round(SOUND_KEPT * SAMPLE_RATE))

    def whole(
        self, last: bool = False
    ) -> Iterator[tuple[int, dict[str, NDArray[np.uint8]], tuple[Tail, ...]]]:
        """Yield (number, pixels, sound) of the snippets of which all has come; see `Whole`.

        Args:
            last: nothing more comes, so that what lacks is not waited for.
        """
        if last:
            self._keep(self._placing.finish())
        while self.origin is not None:
            stop = (self._number + 1) * self._step
            begin, end = span(self._number, self._step, self._window)
            # the last frame is taken to be shown as long as the one before it
            seen = self._seen - self.origin + (self._pace if last else 0.0)
            heard = -math.inf if self._sound.end is None else self._sound.end
            newest = max(seen, heard / SAMPLE_RATE) + CLOCK_SLACK
            come = self._pictures and (not self._window or heard >= end)
            if newest < stop or not (come or last or newest >= stop + APART):
                return
            if heard < end:  # no more is waited for: this is the end of a run
                self._keep(self._placing.finish())
            if not self._pictures:
                self._look(self.origin + stop + 2 * CLOCK_SLACK)
            sound = self._sound.tails(self._number, self._step, self._window)
            yield self._number, self._pictures.popleft(), sound
            self._sound.drop(begin)
            self._number += 1


def _decoded(
    container: av.container.InputContainer,
    streams: Sequence[av.VideoStream | av.AudioStream],
    showing: Showing,
) -> Iterator[tuple[float, list[av.VideoFrame | av.AudioFrame]]]:
    """Yield when a packet came, and its frames; damaged ones are left out.

    What the decoders still hold comes at the end, also where that is an error.
    """
    stamps = Stamps(container)
    try:
        for packet in demux(container, streams):
            if isinstance(packet.stream, av.VideoStream):
                showing.coming(packet)
                yield time.monotonic(), _frames(packet.decode)
                continue
            came, heard = time.monotonic(), _frames(packet.decode)
            stamps.check(packet, heard)
            yield came, heard
    except av.FFmpegError:
        for stream in streams:
            end = av.Packet()
            end.stream, end.time_base = stream, stream.time_base or Fraction(1)  # of its frames
            yield time.monotonic(), _frames(end.decode)
        raise


def _frames(decode: Callable[[], list[Any]]) -> list[Any]:
    try:
        return [frame for frame in decode() if not frame.is_corrupt]
    except av.FFmpegError:
        return []
