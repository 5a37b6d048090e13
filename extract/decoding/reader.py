"""Reading clips in a process of its own: native decoders crash, hang and balloon on damaged files.

`main` is that process. It gets requests on its standard input and answers each with messages on
what was its standard output: one `Begin`, a `Frame` for each snippet that has one, `Sound` if there
is any, an `End`; or a `Failed` at any point. All are pickles, which only the two ends of the pipe
write.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
import pickle
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from extract.decoding.media import (
    CLOCK_SLACK,
    SAMPLE_RATE,
    ClipError,
    Media,
    SoundFault,
    frames,
    probe,
    sound_beside,
    sound_blocks,
)

MEMORY_BYTES = 2 * 2**30  # of the reading process
PATIENCE = 300.0  # seconds without a message, after which it hangs; a slow disk is not a hang
TRIES = 2
# not -m: what a main module defines cannot be unpickled elsewhere
# what libraries print, also when they are imported, must not come between the messages
PROGRAM = """
import importlib, os, sys
answers = os.dup(1)
os.dup2(2, 1)
importlib.import_module(sys.argv[1]).main(answers, *map(int, sys.argv[2:]))
"""
PIPE_BYTES = 2**20  # a frame or five: with the usual 64 KiB, each waits for Python several times
MESSAGES_AHEAD = 64  # read before the networks ask for them
CLIPS_AHEAD = 4


class Prepare(Protocol):
    """What becomes of a snippet's frames before they leave the reading process; picklable."""

    @property
    def instants(self) -> tuple[float, ...]:
        """When the frames are shown that it takes, in seconds after the snippet's middle."""
        ...

    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Turn a (H, W, 3) RGB frame for each instant into what the network takes."""
        ...


@dataclass(frozen=True)
class Preparation:
    """How a frame is brought to the size that a network reads: as timm does it for evaluation.

    Attributes:
        scale: pixels of the shorter edge after resizing.
        crop: (height, width) cut out of the middle.
        interpolation: a PIL resampling filter.
        instants: see `Prepare`.
    """

    scale: int
    crop: tuple[int, int]
    interpolation: int
    instants: tuple[float, ...] = (0.0,)

    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Turn one (H, W, 3) RGB frame into (*crop, 3)."""
        (frame,) = frames
        height, width = frame.shape[:2]
        short = min(height, width)
        size = (int(self.scale * width / short), int(self.scale * height / short))
        picture = Image.fromarray(frame).resize(size, Image.Resampling(self.interpolation))
        top = round((size[1] - self.crop[0]) / 2)
        left = round((size[0] - self.crop[1]) / 2)
        # where the crop is larger than the picture, PIL fills up with black, as torchvision does
        box = (left, top, left + self.crop[1], top + self.crop[0])
        return np.asarray(picture.crop(box))


class Readable(Protocol):
    """What can be read: a clip's files."""

    @property
    def video(self) -> Path: ...
    @property
    def audio(self) -> Path | None: ...


class Request(NamedTuple):
    """One clip to read."""

    video: Path
    audio: Path | None
    snippet_seconds: float
    prepare: dict[str, Prepare]  # for each stream of frames; none of them: only sound is read


class Begin(NamedTuple):
    """The first message of a clip, also of a second try: what came before is void."""

    snippets: int
    duration: float  # seconds


class Frame(NamedTuple):
    """What a stream's `Prepare` has made of the frames of a snippet."""

    stream: str
    snippet: int
    pixels: NDArray[np.uint8]


class Sound(NamedTuple):
    """The next samples of the sound, mono at 16 kHz.

    Where `first` is not behind the last ones, there is a hole.
    """

    first: int  # samples after the clip's first frame, at which these begin
    samples: NDArray[np.float32]


class End(NamedTuple):
    """All was sent."""

    sound_damaged: bool
    source: str  # SHA-256 of the video file
    flags: frozenset[str] = frozenset()  # names of `features.Flag`, which is not imported here


class Failed(NamedTuple):
    """Nothing of the clip's picture can be read."""

    reason: str


Message = Begin | Frame | Sound | End | Failed
T = TypeVar("T", bound=Readable)


def read(request: Request) -> Iterator[Message]:
    """Read one clip.

    Raises:
        ClipError: nothing of the picture can be read.
    """
    path, step = request.video, request.snippet_seconds
    media = probe(path)
    snippets = max(1, math.ceil(media.duration / step - 1e-3))
    yield Begin(snippets, media.duration)
    seen = False
    for frame in _frames(request, media, snippets):
        seen = True
        yield frame
    if request.prepare and not seen:
        raise ClipError("none of its frames can be decoded")
    beside = request.audio or sound_beside(path)
    fault = SoundFault()
    if beside is not None or media.has_sound:
        end = round(snippets * step * SAMPLE_RATE)
        for first, samples in sound_blocks(path, beside, media, fault):
            begin = max(0, -first)  # the clock starts at the first frame
            within = samples[begin : max(begin, end - first)]
            if len(within):
                yield Sound(first + begin, within)
    with open(path, "rb") as file:
        source = hashlib.file_digest(file, "sha256").hexdigest()
    flags = media.flags | ({"SOUND_GAP"} if fault.gap else set())
    yield End(fault.damaged, source, flags)


def _frames(request: Request, media: Media, snippets: int) -> Iterator[Frame]:
    instants = sorted({at for prepare in request.prepare.values() for at in prepare.instants})
    middles = (np.arange(snippets) + 0.5) * request.snippet_seconds
    times = np.add.outer(middles, instants).ravel()
    shown = np.searchsorted(media.frame_times, times + CLOCK_SLACK) - 1
    pictures = frames(request.video, media, shown)
    for snippet in range(snippets):
        seen = {at: next(pictures) for at in instants}
        for stream, prepare in request.prepare.items():
            taken = [seen[at] for at in prepare.instants]
            if all(picture.size for picture in taken):
                yield Frame(stream, snippet, prepare(taken))


class Reader:
    """The reading process as seen from outside; started when needed, and again after a crash.

    Args:
        memory_bytes: that reading may take (on Linux); a file that needs more fails.
        patience: seconds without a message, after which it counts as hung and is killed.
        clips_ahead: how many clips it has been asked for at once.
    """

    def __init__(
        self,
        memory_bytes: int = MEMORY_BYTES,
        patience: float = PATIENCE,
        clips_ahead: int = CLIPS_AHEAD,
    ) -> None:
        self.memory_bytes = memory_bytes
        self.patience = patience
        self.clips_ahead = clips_ahead
        self.process: subprocess.Popen[bytes] | None = None
        self._messages: queue.Queue[Message | None] = queue.Queue()

    def read(
        self, clips: Iterable[T], snippet_seconds: float, prepare: dict[str, Prepare]
    ) -> Iterator[tuple[T, Message]]:
        """Yield each clip's messages, clip after clip in their order; reading runs ahead.

        A clip at which the process crashes or hangs is tried again, from its `Begin` on, and then
        fails.
        """
        rest, asked, tries = iter(clips), deque[T](), 0
        try:
            while True:
                while len(asked) < self.clips_ahead and (clip := next(rest, None)) is not None:
                    asked.append(clip)
                    self._ask(clip, snippet_seconds, prepare)
                if not asked:
                    return
                message = self._next()
                if isinstance(message, str):  # how the process ended
                    tries += message != ""
                    self.close()
                    if tries == TRIES:
                        yield asked.popleft(), Failed(f"{message}, {tries} times")
                        tries = 0
                    for clip in asked:
                        self._ask(clip, snippet_seconds, prepare)
                    continue
                yield asked[0], message
                if isinstance(message, End | Failed):
                    asked.popleft()
                    tries = 0
        finally:
            if asked:
                self.close()  # what it still sends, nobody wants

    def _ask(self, clip: Readable, snippet_seconds: float, prepare: dict[str, Prepare]) -> None:
        if self.process is None:
            self._start()
        assert self.process is not None
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it died: the next message says so
            request = Request(clip.video, clip.audio, snippet_seconds, prepare)
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()

    def _next(self) -> Message | str:
        """Return the next message, or how the process ended: "" if it had to begin anew."""
        assert self.process is not None
        try:
            message = self._messages.get(timeout=self.patience)
        except queue.Empty:
            return f"reading it came to nothing for {self.patience:g} s"
        if message is not None:
            return message
        how = ending(self.process)
        return how and f"reading it {how}"

    def _start(self) -> None:
        self.process = start("extract.decoding.reader", self.memory_bytes)
        self._messages = queue.Queue(MESSAGES_AHEAD)
        threading.Thread(target=_forward, args=(self.process, self._messages), daemon=True).start()

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            with contextlib.suppress(queue.Empty):  # lets `_forward` come to its end
                while True:
                    self._messages.get_nowait()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(OSError):
                    assert pipe is not None
                    pipe.close()
            self.process = None


def start(module: str, memory_bytes: int, files: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start a process for native decoders, which gets requests and answers with messages.

    Args:
        module: whose `main` it runs, which begins with `shelter`.
        memory_bytes: that it may take.
        files: further descriptors that it inherits.
    """
    # not by multiprocessing: a Dask worker's process may not have such children
    process = subprocess.Popen(
        # -P: with -c, modules of the current folder (a user's extract.py) would hide ours
        [sys.executable, "-P", "-c", PROGRAM, module, str(memory_bytes), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        pass_fds=files,
        bufsize=PIPE_BYTES,
    )
    if sys.platform == "linux" and process.stdout:
        with contextlib.suppress(OSError):  # a user's pipes may be limited
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return process


def ending(process: subprocess.Popen[bytes]) -> str:
    """Wait for such a process, and return how it ended: "" if by itself."""
    code = process.wait()
    return f"crashed ({signal.Signals(-code).name if code < 0 else code})" if code else ""


def _forward(process: subprocess.Popen[bytes], messages: queue.Queue[Message | None]) -> None:
    assert process.stdout is not None
    try:
        while True:
            messages.put(pickle.load(process.stdout))
    except Exception:  # it ended, perhaps in the middle of a message
        messages.put(None)


def shelter(pipe: int, memory_bytes: int, parent: int) -> tuple[BinaryIO, BinaryIO]:
    """Make this the process that `start` has promised; return its requests and its answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(pipe, "wb")
    with contextlib.suppress(OSError):  # no such limit but on Linux
        # libraries map hundreds of MB that they never touch: those are not counted
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        limit = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return requests, answers


def main(pipe: int, memory_bytes: int, parent: int) -> None:
    """Answer requests until there are no more, on the file descriptor `pipe`."""
    requests, answers = shelter(pipe, memory_bytes, parent)
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        try:
            for message in read(request):
                pickle.dump(message, answers, protocol=5)
                answers.flush()
        except Exception as error:  # whatever decoders make of a file from anywhere
            reason = _reason(error, memory_bytes)
            pickle.dump(Failed(reason), answers)
            answers.flush()
            if not isinstance(error, ClipError):
                return  # what decoders have left behind, the next clips shall not suffer from


def _reason(error: Exception, memory_bytes: int) -> str:
    if isinstance(error, ClipError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"reading it needs more than {memory_bytes / 2**30:g} GB of memory"
    return f"reading it failed ({type(error).__name__}: {error})"


def _die_with(parent: int) -> None:
    """End this process when its parent is gone, whatever native code is doing."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
