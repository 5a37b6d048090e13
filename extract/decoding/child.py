"""The reading process: reads the clips that it is asked for, message by message.

Native decoders crash, hang and balloon on damaged files, so they are kept from all other processes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

from extract.decoding.container import ClipError, probe
from extract.decoding.isolated_process import Connection
from extract.decoding.messages import Begin, End, Failed, Message, Request, Sound
from extract.decoding.snippet_frames import snippet_frames
from extract.decoding.sound_file import SoundFault, sound_beside, sound_blocks
from extract.decoding.sound_placement import SAMPLE_RATE
from extract.impairments import Blocks


def main(parent: Connection) -> None:
    """Answer requests until there are no more."""
    while True:
        try:
            request = parent.receive()
        except EOFError:
            return
        try:
            for message in read_clip(request):
                parent.send(message)
        except Exception as error:  # whatever decoders make of a file from anywhere
            parent.send(Failed(_reason(error, parent.memory_bytes)))
            if not isinstance(error, ClipError):
                return  # the next clips must not suffer from what decoders have left behind


def _reason(error: Exception, memory_bytes: int) -> str:
    if isinstance(error, ClipError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"reading it needs more than {memory_bytes / 2**30:g} GB of memory"
    return f"reading it failed ({type(error).__name__}: {error})"


def read_clip(request: Request) -> Iterator[Message]:
    """Read one clip.

    Raises:
        ClipError: nothing of the picture can be read.
    """
    (path, audio), step = request.files, request.snippet_seconds
    impairment = request.impairment
    media = probe(path)
    snippets = max(1, math.ceil(media.duration / step - 1e-3))
    yield Begin(snippets, media.duration)
    any_frame = False
    for frame in snippet_frames(request, media, snippets):
        any_frame = True
        yield frame
    if request.prepare and not any_frame:
        raise ClipError("none of its frames can be decoded")
    beside = audio or sound_beside(path)
    fault = SoundFault()
    if (beside is not None or media.has_sound) and impairment.reads != "frames":
        end = round(snippets * step * SAMPLE_RATE)
        blocks = impairment.sound(lambda: _within(sound_blocks(path, beside, media, fault), end))
        for first, samples in _within(blocks, end):
            yield Sound(first, samples)
    with open(path, "rb") as file:
        source = hashlib.file_digest(file, "sha256").hexdigest()
    flags = media.flags | ({"SOUND_GAP"} if fault.gap else set())
    yield End(fault.damaged, source, flags)


def _within(blocks: Blocks, end: int) -> Blocks:
    """Yield what lies in the clip: its clock starts at the first frame, and stops at `end`."""
    for first, samples in blocks:
        begin = max(0, -first)
        within = samples[begin : max(begin, end - first)]
        if len(within):
            yield first + begin, within
