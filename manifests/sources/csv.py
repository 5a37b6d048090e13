"""A manifest from a CSV file."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path, PurePosixPath

from manifests.clip import Clip, Interval, ManifestError
from manifests.jsonl import reason, relative_path

COLUMNS = ("path", "label", "id", "split", "group", "duration", "fps", "audio", "start", "end")


def from_csv(file: str | Path, root: str | Path) -> list[Clip]:
    """Return the clips of a CSV file.

    Columns: path (relative to the CSV's folder) and label (several: ``a|b``); optional id, split,
    group, duration, fps, audio, and start and end of an anomaly in seconds. A clip with several
    anomalies has several rows.

    Args:
        file: the CSV file, in UTF-8.
        root: what the manifest's paths are relative to.

    Raises:
        ManifestError: the file or its columns cannot be used, or lines are wrong (all are named).

    Example::

        path,label,start,end
        crash/1.mp4,Crash,2.5,4
        calm/1.mp4,Normal,,
    """
    file, root = Path(file), Path(root)
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            table = csv.DictReader(lines)
            found = list(table.fieldnames or [])
            rows = [(table.line_num, row) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{file}: {reason(error)}; give a CSV file in UTF-8") from error
    if not {"path", "label"} <= set(found) or not set(found) <= set(COLUMNS):
        raise ManifestError(
            f"{file}: needs the columns path and label and may have {', '.join(COLUMNS[2:])}; "
            f"it has {', '.join(map(str, found)) or 'none'}"
        )
    annotated = {"start", "end"} <= set(found)
    clips: dict[str, Clip] = {}
    faults: dict[int, str] = {}  # of lines
    for number, row in rows:
        try:
            clip = _clip(row, file.parent, root, annotated)
            earlier = clips.get(clip.id)
            if earlier is not None:
                clip = _merged(earlier, clip)
        except ManifestError as error:
            faults[number] = str(error)
            continue
        clips[clip.id] = clip
    if faults:
        (number, fault), *others = faults.items()
        more = ", ".join(str(other) for other, _ in others)
        raise ManifestError(
            f"{file}, line {number}: {fault}"
            + (f"; mistakes are also on lines {more}" * bool(more))
        )
    if not clips:
        raise ManifestError(f"{file}: no clips in it; expected a row for each")
    return list(clips.values())


def _clip(row: dict[str, str | None], folder: Path, root: Path, annotated: bool) -> Clip:
    cell = {name: (value or "").strip() for name, value in row.items() if name}
    if None in row:
        raise ManifestError("more cells than columns; quote cells that contain commas")
    if not cell["path"]:
        raise ManifestError("the path is empty")
    written = PurePosixPath(cell["path"])
    outside = written.is_absolute() or ".." in written.parts
    audio = cell.get("audio")
    start, end = _number(cell, "start"), _number(cell, "end")
    if (start is None) != (end is None):
        raise ManifestError("an anomaly needs both start and end")
    intervals = () if start is None or end is None else (Interval(start, end),)
    return Clip(
        id=cell.get("id") or (written.stem if outside else written.with_suffix("").as_posix()),
        path=relative_path(folder / cell["path"], root),
        labels=tuple(label.strip() for label in cell["label"].split("|")),
        intervals=intervals if annotated else None,
        split=cell.get("split") or None,
        group=cell.get("group") or None,
        duration=_number(cell, "duration"),
        fps=_number(cell, "fps"),
        audio=relative_path(folder / audio, root) if audio else None,
    )


def _number(cell: dict[str, str], name: str) -> float | None:
    try:
        return float(cell[name]) if cell.get(name) else None
    except ValueError as error:
        raise ManifestError(f"{name}: expected a number, found {cell[name]!r}") from error


def _merged(one: Clip, other: Clip) -> Clip:
    """Return two rows of one clip as one clip with the anomalies of both."""
    for name in ("path", "labels", "split", "group", "duration", "fps", "audio"):
        if getattr(one, name) != getattr(other, name):
            raise ManifestError(
                f"clip {one.id} is in the file already with different {name} "
                f"({_shown(getattr(one, name))}, now {_shown(getattr(other, name))}); give it an "
                "id of its own"
            )
    if other.intervals is None:
        raise ManifestError(
            f"clip {one.id} is in the file already; remove the row or give it an id"
        )
    return replace(one, intervals=tuple(sorted({*(one.intervals or ()), *other.intervals})))


def _shown(value: object) -> str:
    return "|".join(value) if isinstance(value, tuple) else str(value)
