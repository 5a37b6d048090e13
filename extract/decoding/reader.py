"""The reading process as its parent sees it: clips go in, their messages come out."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from extract.decoding.isolated_process import MEMORY_BYTES, IsolatedProcess
from extract.decoding.messages import AS_IT_IS, End, Failed, Files, Message, Readable, Request
from extract.preprocessing import Prepare

PATIENCE = 300.0  # seconds without a message, after which it hangs; a slow disk is not a hang
TRIES = 2
MESSAGES_AHEAD = 64  # read before the networks ask for them
CLIPS_AHEAD = 4

T = TypeVar("T", bound=Readable)


class Ended(NamedTuple):
    """The process has ended, or hangs.

    Attributes:
        reason: in words.
        crashed: false where it ended by itself, to begin anew after an error.
    """

    reason: str
    crashed: bool = True


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
        self.process: IsolatedProcess | None = None
        self._messages: queue.Queue[Message | None] = queue.Queue()

    def read(
        self, clips: Iterable[T], snippet_seconds: float, prepare: dict[str, Prepare]
    ) -> Iterator[tuple[T, Message]]:
        """Yield each clip's messages, clip after clip in their order; reading runs ahead.

        A clip at which the process crashes or hangs is tried again, from its `Begin` on, and then
        fails.

        Args:
            clips: have the attributes ``video`` and ``audio``; see `Files`.
            snippet_seconds: one step of the time grid.
            prepare: for each stream of frames.
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
                if not isinstance(message, Message):
                    tries += message.crashed
                    self.close()
                    if tries == TRIES:
                        yield asked.popleft(), Failed(f"{message.reason}, {tries} times")
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
                self.close()  # and what it still sends is lost

    def _ask(self, clip: Readable, snippet_seconds: float, prepare: dict[str, Prepare]) -> None:
        if self.process is None:
            self.process = IsolatedProcess("extract.decoding.child", self.memory_bytes)
            self._messages = queue.Queue(MESSAGES_AHEAD)
            forward = threading.Thread(
                target=_forward, args=(self.process, self._messages), daemon=True
            )
            forward.start()
        with contextlib.suppress(OSError):  # it has ended: the next message says so
            impairment = getattr(clip, "impairment", AS_IT_IS)
            files = Files(Path(clip.video), Path(clip.audio) if clip.audio else None)
            seen = {} if impairment.reads == "sound" else prepare
            self.process.send(Request(files, snippet_seconds, seen, impairment))

    def _next(self) -> Message | Ended:
        assert self.process is not None
        try:
            message = self._messages.get(timeout=self.patience)
        except queue.Empty:
            return Ended(f"reading it came to nothing for {self.patience:g} s")
        if message is not None:
            return message
        crash = self.process.wait()
        return Ended(f"reading it {crash}", bool(crash))

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            process, self.process = self.process, None
            process.kill()
            process.wait()
            with contextlib.suppress(queue.Empty):  # lets `_forward` come to its end
                while True:
                    self._messages.get_nowait()
            process.close()


def _forward(process: IsolatedProcess, messages: queue.Queue[Message | None]) -> None:
    try:
        while True:
            messages.put(process.receive())
    except EOFError:
        messages.put(None)
