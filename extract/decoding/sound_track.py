"""The sound track of a file: which one is read, and its decoded pieces in the order of time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
from av.stream import Disposition

from extract.decoding.packet_clock import PacketClock, demux
from extract.decoding.sound_placement import SAMPLE_RATE, SoundPiece, SoundPlacement

LARGEST_SHARE = 0.02  # by which the length of packets is wrong whose times drift
BLOCK = SAMPLE_RATE  # samples of a file that are handed on at once


def choose_sound_track(container: av.container.InputContainer) -> av.AudioStream | None:
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


class StampFilter:
    """Takes from decoded frames the stamps that FFmpeg made up by a wrong length of packets.

    MPEG-TS and -PS stamp the first of some packets, and FFmpeg the others by the length that it
    expects. Where the sample rate has changed on the way, it expects the one before.
    """

    def __init__(self, container: av.container.InputContainer) -> None:
        self._made_up = container.format.name in ("mpegts", "mpeg")
        self._next: int | None = None  # the stamp that the next packet has if it is made up
        self._wrong = False  # the length of the last one

    def check(self, packet: av.Packet[Any], frames: Sequence[av.AudioFrame]) -> None:
        """Look at a packet and the frames that were decoded of it.

        Args:
            packet: of the sound track.
            frames: decoded of it; they lose the stamps that were made up.
        """
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

    def __iter__(self) -> Iterator[SoundPiece]:
        """Yield its pieces, in the order of time."""
        try:
            yield from self._pieces()
        except MemoryError:
            raise  # one of FFmpeg's errors too
        except (av.FFmpegError, OSError, ValueError):
            self.damaged = True

    def _pieces(self) -> Iterator[SoundPiece]:
        placing = SoundPlacement(BLOCK)
        packets = frames = 0
        with av.open(self._url) as container:
            stream = choose_sound_track(container)
            if stream is None:
                return
            stamps = StampFilter(container)
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
