"""From a media file to frames and sound on one clock, which starts at the first frame shown.

PyAV decodes the frames, reads the container's clock, and decodes the sound
(`extract.decoding.sound_track`). decord does neither: its seeks give wrong frames without a word
(HEVC with open groups of pictures, MPEG-TS and -PS, WMV), it drops the whole of a damaged file, and
its sound has no time stamps, ends at a broken packet and crashes where the sample rate changes.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import soundfile
from av.format import Flags
from av.stream import Disposition
from numpy.typing import NDArray

from extract.decoding import sound_track
from extract.decoding.completeness import cut_short, lost_index
from extract.decoding.packet_clock import PacketClock, demux
from extract.decoding.sound_track import SAMPLE_RATE as SAMPLE_RATE
from manifests import AvarnetError

SOUND_SUFFIXES = (".wav", ".flac", ".ogg")
SOUND_BLOCK = 10 * SAMPLE_RATE  # samples that are handed on at once
LONG_SOUND = 1200.0  # seconds; longer sound files are never in memory as a whole
UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's, of FLAC that was written to a pipe
HOLE_SLACK = 0.05  # seconds that can be lost with a broken packet, besides its own
LONG_PAUSE = 3600.0  # seconds; longer clips have at least a frame a minute, or a damaged clock
CLOCK_SLACK = 5e-4  # seconds; containers round their frames' times to a millisecond
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


def probe(path: Path) -> Media:
    """Read the container's clock.

    Raises:
        ClipError: no such file, not a media file, or one without a picture.
    """
    if not path.is_file():
        what = "not a regular file" if path.exists() else "no such file"
        raise ClipError(f"{what}: {path}")
    if path.stat().st_size == 0:
        raise ClipError(f"the file is empty: {path}")
    try:
        with av.open(ffmpeg_name(path)) as container:
            video = _picture(container)
            if video is None or Disposition.attached_pic in video.disposition:
                raise ClipError("there is no picture in it; a clip needs a video stream")
            decoder: av.VideoCodecContext | None = video.codec_context
            if decoder is None:
                raise ClipError("there is no decoder for its picture: the file is damaged, or rare")
            sound = sound_track.choose(container)
            found = _frame_clock(container, video, sound)
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


def footage(path: Path) -> float:
    """Return the length that the container claims, in seconds; 0 if it cannot be read."""
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


class _Packets(NamedTuple):
    """What a file's packets say, all in seconds on one clock that does not jump."""

    times: NDArray[np.float64]  # when each frame is shown, ascending
    untimed: bool  # `times` are when each is decoded: when it is shown is not said
    end: float  # of the last frame of `times`
    ends: dict[int, float]  # stream number -> when it ends
    jumps: int  # of the file's own clock


def _frame_clock(
    container: av.container.InputContainer, video: av.VideoStream, sound: av.AudioStream | None
) -> _Packets:
    """Read all packets of a file.

    Raises:
        ClipError: there are no frames.
    """
    base = video.time_base or Fraction(1)
    stamps: list[tuple[int | None, int]] = []
    ends: dict[int, float] = {}
    clock = PacketClock(container, [video] if sound is None else [video, sound])
    decoding, length = _Decoding(container, video), 0
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
    return _Packets(times, untimed, float(end), ends, clock.jumps)


class _Decoding:
    """Sees to it that a stream's packets have a decoding time, and no false time of display.

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


class Showing:
    """Tells of a stream's frames, as they come, when they are shown: as ffmpeg guesses it.

    That is their own time, unless there is none, or more of these times than of the decoding times
    do not ascend; then it is that of the packet which completed the frame. For live streams, of
    which only what has come is known: `probe` and `frames` know the whole of a file.

    Args:
        container: of the stream.
        video: the stream.
    """

    def __init__(self, container: av.container.InputContainer, video: av.VideoStream) -> None:
        self._decoding = _Decoding(container, video)
        self._begun = False
        self._base = float(video.time_base or 1)
        self._pace = 1 / float(video.average_rate or video.guessed_rate or 25)
        self._last: float | None = None  # when the last frame was shown
        self._last_own = self._last_decoded = -math.inf  # ticks
        self._false_own = self._false_decoded = 0  # times that did not ascend

    def coming(self, packet: av.Packet[Any]) -> None:
        """See to the times of a packet of the stream before it is decoded."""
        self._begun |= packet.pts is not None or packet.dts is not None
        if packet.size and self._begun:
            self._decoding.time(packet)

    def time(self, frame: av.VideoFrame) -> float | None:
        """Return when a decoded frame is shown, in seconds; None if nothing tells."""
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
        video = _picture(container)
        assert video is not None  # probe saw it
        base = float(video.time_base or 1)
        head: list[av.VideoFrame] = []
        for number, packet in enumerate(_placed(container, video, True, True)):
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


def frames(path: Path, media: Media, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames number `wanted` (ascending, repeats allowed) as (H, W, 3) RGB, upright.

    A frame that cannot be decoded comes as an empty array.
    """
    missing: NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)
    position = 0
    with av.open(ffmpeg_name(path)) as container:
        for number, frame in _decodable(container, media, set(wanted.tolist())):
            while position < len(wanted) and wanted[position] < number:
                yield missing
                position += 1
            if position < len(wanted) and wanted[position] == number:
                picture = upright(frame)
                while position < len(wanted) and wanted[position] == number:
                    yield picture
                    position += 1
            if position == len(wanted):
                return
    for _ in range(position, len(wanted)):
        yield missing


def upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """Return a frame as (H, W, 3) RGB, turned as it is shown."""
    turned = frame.rotation // 90 % 4  # phones store the picture as the sensor lay
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turned), np.uint8)


def _number(time: float, media: Media) -> int:
    """Return the number of the frame that is shown at a time of the container's clock."""
    since = float(time) - media.first_frame
    return int(np.searchsorted(media.frame_times, since + CLOCK_SLACK)) - 1


def _picture(container: av.container.InputContainer) -> av.VideoStream | None:
    stream = container.streams.best("video")
    return stream if isinstance(stream, av.VideoStream) else None


def _placed(
    container: av.container.InputContainer, video: av.VideoStream, jumps: bool, untimed: bool
) -> Iterator[av.Packet[Any]]:
    """Yield the picture's packets, up to where the file cannot be read on, then the flushing one.

    Args:
        container: open, at its beginning.
        video: the picture in it.
        jumps: put their times right; that takes the sound's packets too, see `PacketClock`.
        untimed: see to their decoding times, as `_Decoding` does.
    """
    sound = sound_track.choose(container) if jumps else None
    clock = PacketClock(container, [video] if sound is None else [video, sound])
    packets = clock.packets() if jumps else demux(container, [video])
    decoding = _Decoding(container, video)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        if packet.stream_index == video.index:
            if untimed and packet.size:
                decoding.time(packet)
            yield packet


def _decodable(
    container: av.container.InputContainer, media: Media, wanted: set[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode packet by packet, passing over those that are damaged; yield frames' numbers too.

    Frames that are not wanted and that no other frame refers to need not be decoded at all.
    """
    video = _picture(container)
    assert video is not None  # probe saw it
    video.codec_context.thread_count = 1  # the workers are the parallelism
    base = float(video.time_base or 1)
    timed = media.lateness is None
    exact_skips = timed and video.codec_context.codec.name in ("h264", "hevc")
    number = -1
    for packet in _placed(container, video, "CLOCK_JUMP" in media.flags, not timed):
        if exact_skips:
            needed = packet.pts is None or _number(packet.pts * base, media) in wanted
            video.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        try:
            for frame in packet.decode():
                if not isinstance(frame, av.VideoFrame):
                    continue
                number = _shown_as(frame, base, media, number)
                if not frame.is_corrupt:
                    yield number, frame
        except MemoryError:
            raise
        except av.FFmpegError:
            continue


@dataclass
class SoundFault:
    """What is wrong with a clip's sound.

    Attributes:
        damaged: some of it could not be decoded.
        gap: some is missing in the middle of the track, besides what could not be decoded.
    """

    damaged: bool = False
    gap: bool = False


def _shown_as(frame: av.VideoFrame, base: float, media: Media, before: int) -> int:
    """Return the number of a decoded frame; `before` is that of the frame decoded before it."""
    if media.lateness is None:
        return _number((frame.pts or 0) * base, media)
    if frame.dts is None:  # it was left in the decoder at the end
        return before + 1
    return _number(frame.dts * base + media.lateness, media)


def sound_beside(video: Path) -> Path | None:
    """Return the sound file of the same name next to a video, if there is one: 001.wav, 001.WAV."""
    suffixes = [
        write(suffix) for write in (str.lower, str.upper, str.title) for suffix in SOUND_SUFFIXES
    ]
    return next((s for s in map(video.with_suffix, suffixes) if s.is_file()), None)


def sound_blocks(
    video: Path, beside: Path | None, media: Media, fault: SoundFault
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield a clip's sound as mono at 16 kHz, in blocks of some seconds: first sample, samples.

    First samples are counted from the clip's first frame on; negative ones come before it. Where
    one is not the next after the last block, there is a hole.

    Args:
        video: the clip; its own track is read if `beside` is None.
        beside: the file of its sound, which begins with the first frame.
        media: of the clip; the sound of a long one is never in memory as a whole.
        fault: is told what is wrong with it.
    """
    if beside is not None and media.duration <= LONG_SOUND:
        try:
            whole = read_sound_file(beside)
        except ClipError:
            pass  # what can be read of it, FFmpeg finds
        else:
            for first in range(0, len(whole), SOUND_BLOCK):
                yield first, whole[first : first + SOUND_BLOCK]
            return
    jumps = beside is None and "CLOCK_JUMP" in media.flags
    track = sound_track.SoundTrack(ffmpeg_name(beside or video), jumps)
    origin = media.first_frame if beside is None else None
    block: list[NDArray[np.float32]] = []
    first = end = 0
    missing = 0.0  # seconds
    for piece in track:
        if origin is None:
            origin = piece.begins
        at = piece.first(origin)
        if 0 < end < at < media.duration * SAMPLE_RATE:  # within the picture
            missing += (at - end) / SAMPLE_RATE
        if block and (at != end or end - first >= SOUND_BLOCK):
            yield first, np.concatenate(block)
            block = []
        if not block:
            first = at
        block.append(piece.samples)
        end = at + len(piece.samples)
    if block:
        yield first, np.concatenate(block)
    fault.damaged = track.damaged
    fault.gap = missing > track.lost + track.broken * HOLE_SLACK


def read_sound_file(path: Path) -> NDArray[np.float32]:
    """Return a sound file as mono at 16 kHz.

    Raises:
        ClipError: it cannot be read.
    """
    if not path.is_file():
        raise ClipError(f"the sound file is not there: {path}")
    try:
        # absolute: libsndfile takes a file called - for standard input
        with soundfile.SoundFile(os.path.abspath(path)) as file:
            if file.frames == UNKNOWN_FRAMES:
                raise ClipError(f"the sound file beside it does not say how long it is: {path}")
            samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
            if len(samples) < file.frames:
                raise ClipError(f"the sound file beside it lacks packets: {path}")
    except (soundfile.LibsndfileError, OSError) as error:
        raise ClipError(f"the sound file beside it cannot be read ({error})") from error
    mono = samples.mean(axis=1)
    if rate != SAMPLE_RATE:
        from scipy.signal import resample_poly  # takes longer than all else that is imported here

        common = math.gcd(rate, SAMPLE_RATE)
        mono = resample_poly(mono, SAMPLE_RATE // common, rate // common)
    return np.asarray(mono, np.float32)


def reason(error: Exception) -> str:
    """Return the last, most telling line of a decoder's message."""
    if isinstance(error, av.FFmpegError):
        return str(error.strerror)
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
