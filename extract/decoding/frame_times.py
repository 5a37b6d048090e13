"""When the frames of a stream are shown, where their packets do not say it or say it wrongly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import av

from extract.decoding import sound_track
from extract.decoding.packet_clock import PacketClock, demux


class DecodingTimes:
    """Gives a stream's packets a decoding time if they have none; takes false times of display.

    Args:
        container: of the stream.
        video: the stream.
    """

    def __init__(self, container: av.container.InputContainer, video: av.VideoStream) -> None:
        rate, base = video.average_rate or video.guessed_rate or 25, video.time_base or 1
        self._usual = round(1 / (rate * base))
        self._next: int | None = None
        # AVI numbers frames as they are stored. For other codecs FFmpeg knows B-frames when it sees
        # them; for these it makes times of display up (or none: versions differ)
        made_up = ("h264", "hevc", "vvc")
        name = video.codec_context.codec.canonical_name
        self._made_up = container.format.name == "avi" and name in made_up

    def time(self, packet: av.Packet[Any]) -> int:
        """Return a packet's decoding time, which it is given if it had none."""
        if self._made_up:
            packet.pts = None
        if packet.dts is None:
            packet.dts = self._next if self._next is not None else packet.pts or 0
        self._next = packet.dts + (packet.duration or self._usual)
        return packet.dts


class DisplayTimes:
    """When a stream's frames are shown, as they come: as ffmpeg guesses it.

    That is their own time, unless there is none, or more of these times than of the decoding times
    do not ascend; then it is that of the packet which completed the frame. For live streams, of
    which only what has come is known: `probe` and `frames` know the whole of a file.

    Args:
        container: of the stream.
        video: the stream.
    """

    def __init__(self, container: av.container.InputContainer, video: av.VideoStream) -> None:
        self._decoding = DecodingTimes(container, video)
        self._begun = False
        self._base = float(video.time_base or 1)
        self._pace = 1 / float(video.average_rate or video.guessed_rate or 25)
        self._last: float | None = None  # when the last frame was shown
        self._last_own = self._last_decoded = -math.inf  # ticks
        self._false_own = self._false_decoded = 0  # times that did not ascend

    def prepare(self, packet: av.Packet[Any]) -> None:
        """Complete the times of a packet of the stream before it is decoded."""
        self._begun |= packet.pts is not None or packet.dts is not None
        if packet.size and self._begun:
            self._decoding.time(packet)

    def time(self, frame: av.VideoFrame) -> float | None:
        """Return when a decoded frame is shown, in seconds; None if it is unknown."""
        own, decoded = frame.pts, frame.dts
        if own is not None:
            self._false_own += own <= self._last_own
            self._last_own = own
        if decoded is not None:
            self._false_decoded += decoded <= self._last_decoded
            self._last_decoded = decoded
        trusted = self._false_own <= self._false_decoded or decoded is None
        best = own if own is not None and trusted else decoded
        if best is not None:
            self._last = best * self._base
        elif self._last is not None:
            self._last += self._pace
        return self._last


def picture_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    stream = container.streams.best("video")
    return stream if isinstance(stream, av.VideoStream) else None


def picture_packets(
    container: av.container.InputContainer, video: av.VideoStream, jumps: bool, untimed: bool
) -> Iterator[av.Packet[Any]]:
    """Yield the picture's packets, up to where the file cannot be read on, then the flushing one.

    Args:
        container: open, at its beginning.
        video: the picture in it.
        jumps: put their times right; that takes the sound's packets too, see `PacketClock`.
        untimed: complete their decoding times; see `DecodingTimes`.
    """
    sound = sound_track.choose_sound_track(container) if jumps else None
    clock = PacketClock(container, [video] if sound is None else [video, sound])
    packets = clock.packets() if jumps else demux(container, [video])
    decoding = DecodingTimes(container, video)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        if packet.stream_index == video.index:
            if untimed and packet.size:
                decoding.time(packet)
            yield packet
