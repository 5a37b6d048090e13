"""A manifest from a CSV file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

from manifests.clip import Clip, Interval, ManifestError
from manifests.jsonl import relative_path
from manifests.normal import normal_label
from manifests.sources.table import Row, read_table

NEEDED = ("path", "label")
KNOWN = ("id", "split", "group", "duration", "fps", "audio", "start", "end")
Unannotated = Literal["unknown", "normal"]


def from_csv(
    file: str | Path,
    root: str | Path,
    normal: str = "",
    unannotated: Unannotated = "unknown",
) -> list[Clip]:
    """Return the clips of a CSV file.

    Columns: path (relative to the CSV's folder) and label (several: ``a|b``); optional id, split,
    group, duration, fps, audio, and start and end of an anomaly in seconds. A clip with several
    anomalies has several rows. One whose start and end are empty is not annotated in time, unless
    its label is that of normal clips: then it is never anomalous.

    Args:
        file: the CSV file; see `read_table`.
        root: what the manifest's paths are relative to.
        normal: the label of clips without anomaly; one of `NORMAL_LABELS` if empty.
        unannotated: ``normal`` if all clips without start and end are never anomalous.

    Raises:
        ManifestError: the file or its columns cannot be used, lines are wrong (all are named), or
            several labels may be that of normal clips.

    Example::

        path,label,start,end
        crash/1.mp4,Crash,2.5,4
        calm/1.mp4,Normal,,
    """
    file, root = Path(file), Path(root)
    columns, separator, rows = read_table(file, NEEDED, KNOWN)
    annotated = {"start", "end"} <= set(columns)
    clips: dict[str, Clip] = {}
    faults: dict[int, str] = {}  # of lines
    for row in rows:
        try:
            clip = _clip(row, file.parent, root, decimal_comma=separator != ",")
            if clip.id in clips:
                clip = _merged(clips[clip.id], clip, annotated)
        except ManifestError as error:
            faults[row.line] = str(error)
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
    if not annotated:
        return list(clips.values())
    try:
        calm = normal_label((clip.label for clip in clips.values()), normal)
    except ManifestError as error:
        raise ManifestError(f"{file}: {error}") from error
    return [
        replace(clip, intervals=())
        if clip.intervals is None and (unannotated == "normal" or clip.labels == (calm,))
        else clip
        for clip in clips.values()
    ]


def _clip(row: Row, folder: Path, root: Path, decimal_comma: bool) -> Clip:
    cell = row.cells
    if row.beyond:
        raise ManifestError("more cells than columns; quote cells that contain commas")
    if not cell["path"]:
        raise ManifestError("the path is empty")
    written = PurePosixPath(cell["path"])
    outside = written.is_absolute() or ".." in written.parts
    audio = cell.get("audio")
    labels = tuple(label.strip() for label in cell["label"].split("|"))
    if len(set(labels)) < len(labels):
        raise ManifestError(f"a label is twice in {cell['label']}; write each once")
    numbers = {
        name: _number(name, cell.get(name, ""), decimal_comma)
        for name in ("start", "end", "duration", "fps")
    }
    start, end = numbers["start"], numbers["end"]
    if (start is None) != (end is None):
        raise ManifestError("an anomaly needs both start and end")
    return Clip(
        id=cell.get("id") or (written.stem if outside else written.with_suffix("").as_posix()),
        path=relative_path(folder / cell["path"], root),
        labels=labels,
        intervals=None if start is None or end is None else (Interval(start, end),),
        split=cell.get("split") or None,
        group=cell.get("group") or None,
        duration=numbers["duration"],
        fps=numbers["fps"],
        audio=relative_path(folder / audio, root) if audio else None,
    )


def _number(name: str, text: str, decimal_comma: bool) -> float | None:
    try:
        return float(text.replace(",", ".") if decimal_comma else text) if text else None
    except ValueError as error:
        raise ManifestError(f"{name}: expected a number, found {text!r}") from error


def _merged(one: Clip, other: Clip, annotated: bool) -> Clip:
    """Return two rows of one clip as one clip with the anomalies of both."""
    for name in ("path", "labels", "split", "group", "duration", "fps", "audio"):
        if getattr(one, name) != getattr(other, name):
            raise ManifestError(
                f"clip {one.id} is in the file already with different {name} "
                f"({_shown(getattr(one, name))}, now {_shown(getattr(other, name))}); give it an "
                "id of its own"
            )
    if not annotated:
        raise ManifestError(
            f"clip {one.id} is in the file already; remove the row or give it an id"
        )
    both = {*(one.intervals or ()), *(other.intervals or ())}
    return replace(one, intervals=tuple(sorted(both)) or None)


def _shown(value: object) -> str:
    return "|".join(value) if isinstance(value, tuple) else str(value)
