"""How long each batch of a job took: what an estimate of the time is made from."""

from __future__ import annotations

import json
from pathlib import Path

from features.store_files import append_line, read_file

TIMINGS = "timings.jsonl"


def add_timing(store: Path, footage: float, seconds: float) -> None:
    """Write one line at the end of ``timings.jsonl``.

    Args:
        store: folder of the store.
        footage: seconds of video in a batch.
        seconds: that one process took for it.
    """
    append_line(store / TIMINGS, json.dumps({"footage": footage, "seconds": seconds}))


def mean_speed(store: Path) -> float | None:
    """Return seconds of video for a second of a process, of all batches; None if there are none."""
    try:
        lines = read_file(store / TIMINGS).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    footage = seconds = 0.0
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last line of a job that was killed
        footage += row["footage"]
        seconds += row["seconds"]
    return footage / seconds if seconds else None
