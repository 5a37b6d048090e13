"""One clock for a file whose own clock restarts or jumps: two recordings put together, a reset.

Containers of broadcasts and discs (MPEG-TS and -PS, Ogg) say of themselves that their clock may
jump. The `ffmpeg` program then moves what follows such that it continues where it was expected, and
so does `PacketClock`, by the same rule (`ts_discontinuity_process` in its ffmpeg_demux.c):

* A stream's next decoding time is predicted from its last packet. One that is more than
  `LONGEST_GAP` from that, or more than `LARGEST_STEP_BACK` before the last one, is a jump; what is
  nearer is a gap in the recording, and stays one.
* The stream's packet is moved to where it was predicted. By as much, all later packets of **every**
  stream are moved: a jump is the file's, so picture and sound stay together behind it.
* A time of display before the decoding time, or more than `LONGEST_GAP` after it, is none.
* A stream that begins more than `LONGEST_GAP` away from the packet before it, whichever stream that
  is of, is moved to it.

Other containers' times (MP4, Matroska, AVI) are what they say: a gap of minutes there is one, as it
is for `ffmpeg`. Their decoding times cannot go back, however; where they do (WebM files put
together by a browser's recorder), frames of two recordings would be shown at one time, so those
are moved by the same rule.

Everything that reads a file's packets must give its clock the same ones: picture and chosen sound,
both, in the order of the file. Then the picture's reader and the sound's see the same jumps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
from av.format import Flags
from av.stream import Stream

LONGEST_GAP = 10_000_000  # microseconds; -dts_delta_threshold, as ffmpeg's default
LARGEST_STEP_BACK = 100_000  # microseconds


class _Stream:
    """Where a stream has come to, in microseconds of the clock put right.

    What it takes from the stream is that before anything of it was decoded: a decoder that finds
    more out would make the clock of who decodes another one than that of who does not.

    Attributes:
        last: the last packet's decoding time; None before the first.
        following: the next one's, as predicted.
    """

    def __init__(self, stream: av.VideoStream | av.AudioStream) -> None:
        self.last: int | None = None
        self.following = 0
        base = stream.time_base or Fraction(1)
        self._ticks, self._microseconds = base.denominator, base.numerator * 1_000_000
        self._usual = 0  # where nothing tells how long a packet lasts
        self._every: int | None = None  # how long each does, whatever it says itself
        if isinstance(stream, av.AudioStream):
            codec: av.AudioCodecContext | None = stream.codec_context  # None without a decoder
            if (
                codec is not None and codec.sample_rate
            ):  # 0 samples where packets are of no one length
                self._every = 1_000_000 * codec.frame_size // codec.sample_rate
        elif stream.average_rate:
            self._usual = round(1_000_000 / stream.average_rate)

    def time(self, ticks: int) -> int:
        """Return a time of the stream in microseconds."""
        return _scaled(ticks, self._microseconds, self._ticks)

    def move(self, packet: av.Packet[Any], by: int) -> None:
        """Move a packet by some microseconds."""
        ticks = _scaled(by, self._ticks, self._microseconds)
        if packet.dts is not None:
            packet.dts += ticks
        if packet.pts is not None:
            packet.pts += ticks

    def advance(self, now: int, packet: av.Packet[Any]) -> None:
        """Take note of a packet."""
        length = self._every
        if length is None:
            length = self.time(packet.duration) if packet.duration else self._usual
        self.last, self.following = now, now + length


class PacketClock:
    """Puts the times of a container's packets on one clock, which never restarts or jumps.

    Either iterate over `packets`, or hand every packet to `place` before it is decoded; the times
    of decoded frames, which come from their packets, are then right as well. Packets are to come in
    the file's order and from its beginning: seek back to the start only with a new clock.

    >>> with av.open("joined.ts") as container:                                 # doctest: +SKIP
    ...     picture, sound = container.streams.video[0], container.streams.audio[0]
    ...     clock = PacketClock(container, [picture, sound])
    ...     for packet in clock.packets():
    ...         if packet.stream_index == sound.index:
    ...             for frame in packet.decode():
    ...                 print(frame.time)

    Args:
        container: open for reading, nothing demultiplexed yet.
        streams: those whose packets `packets` yields. The picture, and the sound track that is
            heard if there is one: also where only one of them is wanted, as either may be the one
            that first shows a jump.

    Attributes:
        jumps: how often packets have been moved so far; other than zero: `Flag.CLOCK_JUMP`.
        offset: microseconds by which packets are moved at present.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        streams: Sequence[av.VideoStream | av.AudioStream],
    ) -> None:
        self.jumps = 0
        self.offset = 0
        self._container = container
        self._streams = streams
        jumps_allowed: Any = Flags.ts_discont.value  # an int, whatever PyAV's stubs say
        self._may_jump = bool(container.format.flags & jumps_allowed)
        self._each: dict[int, _Stream] = {}
        self._newest: int | None = None  # the decoding time of the last packet of any stream

    def packets(self) -> Iterator[av.Packet[Any]]:
        """Yield the streams' packets in the file's order, put right; flushing ones (empty) last.

        Raises:
            av.FFmpegError: the file cannot be read on.
        """
        for packet in demux(self._container, self._streams):
            self.place(packet)
            yield packet

    def place(self, packet: av.Packet[Any]) -> None:
        """Put a packet's ``pts`` and ``dts`` right, where it stands."""
        if packet.size == 0:
            return
        stream = self._each.get(packet.stream_index)
        if stream is None:
            if not isinstance(packet.stream, av.VideoStream | av.AudioStream):
                return
            stream = self._each[packet.stream_index] = _Stream(packet.stream)
        if self.offset:
            stream.move(packet, self.offset)
        if packet.is_discard and not self._may_jump:
            return  # decoded before an edit, never shown: it may lie before what was shown last
        if packet.dts is not None:
            now = stream.time(packet.dts)
            if self._may_jump and packet.pts is not None:
                # FFmpeg takes some from the next packet, which may be behind a jump
                later = stream.time(packet.pts) - now
                packet.pts = packet.pts if -LARGEST_STEP_BACK <= later <= LONGEST_GAP else None
            expected = self._expected(now, stream)
            if expected is not None:
                self.offset -= now - expected
                self.jumps += 1
                stream.move(packet, expected - now)
                now = expected
            self._newest = now
        elif stream.last is not None:
            now = stream.following
        elif packet.pts is not None:
            now = stream.time(packet.pts)
        else:
            return
        stream.advance(now, packet)

    def _expected(self, now: int, stream: _Stream) -> int | None:
        """Return where a packet was expected if it is elsewhere; None if it lies well."""
        if stream.last is None:
            begins_elsewhere = (
                self._may_jump
                and self._newest is not None
                and abs(now - self._newest) > LONGEST_GAP
            )
            return self._newest if begins_elsewhere else None
        went_back = now + LARGEST_STEP_BACK < stream.last
        far = self._may_jump and abs(now - stream.following) > LONGEST_GAP
        return stream.following if went_back or far else None


def demux(
    container: av.container.InputContainer, streams: Iterable[Stream]
) -> Iterator[av.Packet[Any]]:
    """Yield the packets of some streams in the file's order, and one for each to flush its decoder.

    As PyAV's own method, but for two of its faults: flushing packets claim that they are of
    stream 0, and where a further stream begins in the middle of the file, an error may be raised
    at its end, when all is read.

    Args:
        container: open, at its beginning.
        streams: of the container.

    Raises:
        av.FFmpegError: the file cannot be read on.
    """
    try:
        for packet in container.demux(list(streams)):
            if packet.size == 0:
                packet.stream = packet.stream
            yield packet
    except IndexError:
        return


def _scaled(value: int, by: int, over: int) -> int:
    """Return value x by / over, rounded as FFmpeg does: halves away from zero."""
    rounded = (2 * abs(value) * by + over) // (2 * over)
    return rounded if value >= 0 else -rounded
