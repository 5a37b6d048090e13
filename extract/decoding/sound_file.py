"""A clip's sound, from its own track or from a file beside it, as blocks of samples."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from extract.decoding.container import ClipError, Media, check_file, ffmpeg_name
from extract.decoding.sound_placement import SAMPLE_RATE
from extract.decoding.sound_track import SoundTrack

SOUND_SUFFIXES = (".wav", ".flac", ".ogg")
SOUND_BLOCK = 10 * SAMPLE_RATE  # samples that are handed on at once
LONG_SOUND = 1200.0  # seconds; longer sound files are never in memory as a whole
UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's, of FLAC that was written to a pipe
HOLE_SLACK = 0.05  # seconds that can be lost with a broken packet, besides its own


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
        fault: gets what is wrong with it.
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
    track = SoundTrack(ffmpeg_name(beside or video), jumps)
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
    check_file(path, "there is no such sound file")
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
