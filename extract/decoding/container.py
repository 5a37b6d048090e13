"""What a container says of its picture and sound: their clock, which starts at the first frame.

PyAV decodes the frames (`extract.decoding.frames`), reads the container's clock, and decodes the
sound (`extract.decoding.sound_track`). decord does neither: its seeks give wrong frames without a
word (HEVC with open groups of pictures, MPEG-TS and -PS, WMV), it drops the whole of a damaged
file, and its sound has no time stamps, ends at a broken packet and crashes where the sample rate
changes.
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.format import Flags
from av.stream import Disposition
from numpy.typing import NDArray

from extract.decoding import sound_track
from extract.decoding.completeness import cut_short, lost_index
from extract.decoding.frame_times import DecodingTimes, picture_packets, picture_stream
from extract.decoding.packet_clock import PacketClock, demux
from manifests import AvarnetError

LONG_PAUSE = 3600.0  # seconds; longer clips have at least a frame a minute, or a damaged clock
HEAD = 64  # packets that show whether frames are put in order, and how late

av.logging.set_level(None)


class ClipError(AvarnetError):
    """A clip that cannot be read; the message says why, in one line."""


@dataclass(frozen=True)
class Media:
    """What a container says about its picture and sound, without decoding either.

    Attributes:
        first_frame: the container's time of the first frame, in seconds: zero of the clip's clock.
        frame_times: (frames,) seconds at which each frame is shown, from the first frame on.
        duration: seconds from the first frame to the end of the last.
        has_sound: whether the sound track that is read has any packets.
        lateness: None if the packets have the times at which their frames are shown. If they have
            not (H.264 with B-frames in AVI): the seconds from the decoding time of the packet that
            completes a frame to when the frame is shown.
        cut_short: how it shows that the file was cut short; "" if it seems to be whole.
        flags: names of the `features.Flag` that all this amounts to.
    """

    first_frame: float
    frame_times: NDArray[np.float64]
    duration: float
    has_sound: bool
    lateness: float | None = None
    cut_short: str = ""
    flags: frozenset[str] = frozenset()


def ffmpeg_name(path: str | Path) -> str:
    """Return a local file's name in the form that FFmpeg takes for a file's, whatever is in it.

    Without ``file:`` FFmpeg takes what is before a colon for a protocol, in relative paths such as
    ``12:30:00.mp4``. PyAV is to get no name of a local file but from here.

    Raises:
        ClipError: the name is not Unicode text.

    >>> ffmpeg_name("12:30:00.mp4")
    'file:12:30:00.mp4'
    """
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(name).decode(errors="backslashreplace")
        raise ClipError(f"its name is not Unicode text; rename the file: {shown}") from error
    # two slashes at the start would look like a URL's, file://host
    return "file:" + (f"/{name.lstrip('/')}" if name.startswith("//") else name)


def check_file(path: Path, absent: str) -> None:
    """Refuse what is no regular file.

    Args:
        path: of it.
        absent: what to say where there is nothing.

    Raises:
        ClipError: it is none, or its folder may not be read.
    """
    try:
        if path.is_file():
            return
        what = "not a regular file" if path.exists() else absent
    except OSError as error:
        what = f"cannot be read ({error.strerror}; ask its owner)"
    raise ClipError(f"{what}: {path}")


def probe(path: Path) -> Media:
    """Read the container's clock.

    Raises:
        ClipError: no such file, not a media file, or one without a picture.
    """
    check_file(path, "no such file")
    if path.stat().st_size == 0:
        raise ClipError(f"the file is empty: {path}")
    try:
        with av.open(ffmpeg_name(path)) as container:
            video = picture_stream(container)
            if video is None or Disposition.attached_pic in video.disposition:
                raise ClipError("there is no picture in it; a clip needs a video stream")
            decoder: av.VideoCodecContext | None = video.codec_context
            if decoder is None:
                raise ClipError("there is no decoder for its picture: the file is damaged, or rare")
            sound = sound_track.choose_sound_track(container)
            found = _packet_times(container, video, sound)
            _refuse_without_times(path, container, video, len(found.times))
            shown, lateness = found.times, None
            if found.untimed:
                shown, lateness = _times_in_order(path, shown)
            has_sound = sound is not None and sound.index in found.ends
            why = cut_short(path, container, found.ends)
    except MemoryError:
        raise  # one of FFmpeg's errors too
    except (av.FFmpegError, OSError, ValueError) as error:
        why = f"not a readable media file ({reason(error)})"
        raise ClipError(lost_index(path) or why) from error
    duration = float(found.end - found.times[0])
    if duration > max(LONG_PAUSE, len(shown) * LONG_PAUSE / 60):
        raise ClipError(
            f"its clock runs for {duration / 3600:.1f} hours, but there are only {len(shown)} "
            "frames: the file is damaged"
        )
    flags = {"CUT_SHORT": bool(why), "CLOCK_JUMP": found.jumps > 0}
    return Media(
        float(shown[0]),
        shown - shown[0],
        duration,
        has_sound,
        lateness,
        why,
        frozenset(name for name, is_so in flags.items() if is_so),
    )


def footage(path: str | Path) -> float:
    """Return the length that the container claims, in seconds; 0 if it cannot be read."""
    path = Path(path)
    try:
        if path.is_file():
            with av.open(ffmpeg_name(path)) as container:
                return (container.duration or 0) / av.time_base
    except (ClipError, av.FFmpegError, OSError, ValueError):
        pass
    return 0.0


def _refuse_without_times(
    path: Path, container: av.container.InputContainer, video: av.VideoStream, count: int
) -> None:
    """Refuse a stream that was never put into a container, and so has no clock.

    FFmpeg makes one up, of 25 frames a second where the stream names no rate. Most cameras' names
    none or a wrong one, and where the clock is wrong all intervals and the sound are, unseen.
    MPEG-2 must name its rate, so that one is read.
    """
    name = container.format.name
    without: Any = Flags.no_timestamps.value  # an int, whatever PyAV's stubs say
    pictures = name.endswith("_pipe") and count > 1  # one behind the other
    if not (container.format.flags & without or pictures) or name == "mpegvideo":
        return
    claimed = video.codec_context.framerate
    rate = f"{float(claimed):g}" if claimed else "RATE"
    raise ClipError(
        f"it is a raw {video.codec_context.codec.canonical_name} stream: {count} frames without "
        "times, so that nothing says when each is shown. Put it into a container, with the rate "
        f"that its camera is set to{f' (the stream claims {rate})' if claimed else ''}: ffmpeg "
        f"-framerate {rate} -i {path.name} -c:v libx264 -crf 12 {path.stem}.mp4"
    )


class _PacketTimes(NamedTuple):
    """What a file's packets say, all in seconds on one clock that does not jump."""

    times: NDArray[np.float64]  # when each frame is shown, ascending
    untimed: bool  # `times` are when each is decoded: when it is shown is unknown
    end: float  # of the last frame of `times`
    ends: dict[int, float]  # stream number -> when it ends
    jumps: int  # of the file's own clock


def _packet_times(
    container: av.container.InputContainer, video: av.VideoStream, sound: av.AudioStream | None
) -> _PacketTimes:
    """Read all packets of a file.

    Raises:
        ClipError: there are no frames.
    """
    base = video.time_base or Fraction(1)
    stamps: list[tuple[int | None, int]] = []
    ends: dict[int, float] = {}
    clock = PacketClock(container, [video] if sound is None else [video, sound])
    decoding, length = DecodingTimes(container, video), 0
    bases = {stream.index: stream.time_base or Fraction(0) for stream in container.streams}
    placed = {video.index} if sound is None else {video.index, sound.index}
    try:
        for packet in demux(container, container.streams):
            number = packet.stream_index
            if packet.size == 0:
                continue
            if number in placed:
                clock.place(packet)
            decoded = decoding.time(packet) if number == video.index else 0
            stamp = packet.pts if packet.pts is not None else packet.dts
            # what is decoded before an edit, and not shown, may lie behind the end
            if stamp is not None and not packet.is_discard:
                unit = bases[number]
                end = (stamp + (packet.duration or 0)) * unit.numerator / unit.denominator
                if end > ends.get(number, -math.inf):
                    ends[number] = end
            if number == video.index and not packet.is_discard:
                stamps.append((packet.pts, decoded))
                length = packet.duration or 0
    except av.FFmpegError:
        pass  # cut short: what was read before is the valid part
    if not stamps:
        raise ClipError("its video stream has no frames")
    # where all are shown as they are decoded though the decoder is to put them in order, the times
    # were copied from those of decoding (a raw stream that was copied into an MP4)
    copied = len({pts - dts for pts, dts in stamps if pts is not None}) == 1
    untimed = any(pts is None for pts, _ in stamps)
    untimed |= copied and bool(video.codec_context.has_b_frames)
    taken = [dts if untimed or pts is None else pts for pts, dts in stamps]
    times = np.sort(np.array(taken, np.int64) * base.numerator / base.denominator)
    end = ends.get(video.index, -math.inf)
    if untimed:
        end = times[-1] + float(length * base)
    if end <= times[-1]:  # containers that give no duration to a packet
        end = times[-1] + 1 / float(video.average_rate or video.guessed_rate or 25)
    return _PacketTimes(times, untimed, float(end), ends, clock.jumps)


def _times_in_order(path: Path, decoded: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return when frames are shown whose packets do not say it, and their `Media.lateness`.

    A decoder puts frames in order, so that the n-th to be shown comes with the n-th packet after
    the first one that completes a frame. As ffmpeg does, each is shown when the packet that
    completes it is decoded, unless the first ones have times that are in order.

    Args:
        path: of the file.
        decoded: (frames,) ascending seconds at which packets are decoded.
    """
    with av.open(ffmpeg_name(path)) as container:
        video = picture_stream(container)
        assert video is not None  # probe saw it
        base = float(video.time_base or 1)
        head: list[av.VideoFrame] = []
        for number, packet in enumerate(picture_packets(container, video, True, True)):
            with contextlib.suppress(av.FFmpegError):
                head += packet.decode()
            if number >= HEAD and head:
                break
    if not head or head[0].dts is None:  # only what is left in the decoder at the end
        return decoded, 0.0
    timed = [(f.pts, f.dts) for f in head if f.pts is not None and f.dts is not None]
    own = [pts for pts, _ in timed]
    in_order = own == sorted(own) and len(timed) > 0
    lateness = (timed[0][0] - timed[0][1]) * base if in_order else 0.0
    first = head[0].dts * base + lateness
    return decoded - decoded[0] + first, lateness


def reason(error: Exception) -> str:
    """Return the last, most telling line of a decoder's message."""
    if isinstance(error, av.FFmpegError):
        return str(error.strerror)
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
