"""Whether a file ends where its container says that it does, or was cut short.

A download or a copy that broke off, a full disk, a recorder without power: what remains decodes
without an error. What tells is what the container states: how long it is, or, where it states no
length (recordings of a live stream, MPEG-TS and -PS), the size of the piece at the file's end.
A file of the latter kinds that was cut exactly between two pieces cannot be told from a whole one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import av

LEAST = 0.5  # seconds that must be missing: headers are rounded, and count the last frame or not
SHARE = 1e-3  # of the length, in addition
HEADER = 1 << 16  # bytes that hold the header of an ASF file
TAIL = 1 << 17  # bytes, longer than the longest packet of MPEG-PS and the longest page of Ogg
TS_PACKETS = {188: 0, 192: 4, 204: 0}  # bytes of an MPEG-TS packet: where in it the sync byte is
SYNC = 0x47
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
SEGMENT, CLUSTER = 0x18538067, 0x1F43B675  # elements of Matroska that may state no size
UNKNOWN = -1

# seconds at which a stream, by its number in the file, ends: the latest end of its packets
Ends = Mapping[int, float]


def cut_short(path: Path, container: av.container.InputContainer, ends: Ends) -> str:
    """Return how it shows that a file was cut short; "" if it seems to be whole.

    Args:
        path: of the file.
        container: the file, open, with nothing but its header needed.
        ends: where each stream ends, by what was read of it.
    """
    name = container.format.name
    lengths = list(_lengths(path, container, ends))
    short = next(((s, f) for s, f in lengths if s - f > LEAST + SHARE * s), None)
    inside = False
    # a length that is as stated is believed, whatever is behind it
    if name in ENDS_INSIDE and (short is not None or not lengths or name not in BELIEVED):
        with open(path, "rb") as file:
            inside = ENDS_INSIDE[name](file, os.path.getsize(path))
    if short is not None and (inside or name != "avi"):  # which may end with empty packets
        stated, found = short
        return (
            f"its container states {stated:.1f} s, but what is in it ends at {found:.1f} s: the "
            "file was cut short"
        )
    return "it ends in the middle of a packet: the file was cut short" if inside else ""


def lost_index(path: Path) -> str:
    """Return that an MP4 is without the index that stands at its end; "" if it is not that."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        boxes = list(_boxes(file, os.path.getsize(path)))
        kinds = [kind for kind, _ in boxes]
        if b"ftyp" in kinds[:1] and b"mdat" in kinds and b"moov" not in kinds:
            return (
                "its index is missing, which stands at the end: the file was cut short, or its "
                "recording was not finished; copy it again, or repair it with a tool such as "
                "untrunc and another file of the same camera"
            )
    return ""


def _lengths(
    path: Path, container: av.container.InputContainer, ends: Ends
) -> Iterator[tuple[float, float]]:
    """Yield at what second something ends as the container states it, and as it was found.

    Only what is stated: FFmpeg guesses a length from the file's size, or its last packet, where a
    container has none.
    """
    name = container.format.name
    latest = max(ends.values(), default=0.0)
    stated = name.startswith(("matroska", "flv", "rm"))
    if name.startswith("mov,"):  # one in fragments may have an index of them that tells its length
        stated = not any(video.frames for video in container.streams.video)
    if stated and container.duration:
        yield container.duration / av.time_base, latest
    if name.startswith("mov,"):
        for stream in (*container.streams.video, *container.streams.audio):
            if stream.duration and stream.time_base and stream.index in ends:
                end = (stream.start_time or 0) + stream.duration
                yield float(end * stream.time_base), ends[stream.index]
    if name == "avi":  # whose duration FFmpeg takes for the file's size, if that is less
        for video in container.streams.video:
            if video.frames and video.average_rate and video.index in ends:
                yield float(video.frames / video.average_rate), ends[video.index]
    if name == "asf":  # of which FFmpeg believes nothing if the size is not as stated
        with open(path, "rb") as file:
            length = _asf_length(file.read(HEADER))
        if length:
            yield length, latest


def _asf_length(header: bytes) -> float:
    """Return the length in seconds that an ASF header states, or 0."""
    at = header.find(ASF_FILE_PROPERTIES)
    if at < 0 or len(header) < at + 92:
        return 0.0
    length = int.from_bytes(header[at + 64 : at + 72], "little") / 1e7
    preroll = int.from_bytes(header[at + 80 : at + 88], "little") / 1e3
    broadcast = header[at + 88] & 1  # the length is not valid
    return 0.0 if broadcast else length - preroll


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Yield the kind of each box of an MP4, and where it ends, be it behind the file's end."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4])
        if length == 1:
            length = int.from_bytes(head[8:16])
        if length == 0:  # up to the end, wherever that is
            length = size - at
        if length < 8:
            return
        at += length
        yield head[4:8], at


def _mp4_inside(file: BinaryIO, size: int) -> bool:
    """Tell whether the last fragment extends beyond the file's end; only fragments tell it."""
    boxes = list(_boxes(file, size))
    return any(kind == b"moof" for kind, _ in boxes) and boxes[-1][1] > size


def _matroska_inside(file: BinaryIO, size: int) -> bool:
    """Tell whether the last element, such as a frame, extends beyond the file's end."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(12)
        name, name_bytes = _vint(head, keep_marker=True)
        length, length_bytes = _vint(head[name_bytes:], keep_marker=False)
        if not name_bytes or not length_bytes:
            return len(head) < 12 and any(head)  # what is no element at all was not cut short
        at += name_bytes + length_bytes
        if length == UNKNOWN:
            if name not in (SEGMENT, CLUSTER):
                return False
            continue  # with what it consists of
        at += length
    return at > size


def _vint(data: bytes, keep_marker: bool) -> tuple[int, int]:
    """Return a number of variable length of Matroska, and how many bytes it takes: 0 if none."""
    if not data or not data[0]:
        return 0, 0
    count = 9 - data[0].bit_length()
    if count > len(data):
        return 0, 0
    value = int.from_bytes(data[:count])
    if keep_marker:
        return value, count
    value -= 1 << 7 * count
    return UNKNOWN if value == (1 << 7 * count) - 1 else value, count


def _ts_inside(file: BinaryIO, size: int) -> bool:
    """Tell whether the last packet is incomplete: four whole ones, and the start of a fifth."""
    file.seek(max(0, size - 6 * max(TS_PACKETS)))
    tail = file.read()
    for length, sync in TS_PACKETS.items():
        for rest in range(sync + 1, length):
            starts = [len(tail) - rest - length * back + sync for back in range(5)]
            if starts[-1] >= 0 and all(tail[start] == SYNC for start in starts):
                return not _ts_whole(tail, length, sync)
    return False


def _ts_whole(tail: bytes, length: int, sync: int) -> bool:
    starts = [len(tail) - length * back + sync for back in range(1, 5)]
    return all(tail[start] == SYNC for start in starts)


def _ps_inside(file: BinaryIO, size: int) -> bool:
    """Tell whether the last packet states more bytes than there are."""
    file.seek(max(0, size - TAIL))
    tail = file.read()
    at = len(tail)
    while (at := tail.rfind(b"\0\0\1", 0, at)) >= 0 and at + 6 <= len(tail):
        # no start code of a video stream is as high as those of packets
        if 0xBC <= tail[at + 3] <= 0xEF:
            return at + 6 + int.from_bytes(tail[at + 4 : at + 6]) > len(tail)
        if tail[at + 3] == 0xB9:  # the end of the program
            return False
    return False


def _flv_inside(file: BinaryIO, size: int) -> bool:
    """Tell whether the file does not end with the size of its last tag, as it must."""
    file.seek(size - 4)
    last = int.from_bytes(file.read(4))
    if not 11 <= last <= size - 4:
        return True
    file.seek(size - 4 - last)
    tag = file.read(4)
    return tag[0] & 0x1F not in (8, 9, 18) or int.from_bytes(tag[1:]) != last - 11


def _ogg_inside(file: BinaryIO, size: int) -> bool:
    """Tell whether the last page states more bytes than there are."""
    file.seek(max(0, size - TAIL))
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0:
        return False
    if len(tail) < at + 27:
        return True
    sizes = tail[at + 27 : at + 27 + tail[at + 26]]
    return at + 27 + tail[at + 26] + sum(sizes) > len(tail)


def _avi_inside(file: BinaryIO, size: int) -> bool:
    """Tell whether the last of its parts states more bytes than there are; none if not closed."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            return False
        at += 8 + length + length % 2
    return at > size + 1


# by FFmpeg's name of the format: a look at how the file ends
ENDS_INSIDE: dict[str, Callable[[BinaryIO, int], bool]] = {
    "mov,mp4,m4a,3gp,3g2,mj2": _mp4_inside,
    "matroska,webm": _matroska_inside,
    "flv": _flv_inside,
    "avi": _avi_inside,
    "mpegts": _ts_inside,
    "mpeg": _ps_inside,
    "ogg": _ogg_inside,
}
BELIEVED = ("matroska,webm", "flv", "avi")  # the formats of which most files state a length
