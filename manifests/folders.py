"""A manifest from folders: one class per sub-folder, as in VAAR."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from manifests.clip import Clip, ManifestError
from manifests.io import relative_path

VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".ogv"),
    *(".avi", ".flv", ".wmv", ".mpg", ".mpeg", ".ts"),
}


def videos_below(directory: Path) -> list[Path]:
    """Return the video files below a folder, sorted; hidden ones are skipped.

    Raises:
        ManifestError: it is not a folder.
    """
    if not directory.is_dir():
        raise ManifestError(f"{directory}: no such folder")
    return sorted(
        path
        for path in directory.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES
        and not path.is_dir()  # a dangling link stays: the check of the manifest reports it
        and not any(part.startswith(".") for part in path.relative_to(directory).parts)
    )


def from_folders(directory: Path, root: Path, groups: Path | None = None) -> list[Clip]:
    """Return a clip for each video in ``directory/CLASS/...``.

    The id is the path below `directory` without its suffix (with it, where two files would share
    an id).

    Args:
        directory: the folder of class folders.
        root: what the manifest's paths are relative to.
        groups: CSV with the columns ``clip`` (id, path or file name without suffix) and ``source``,
            the recording that the clip was cut from.

    Raises:
        ManifestError: there are no videos, some are in no class folder, or `groups` does not name
            every clip or names one twice with different sources.

    Example::

        clips = from_folders(Path("videos"), root=Path("."), groups=Path("sources.csv"))
    """
    files = videos_below(directory)
    if not files:
        raise ManifestError(
            f"{directory}: no videos in it; expected DIR/CLASS/clip.mp4 (suffixes: "
            f"{' '.join(sorted(VIDEO_SUFFIXES))})"
        )
    below = [path.relative_to(directory) for path in files]
    if loose := [path.name for path in below if len(path.parts) == 1]:
        raise ManifestError(
            f"{directory}: videos in no class folder: {len(loose)} ({', '.join(loose[:3])}); "
            "expected DIR/CLASS/clip.mp4"
        )
    bare = [path.with_suffix("").as_posix() for path in below]
    # a whole name may be another's bare one: x.mp4 and x.mp4.avi
    taken = Counter([*bare, *(path.as_posix() for path in below)])
    ids = [
        name if taken[name] == 1 else path.as_posix()
        for name, path in zip(bare, below, strict=True)
    ]
    sources = _sources(groups, ids, below) if groups else dict[str, str]()
    return [
        Clip(name, relative_path(file, root), (path.parts[0],), group=sources.get(name))
        for name, file, path in zip(ids, files, below, strict=True)
    ]


def _sources(file: Path, ids: list[str], below: list[Path]) -> dict[str, str]:
    """Return id -> source from a CSV that may name clips in any of three ways."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            table = csv.DictReader(lines)
            found = table.fieldnames or []
            if not {"clip", "source"} <= set(found):
                raise ManifestError(f"{file}: needs the columns clip and source, has {found}")
            named: dict[str, str] = {}
            for row in table:
                clip, source = (row["clip"] or "").strip(), (row["source"] or "").strip()
                if named.setdefault(clip, source) != source:
                    raise ManifestError(
                        f"{file}, line {table.line_num}: clip {clip} has source {named[clip]} "
                        f"already, now {source}; keep one"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{file}: {error}; give a CSV file in UTF-8") from error
    stems = Counter(path.stem for path in below)
    sources, missing = {}, []
    for clip_id, path in zip(ids, below, strict=True):
        names = [clip_id, path.as_posix(), path.with_suffix("").as_posix()]
        if stems[path.stem] == 1:
            names += [path.stem, path.name]
        source = next((named[name] for name in names if named.get(name)), None)
        if source is None:
            missing.append(clip_id)
        else:
            sources[clip_id] = source
    if missing:
        raise ManifestError(
            f"{file}: clips without a source: {len(missing)} ({', '.join(missing[:3])}); add them "
            "(each clip of a recording of its own gets a source of its own)"
        )
    return sources
