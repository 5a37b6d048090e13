"""The frames of a video, by their numbers in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from extract.decoding.container import Media, ffmpeg_name
from extract.decoding.frame_times import picture_packets, picture_stream

CLOCK_SLACK = 5e-4  # seconds; containers round their frames' times to a millisecond


def frames(path: Path, media: Media, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """Yield some frames as (H, W, 3) RGB, upright; one that cannot be decoded as an empty array.

    Args:
        path: of the file.
        media: as `probe` found it.
        wanted: (n,) numbers of frames, ascending; repeats are allowed.
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


def _number_at(time: float, media: Media) -> int:
    """Return the number of the frame that is shown at a time of the container's clock."""
    since = float(time) - media.first_frame
    return int(np.searchsorted(media.frame_times, since + CLOCK_SLACK)) - 1


def _decodable(
    container: av.container.InputContainer, media: Media, wanted: set[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode packet by packet, passing over those that are damaged; yield frames' numbers too.

    Frames that are not wanted and that no other frame refers to need not be decoded at all.
    """
    video = picture_stream(container)
    assert video is not None  # probe saw it
    video.codec_context.thread_count = 1  # the workers are the parallelism
    base = float(video.time_base or 1)
    timed = media.lateness is None
    exact_skips = timed and video.codec_context.codec.name in ("h264", "hevc")
    number = -1
    for packet in picture_packets(container, video, "CLOCK_JUMP" in media.flags, not timed):
        if exact_skips:
            needed = packet.pts is None or _number_at(packet.pts * base, media) in wanted
            video.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        try:
            for frame in packet.decode():
                if not isinstance(frame, av.VideoFrame):
                    continue
                number = _frame_number(frame, base, media, number)
                if not frame.is_corrupt:
                    yield number, frame
        except MemoryError:
            raise
        except av.FFmpegError:
            continue


def _frame_number(frame: av.VideoFrame, base: float, media: Media, before: int) -> int:
    """Return the number of a decoded frame; `before` is that of the frame decoded before it."""
    if media.lateness is None:
        return _number_at((frame.pts or 0) * base, media)
    if frame.dts is None:  # it was left in the decoder at the end
        return before + 1
    return _number_at(frame.dts * base + media.lateness, media)
