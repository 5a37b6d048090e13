"""The clips of a job, in batches of like size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

BATCHES_PER_PROCESS = 8  # so that none waits long for the last one
MOST_FOOTAGE = 600.0  # seconds in a batch: what is at stake when a worker dies
MOST_FOOTAGE_GPU = 7200.0  # so that many processes read side by side for one GPU
LEAST_FOOTAGE = 5.0  # counted for a clip, however short: opening it takes time too
MOST_CLIPS = 500


class Task(NamedTuple):
    """One clip to extract."""

    clip_id: str
    video: Path
    audio: Path | None = None
    duration: float | None = None  # seconds, if known

    @property
    def files(self) -> list[Path]:
        return [self.video] if self.audio is None else [self.video, self.audio]


def batches(
    tasks: Sequence[Task],
    durations: Sequence[float],
    processes: int,
    most_footage: float = MOST_FOOTAGE,
) -> list[list[Task]]:
    """Divide clips into batches of about the same footage, the longest clips first.

    Args:
        tasks: the clips.
        durations: seconds of each.
        processes: that work on them.
        most_footage: seconds in a batch.

    >>> [len(batch) for batch in batches([Task("a", Path("a"))] * 5, [10, 10, 10, 30, 10], 1)]
    [1, 1, 1, 1, 1]
    """
    weights = [max(LEAST_FOOTAGE, seconds) for seconds in durations]
    target = min(most_footage, sum(weights) / (BATCHES_PER_PROCESS * processes))
    order = sorted(range(len(tasks)), key=lambda number: -weights[number])
    done: list[list[Task]] = []
    batch: list[Task] = []
    footage = 0.0
    for number in order:
        if batch and (footage + weights[number] > target or len(batch) == MOST_CLIPS):
            done.append(batch)
            batch, footage = [], 0.0
        batch.append(tasks[number])
        footage += weights[number]
    return [*done, batch] if batch else done
