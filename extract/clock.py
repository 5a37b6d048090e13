"""One clock for a file whose own clock restarts or jumps: two recordings put together, a reset.

Containers of broadcasts and discs (MPEG-TS and -PS, Ogg) say of themselves that their clock may
jump. The `ffmpeg` program then moves what follows such that it goes on where it was expected, and
so does `PacketClock`, by the same rule (`ts_discontinuity_process` in its ffmpeg_demux.c):

* A stream's next decoding time is predicted from its last packet. One that is more than
  `LONGEST_GAP` from that, or more than `LARGEST_STEP_BACK` before the last one, is a jump; what is
  nearer is a gap in the recording, and stays one.
* The stream's packet is moved to where it was predicted. By as much, all later packets of **every**
  stream are moved: a jump is the file's, so picture and sound stay together behind it.
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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.format import Flags

LONGEST_GAP = 10_000_000  # microseconds; -dts_delta_threshold, as ffmpeg's default
LARGEST_STEP_BACK = 100_000  # microseconds
MICROSECONDS = Fraction(1, 1_000_000)


@dataclass
class _Progress:
    """Where a stream has come to, in microseconds of the clock put right."""

    last: int  # the last packet's decoding time
    following: int  # the next one's, as predicted


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
        self._progress: dict[int, _Progress] = {}
        self._newest: int | None = None  # the decoding time of the last packet of any stream

    def packets(self) -> Iterator[av.Packet[Any]]:
        """Yield the streams' packets in the file's order, put right; flushing ones (empty) last.

        Raises:
            av.FFmpegError: the file cannot be read on.
        """
        for packet in self._container.demux(list(self._streams)):
            if packet.size == 0:
                packet.stream = packet.stream  # PyAV leaves the flushing ones' `stream_index` at 0
            self.place(packet)
            yield packet

    def place(self, packet: av.Packet[Any]) -> None:
        """Put a packet's ``pts`` and ``dts`` right, where it stands."""
        base = packet.time_base
        if packet.size == 0 or not base or packet.stream.type not in ("video", "audio"):
            return
        if self.offset:
            _move(packet, self.offset, base)
        if packet.is_discard and not self._may_jump:
            return  # decoded before an edit, never shown: it may lie before what was shown last
        progress = self._progress.get(packet.stream_index)
        if packet.dts is not None:
            now = _rescale(packet.dts, base, MICROSECONDS)
            expected = self._expected(now, progress)
            if expected is not None:
                self.offset -= now - expected
                self.jumps += 1
                _move(packet, expected - now, base)
                now = expected
            self._newest = now
        elif progress is not None:
            now = progress.following
        elif packet.pts is not None:
            now = _rescale(packet.pts, base, MICROSECONDS)
        else:
            return
        following = now + _length(packet, base)
        self._progress[packet.stream_index] = _Progress(now, following)

    def _expected(self, now: int, progress: _Progress | None) -> int | None:
        """Return where a packet was expected if it is elsewhere; None if it lies well."""
        if progress is None:
            begins_elsewhere = (
                self._may_jump
                and self._newest is not None
                and abs(now - self._newest) > LONGEST_GAP
            )
            return self._newest if begins_elsewhere else None
        went_back = now + LARGEST_STEP_BACK < progress.last
        far = self._may_jump and abs(now - progress.following) > LONGEST_GAP
        return progress.following if went_back or far else None


def _move(packet: av.Packet[Any], by: int, base: Fraction) -> None:
    """Move a packet by some microseconds."""
    ticks = _rescale(by, MICROSECONDS, base)
    if packet.dts is not None:
        packet.dts += ticks
    if packet.pts is not None:
        packet.pts += ticks


def _length(packet: av.Packet[Any], base: Fraction) -> int:
    """Return how long a packet is expected to last, in microseconds; 0 if nothing tells."""
    stream = packet.stream
    if isinstance(stream, av.AudioStream):
        codec = stream.codec_context
        if codec.sample_rate:  # 0 samples where packets are of no one length
            return 1_000_000 * codec.frame_size // codec.sample_rate
    if packet.duration:
        return _rescale(packet.duration, base, MICROSECONDS)
    if isinstance(stream, av.VideoStream) and stream.average_rate:
        return round(1_000_000 / stream.average_rate)
    return 0


def _rescale(ticks: int, base: Fraction, to: Fraction) -> int:
    """Return a time in units of another base, rounded as FFmpeg does: halves away from zero."""
    scaled = abs(ticks) * base.numerator * to.denominator
    unit = base.denominator * to.numerator
    rounded = (2 * scaled + unit) // (2 * unit)
    return rounded if ticks >= 0 else -rounded
