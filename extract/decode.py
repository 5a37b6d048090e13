"""From a media file to frames and sound on one clock, which starts at the first frame shown.

PyAV decodes the frames and reads the container's clock, and decodes the sound
(`extract.sound_track`). decord does neither: its seeks give wrong frames without a word (HEVC with
open groups of pictures, MPEG-TS and -PS, WMV), it drops the whole of a damaged file, and its sound
has no time stamps, ends at a broken packet and crashes where the sample rate changes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from av.stream import Disposition
from numpy.typing import NDArray

from extract import sound_track
from extract.sound_track import SAMPLE_RATE as SAMPLE_RATE

SOUND_SUFFIXES = (".wav", ".flac", ".ogg")
SOUND_BLOCK = 10 * SAMPLE_RATE  # samples that are handed on at once
LONG_SOUND = 1200.0  # seconds; longer sound files are never in memory as a whole
HOLE_SLACK = 0.05  # seconds that can be lost with a broken packet, besides its own
LONG_PAUSE = 3600.0  # seconds; longer clips have at least a frame a minute, or a damaged clock
CLOCK_SLACK = 5e-4  # seconds; containers round their frames' times to a millisecond

av.logging.set_level(None)


class ClipError(Exception):
    """A clip that cannot be read; the message says why, in one line."""


@dataclass(frozen=True)
class Media:
    """What a container says about its picture and sound, without decoding either.

    Attributes:
        first_frame: the container's time of the first frame, in seconds: zero of the clip's clock.
        frame_times: (frames,) seconds at which each frame is shown, from the first frame on.
        duration: seconds from the first frame to the end of the last.
        sound_start: seconds from the first frame to the first sample of the sound track, negative
            if the sound begins earlier; None if there is no sound track, or an empty one.
    """

    first_frame: float
    frame_times: NDArray[np.float64]
    duration: float
    sound_start: float | None


def ffmpeg_name(path: str | Path) -> str:
    """Return a local file's name in the form that FFmpeg takes for a file's, whatever is in it.

    Without ``file:`` FFmpeg takes what is before a colon for a protocol, in relative paths such as
    ``12:30:00.mp4``. PyAV and decord are to get no name of a local file but from here.

    Raises:
        ClipError: the name is not Unicode text; decord cannot open such a file.

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
            shown, last = _frame_clock(container, video)
            sound = sound_track.choose(container)
            sound_start = None
            if sound is not None and sound.start_time is not None:
                sound_start = float(sound.start_time * (sound.time_base or 0) - shown[0])
            elif sound is not None and (begins := sound_track.begins(ffmpeg_name(path))) is not None:
                sound_start = begins - float(shown[0])
    except MemoryError:
        raise  # one of FFmpeg's errors too
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ClipError(f"not a readable media file ({reason(error)})") from error
    duration = float(last - shown[0])
    if duration > max(LONG_PAUSE, len(shown) * LONG_PAUSE / 60):
        raise ClipError(
            f"its clock runs for {duration / 3600:.1f} hours, but there are only {len(shown)} "
            "frames: the file is damaged"
        )
    return Media(float(shown[0]), shown - shown[0], duration, sound_start)


def footage(path: Path) -> float:
    """Return the length that the container claims, in seconds; 0 if it cannot be read."""
    try:
        if path.is_file():
            with av.open(ffmpeg_name(path)) as container:
                return (container.duration or 0) / av.time_base
    except (ClipError, av.FFmpegError, OSError, ValueError):
        pass
    return 0.0


def _frame_clock(
    container: av.container.InputContainer, video: av.VideoStream
) -> tuple[NDArray[np.float64], float]:
    """Return when each frame is shown, in display order, and when the last one ends (seconds)."""
    base = video.time_base or Fraction(1)
    times: list[float] = []
    end = -math.inf
    try:
        for packet in container.demux(video):
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None or packet.is_discard or packet.size == 0:
                continue
            times.append(float(stamp * base))
            end = max(end, float((stamp + (packet.duration or 0)) * base))
    except av.FFmpegError:
        pass  # cut short: what was read before is the valid part
    if not times:
        raise ClipError("its video stream has no frames")
    shown = np.sort(np.array(times))
    if end <= shown[-1]:  # containers that give no duration to a packet
        rate = float(video.average_rate or video.guessed_rate or 25)
        end = shown[-1] + 1 / rate
    return shown, end


def frames(path: Path, media: Media, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames number `wanted` (ascending, repeats allowed) as (H, W, 3) RGB, upright.

    A frame that cannot be decoded comes as an empty array.
    """
    missing: NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)
    position = 0
    with av.open(ffmpeg_name(path)) as container:
        for frame in _decodable(container, media, set(wanted.tolist())):
            number = _number(frame.time or 0.0, media)
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


def _decodable(
    container: av.container.InputContainer, media: Media, wanted: set[int]
) -> Iterator[av.VideoFrame]:
    """Decode packet by packet, passing over those that are damaged.

    Frames that are not wanted and that no other frame refers to need not be decoded at all.
    """
    video = _picture(container)
    assert video is not None  # probe saw it
    video.codec_context.thread_count = 1  # the workers are the parallelism
    base = video.time_base or Fraction(1)
    exact_skips = video.codec_context.codec.name in ("h264", "hevc")
    packets = container.demux(video)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        shown = None if packet.pts is None else _number(float(packet.pts * base), media)
        if exact_skips:
            needed = shown is None or shown in wanted
            video.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        try:
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame) and not frame.is_corrupt:
                    yield frame
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
            fault.damaged = True
            return
        for first in range(0, len(whole), SOUND_BLOCK):
            yield first, whole[first : first + SOUND_BLOCK]
        return
    track = sound_track.SoundTrack(ffmpeg_name(beside or video))
    origin = media.first_frame if beside is None else None
    block: list[NDArray[np.float32]] = []
    first = end = 0
    lost = 0.0  # seconds that could not be decoded before the last hole
    for piece in track:
        if origin is None:
            origin = piece.begins
        at = piece.first(origin)
        if 0 < end < at < media.duration * SAMPLE_RATE:  # within the picture
            broken, lost = track.lost - lost, track.lost
            fault.gap |= not broken or (at - end) / SAMPLE_RATE > broken + HOLE_SLACK
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


def read_sound_file(path: Path) -> NDArray[np.float32]:
    """Return a sound file as mono at 16 kHz.

    Raises:
        ClipError: it cannot be read.
    """
    if not path.is_file():
        raise ClipError(f"the sound file is not there: {path}")
    try:
        # absolute: libsndfile takes a file called - for standard input
        samples, rate = soundfile.read(os.path.abspath(path), dtype="float32", always_2d=True)
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
