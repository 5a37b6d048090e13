"""From a media file to frames and sound on one clock, which starts at the first frame shown.

PyAV decodes the frames and reads the container's clock; decord decodes the sound. decord does not
decode the frames because its seeks give wrong ones without a word (HEVC with open groups of
pictures, MPEG-TS and -PS, WMV) and it drops the whole of a damaged file; PyAV is as fast. Where
decord is not installed, PyAV decodes the sound too, to the same samples.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import soundfile
from av.stream import Disposition
from numpy.typing import NDArray

# decord loads all of CUDA that pip has installed, 0.6 GB, for a decoder that is not used here
sys.modules.setdefault("nvidia", None)  # type: ignore[arg-type]
try:
    import decord
except ImportError:  # there are no wheels of it for every machine
    decord = None
if sys.modules["nvidia"] is None:
    del sys.modules["nvidia"]

SAMPLE_RATE = 16_000  # Hz; what Wav2Vec2 was trained on
SOUND_SUFFIXES = (".wav", ".flac", ".ogg")
SOUND_BLOCK = 10 * SAMPLE_RATE  # samples that are handed on at once
LONG_SOUND = 1200.0  # seconds; decord, twice as fast as PyAV, takes 280 KB for each
LONG_PAUSE = 3600.0  # seconds; longer clips have at least a frame a minute, or a damaged clock
CLOCK_SLACK = 5e-4  # seconds; containers round their frames' times to a millisecond

if decord is not None:
    decord.logging.set_level(decord.logging.QUIET)
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
            if the sound begins earlier; None if there is no sound track.
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
            sound = container.streams.best("audio")
            sound_start = None
            if sound is not None:
                sound_start = float((sound.start_time or 0) * (sound.time_base or 0) - shown[0])
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


def sound_beside(video: Path) -> Path | None:
    """Return the sound file of the same name next to a video, if there is one."""
    return next((s for s in map(video.with_suffix, SOUND_SUFFIXES) if s.is_file()), None)


def sound_blocks(
    video: Path, beside: Path | None, duration: float
) -> Iterator[NDArray[np.float32]]:
    """Yield a clip's sound as mono at 16 kHz, in blocks of some seconds.

    Args:
        video: the clip; its own track is read if `beside` is None.
        beside: the file of its sound.
        duration: seconds; the sound of a long clip is never in memory as a whole.

    Raises:
        ClipError: it cannot be decoded.
    """
    if duration > LONG_SOUND or (decord is None and beside is None):
        yield from _track_in_blocks(beside or video)
        return
    whole = read_sound_track(video) if beside is None else read_sound_file(beside)
    for first in range(0, len(whole), SOUND_BLOCK):
        yield whole[first : first + SOUND_BLOCK]


def _track_in_blocks(path: Path) -> Iterator[NDArray[np.float32]]:
    """Yield what `read_sound_track` returns, to the sample, block by block."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    block: list[NDArray[np.float32]] = []
    try:
        with av.open(ffmpeg_name(path)) as container:
            for frame in chain(container.decode(audio=0), [None]):
                block += [part.to_ndarray()[0] for part in resampler.resample(frame)]
                if block and (frame is None or sum(map(len, block)) >= SOUND_BLOCK):
                    yield np.concatenate(block)
                    block = []
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ClipError(f"its sound track cannot be decoded ({reason(error)})") from error


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


def read_sound_track(path: Path) -> NDArray[np.float32]:
    """Return the sound track of a media file as mono at 16 kHz.

    Raises:
        ClipError: it cannot be decoded.
    """
    try:
        reader = decord.AudioReader(ffmpeg_name(path), sample_rate=SAMPLE_RATE, mono=True)
        # the reader has decoded the track into _array; its own indexing copies sample by sample
        return np.asarray(reader._array[0], np.float32)
    except (decord.DECORDError, RuntimeError) as error:
        raise ClipError(f"its sound track cannot be decoded ({reason(error)})") from error


def reason(error: Exception) -> str:
    """Return the last, most telling line of a decoder's message."""
    if isinstance(error, av.FFmpegError):
        return str(error.strerror)
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
