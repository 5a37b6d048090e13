"""The list of many predictions' pages: the most anomalous first, with filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from train.report.html import write_page

INDEX = "index.html"


class Row(NamedTuple):
    """One prediction in the list.

    Attributes:
        video: the file.
        page: its page, beside the list.
        label: the likeliest class.
        confidence: its probability.
        anomaly: the highest score of a snippet; None if the run knows no normal class.
        intervals: how many are anomalous.
        anomalous: seconds of them together.
        duration: of the video, in seconds.
    """

    video: Path
    page: Path
    label: str
    confidence: float
    anomaly: float | None
    intervals: int
    anomalous: float
    duration: float


def write_index(folder: str | Path, rows: Sequence[Row], failed: Mapping[str, str]) -> Path:
    """Write ``index.html`` of a folder of predictions' pages, and return its path.

    Args:
        folder: of the pages.
        rows: what was predicted; listed by the highest score, those with anomalous intervals first;
            where no class is known as normal, from the surest.
        failed: video -> why it could not be read.
    """
    file = Path(folder) / INDEX
    order = sorted(
        rows,
        key=lambda row: (not row.intervals, -(row.anomaly or 0.0), -row.confidence, str(row.video)),
    )
    write_page(
        file,
        "index.html",
        plotly="",
        title="Predictions",
        rows=[(row, quote(row.page.relative_to(folder).as_posix())) for row in order],
        labels=sorted({row.label for row in rows}),
        scored=any(row.anomaly is not None for row in rows),
        failed=failed,
    )
    return file
