"""An extractor without networks, for the tests of the job around it. Picklable by its name."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from small_stores import clip

from extract import ClipError, Task
from extract.finite import Extracted
from features import Features, Flag, Recipe


class Instant:
    """Takes a clip's features from its number, and its fate from the words in its file."""

    def __init__(self, recipe: Recipe, device: str, memory_bytes: int) -> None:
        pass

    def stream(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Features | ClipError]]:
        for task in tasks:
            words = Path(task.video).read_text() if task.video.exists() else "bad: no such file"
            if words.startswith("slow"):
                time.sleep(float(words.split()[1]))
            if words.startswith("die"):
                once = task.video.with_suffix(".died")
                if not (words == "die once" and once.exists()):
                    once.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            if words.startswith("bad"):
                yield task, ClipError(words)
            elif lost := re.fullmatch(r".*?(broken|lost) (\d+) of (\d+)", words):
                counts = {"broken": {}, "not_finite": {}}
                counts["broken" if lost[1] == "broken" else "not_finite"] = {"audio": int(lost[2])}
                rows = {"video": 0, "audio": int(lost[3])}
                whole = vars(clip(4, int(task.clip_id), Flag.NOT_FINITE))
                yield task, Extracted(**whole, rows=rows, **counts)
            else:
                yield task, clip(4, int(task.clip_id))

    def close(self) -> None:
        pass


def when_finished(store: Path, count: int, act: Callable[[], object]) -> threading.Thread:
    """Do something, in a thread, as soon as so many clips are finished and none is sealed yet."""

    def wait_and_act() -> None:
        while len(list(store.glob(".spool-*/*.safetensors"))) < count:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread
