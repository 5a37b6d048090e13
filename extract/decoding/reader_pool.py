"""Several reading processes for one set of networks: a GPU is faster than one core can decode."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import Empty, Queue
from typing import TypeVar

from extract.decoding.isolated_process import MEMORY_BYTES
from extract.decoding.messages import Message, Readable
from extract.decoding.reader import MESSAGES_AHEAD, PATIENCE, Reader
from extract.preprocessing import Prepare

T = TypeVar("T", bound=Readable)


class Readers:
    """Reading processes that share clips among them.

    Args:
        count: of processes.
        memory_bytes: that each may take; see `Reader`.
        patience: see `Reader`.
    """

    def __init__(
        self, count: int = 1, memory_bytes: int = MEMORY_BYTES, patience: float = PATIENCE
    ) -> None:
        # of several, none takes clips that another one could begin
        ahead = {} if count == 1 else {"clips_ahead": 2}
        self.each = [Reader(memory_bytes, patience, **ahead) for _ in range(count)]

    def read(
        self, clips: Iterable[T], snippet_seconds: float, prepare: dict[str, Prepare]
    ) -> Iterator[tuple[T, Message]]:
        """Yield what `Reader.read` does; messages of several clips come in turns.

        Those of one clip keep their order.

        Args:
            clips: see `Reader.read`; iterated in threads, one at a time.
            snippet_seconds: one step of the time grid.
            prepare: for each stream of frames.
        """
        if len(self.each) == 1:
            yield from self.each[0].read(clips, snippet_seconds, prepare)
            return
        shared, one_at_a_time = iter(clips), threading.Lock()
        messages: Queue[tuple[T, Message] | BaseException | None] = Queue(MESSAGES_AHEAD)
        stopped = threading.Event()

        def taken() -> Iterator[T]:
            while not stopped.is_set():
                with one_at_a_time:
                    try:
                        clip = next(shared)
                    except StopIteration:
                        return
                yield clip

        def forward(reader: Reader) -> None:
            last: BaseException | None = None
            try:
                for message in reader.read(taken(), snippet_seconds, prepare):
                    messages.put(message)
                    if stopped.is_set():
                        break
            except BaseException as error:  # to be raised where the clips come from
                last = error
            messages.put(last)

        threads = [threading.Thread(target=forward, args=(r,), daemon=True) for r in self.each]
        for thread in threads:
            thread.start()
        working = len(threads)
        try:
            while working:
                message = messages.get()
                if isinstance(message, BaseException):
                    raise message
                if message is None:
                    working -= 1
                else:
                    yield message
        finally:
            stopped.set()
            while any(thread.is_alive() for thread in threads):
                try:  # a thread may wait for room
                    messages.get(timeout=0.05)
                except Empty:
                    continue

    def close(self) -> None:
        """End the processes; they are started again when needed."""
        for reader in self.each:
            reader.close()
