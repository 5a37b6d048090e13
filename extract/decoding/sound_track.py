"""A sound track with a clock: decoded blocks are placed by their time stamps, not by counting.

`Placing` does it, frame by frame, for files (`SoundTrack`) and for live streams
(`extract.live.stream_receiver`), so that both agree. What is missing is a hole between two runs of
sound and never made up. Within a run, samples are counted; where they come apart from the time
stamps, the resampler stretches them.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import av
import numpy as np
from av.filter import Graph
from av.stream import Disposition
from numpy.typing import NDArray

from extract.decoding.packet_clock import PacketClock, demux

SAMPLE_RATE = 16_000  # Hz; what Wav2Vec2 was trained on
# seconds by which a frame may come later than the last one's end without a hole: containers round
# to a millisecond, and the shortest packets that are in use and can be lost are longer
STEP = 6e-3
# what confirms that it is one: stamps that only tremble are back by then
CONFIRMED_BY, CONFIRMED_IN = 4, 0.2  # further frames, seconds
DRIFT = 2e-3  # seconds by which counted samples and time stamps may come apart
LARGEST_DRIFT = 0.1  # seconds by which they never do
DRIFT_SECONDS = 1.0  # over which it is measured, and then corrected
LARGEST_SHARE = 0.02  # by which the length of packets is wrong that drift
STEEPEST = 0.05  # share by which sound is stretched at most
BLOCK = SAMPLE_RATE  # samples of a file that are handed on at once


class Piece(NamedTuple):
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


def choose(container: av.container.InputContainer) -> av.AudioStream | None:
    """Return the one sound track that is read: the file's default, the first if there are several.

    Where none is marked as default, it is the one that FFmpeg thinks best in the programme of the
    picture, as ``ffplay`` plays it.
    """
    tracks = container.streams.audio
    for track in tracks:
        if Disposition.default in track.disposition:
            return track
    best = container.streams.best("audio", container.streams.best("video"))
    if isinstance(best, av.AudioStream):
        return best
    return tracks[0] if tracks else None  # one that begins too late for FFmpeg to know its rate


class Stamps:
    """Takes from decoded frames the stamps that FFmpeg made up by a wrong length of packets.

    MPEG-TS and -PS stamp the first of some packets, and FFmpeg the others by the length that it
    expects. Where the sample rate has changed on the way, it expects the one before.
    """

    def __init__(self, container: av.container.InputContainer) -> None:
        self._made_up = container.format.name in ("mpegts", "mpeg")
        self._next: int | None = None  # the stamp that the next packet has if it is made up
        self._wrong = False  # the length of the last one

    def check(self, packet: av.Packet[Any], frames: Sequence[av.AudioFrame]) -> None:
        """Look at a packet and the frames that were decoded of it."""
        if not self._made_up or packet.pts is None or not packet.duration or not packet.size:
            return
        follows = self._next is not None and abs(packet.pts - self._next) <= 1  # but for rounding
        if self._wrong and follows:
            for frame in frames:
                frame.pts = None
        if frames:
            expected = float(packet.duration * packet.time_base)
            length = sum(frame.samples / frame.sample_rate for frame in frames)
            # containers round to a millisecond
            self._wrong = abs(expected - length) > max(1e-3, LARGEST_SHARE * length)
        self._next = packet.pts + packet.duration


class Placing:
    """Decoded frames on their way to samples, each run placed by the time stamps.

    Args:
        block: samples that are handed on at once, for speed; 0: all that is sure.
    """

    def __init__(self, block: int = 0) -> None:
        self._block = block
        self._held: deque[tuple[av.AudioFrame, float]] = deque()  # their place is in doubt
        self._resampler: Graph | None = None
        self._kind = ("", "", 1)  # format, layout and rate of the frames in the resampler
        self._pushed = 0  # samples at 16 kHz since it was asked
        self._start, self._counted = 0.0, 0  # of its input: when, samples
        self._last = 0.0  # when the last frame ended, by its stamp
        self._begins, self._done = 0.0, 0  # of the run: when, samples that were handed on
        self._skip = 0  # samples that come a second time
        self._drift = 0.0  # seconds by which stamps are later than counted; is corrected
        self._lately: deque[tuple[float, float]] = deque()  # seconds counted, by how much later

    def take(self, frame: av.AudioFrame, at: float | None) -> Iterator[Piece]:
        """Take the next frame; yield what is sure by now.

        Args:
            frame: is changed.
            at: its stamp, in seconds of the container's clock; None if it has none, and follows
                on the one before.
        """
        if frame.samples == 0:
            return
        if at is None and self._held:
            before, began = self._held[-1]
            at = began + before.samples / before.sample_rate
        self._held.append((frame, self._expected() if at is None else at))
        while self._held and not (self._in_doubt() and self._waits()):
            yield from self._place()

    def finish(self) -> Iterator[Piece]:
        """Yield the rest: nothing more comes."""
        while self._held:
            yield from self._place()
        yield from self._flush()

    def _expected(self) -> float:
        """Return when the next frame is due."""
        return self._start + self._counted / self._kind[2] + self._drift

    def _in_doubt(self) -> bool:
        """Whether the next frame comes when it is not due, all at once."""
        at = self._held[0][1]
        late = abs(at - self._expected())
        if self._resampler is None or late <= STEP:
            return False
        # stamps that tremble, as those of arrival do, are late all the time
        trembling = max((abs(was - self._drift) for _, was in self._lately), default=0.0)
        return late > LARGEST_DRIFT or min(late, abs(at - self._last)) > STEP + trembling

    def _waits(self) -> bool:
        """Whether what follows a frame in doubt is still too little to be sure."""
        seconds = self._held[-1][1] - self._held[0][1]
        return len(self._held) <= CONFIRMED_BY and seconds < CONFIRMED_IN

    def _steps(self) -> bool:
        """Whether the next frame and those after it agree that time has made a step."""
        due = self._expected()
        step = self._held[0][1] - due
        for frame, at in self._held:
            if abs(at - due) < abs(step) / 2 or (at > due) != (step > 0):
                return False
            due += frame.samples / frame.sample_rate
        return True

    def _place(self) -> Iterator[Piece]:
        """Resample the next frame, in its place."""
        stepped = self._in_doubt() and self._steps()
        frame, at = self._held.popleft()
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

    def _flush(self) -> Iterator[Piece]:
        """Yield what the resampler still holds."""
        if self._resampler is not None:
            self._resampler.push(None)
            yield from self._pull()
            self._resampler = None

    def _pull(self) -> Iterator[Piece]:
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
            yield Piece(self._begins, self._done, samples[again:])
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


class SoundTrack:
    """The sound track of a file, piece by piece; what cannot be decoded is passed over.

    Args:
        url: the name of a media file, as FFmpeg takes it.
        jumps: whether its clock does, which is put right as for the picture.

    Attributes:
        damaged: whether some of it could not be decoded, so far.
        broken: how many packets could not be decoded, so far.
        lost: their seconds.
    """

    def __init__(self, url: str, jumps: bool = False) -> None:
        self.damaged = False
        self.broken = 0
        self.lost = 0.0
        self._url = url
        self._jumps = jumps

    def __iter__(self) -> Iterator[Piece]:
        """Yield its pieces, in the order of time."""
        try:
            yield from self._pieces()
        except MemoryError:
            raise  # one of FFmpeg's errors too
        except (av.FFmpegError, OSError, ValueError):
            self.damaged = True

    def _pieces(self) -> Iterator[Piece]:
        placing = Placing(BLOCK)
        packets = frames = 0
        with av.open(self._url) as container:
            stream = choose(container)
            if stream is None:
                return
            stamps = Stamps(container)
            for packet in self._packets(container, stream):
                packets += packet.size > 0
                decoded = self._decoded(packet)
                stamps.check(packet, decoded)
                for frame in decoded:
                    frames += 1
                    yield from placing.take(frame, frame.time)
            yield from placing.finish()
        self.damaged |= packets > 0 and not frames

    def _packets(
        self, container: av.container.InputContainer, stream: av.AudioStream
    ) -> Iterator[av.Packet[Any]]:
        """Yield its packets, and at last an empty one for what the decoder still holds."""
        packets = demux(container, [stream])
        picture = container.streams.best("video")
        if self._jumps and isinstance(picture, av.VideoStream):
            packets = PacketClock(container, [picture, stream]).packets()
        try:
            for packet in packets:
                if packet.stream_index == stream.index:
                    yield packet
        except MemoryError:
            raise
        except av.FFmpegError:  # the file ends in the middle of something
            self.damaged = True
            end: av.Packet[Any] = av.Packet()
            end.stream, end.time_base = stream, stream.time_base or Fraction(1)  # of its frames
            yield end

    def _decoded(self, packet: av.Packet[Any]) -> list[av.AudioFrame]:
        try:
            frames: list[Any] = packet.decode()
            whole: list[av.AudioFrame] = [frame for frame in frames if not frame.is_corrupt]
            if len(whole) == len(frames):
                return whole
        except MemoryError:
            raise
        except av.FFmpegError:
            whole = []
        self.damaged = True
        self.broken += 1
        self.lost += float((packet.duration or 0) * packet.time_base)
        return whole
