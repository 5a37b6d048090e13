"""Which recording each clip was cut from, according to a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from manifests.clip import Clip, ManifestError
from manifests.names import listed
from manifests.sources.table import read_table


class Grouped(NamedTuple):
    """Clips with their groups.

    Attributes:
        clips: all that were given; those that are not named have no group, which counts as a group
            of their own.
        ungrouped: ids of these.
        unknown: names in the table that are not clips.
    """

    clips: list[Clip]
    ungrouped: list[str]
    unknown: list[str]


def with_groups(clips: Sequence[Clip], file: str | Path) -> Grouped:
    """Give clips the groups that a table names.

    Names that are not clips are no error: the table of a whole data set serves for a part of it.

    Args:
        clips: from folders.
        file: CSV with the columns ``clip`` (id, path below the folder or file name, with or without
            its suffix) and ``source``, the recording that the clip was cut from.

    Raises:
        ManifestError: the table cannot be read, has a clip twice with different sources, has a file
            name that several clips have, or does not name any clip.
    """
    sources = _read(file)
    named: dict[str, set[str]] = defaultdict(set)  # each name that a table may use -> clips' ids
    for clip in clips:
        suffix = PurePosixPath(clip.path).suffix
        whole = PurePosixPath(clip.id.removesuffix(suffix) + suffix)
        for name in (clip.id, str(whole), str(whole.with_suffix("")), whole.stem, whole.name):
            named[name].add(clip.id)
    ids = {clip.id for clip in clips}
    groups: dict[str, str] = {}
    for name, source in sources.items():
        meant = {name} if name in ids else named.get(name, set())
        if len(meant) > 1:
            some = listed(sorted(meant)[:3])
            raise ManifestError(
                f"{file}: {name} may be any of {len(meant)} clips ({some}); write it so"
            )
        for clip_id in meant:
            if groups.setdefault(clip_id, source) != source:
                raise ManifestError(
                    f"{file}: clip {clip_id} has source {groups[clip_id]} and, as {name}, "
                    f"{source}; keep one"
                )
    if not groups:
        first = next(iter(sources), "")
        raise ManifestError(
            f"{file}: none of its {len(sources)} clips is here (first: {first!r}); expected names "
            f"such as {clips[0].id}"
        )
    return Grouped(
        [replace(clip, group=groups.get(clip.id)) for clip in clips],
        [clip.id for clip in clips if clip.id not in groups],
        [name for name in sources if name not in ids and name not in named],
    )


def _read(file: str | Path) -> dict[str, str]:
    """Return clip -> source, as the table names them; rows without a source are skipped."""
    named: dict[str, str] = {}
    for line, cells, _ in read_table(Path(file), ("clip", "source")).rows:
        clip, source = cells["clip"], cells["source"]
        if source and named.setdefault(clip, source) != source:
            raise ManifestError(
                f"{file}, line {line}: clip {clip} has source {named[clip]} already, now "
                f"{source}; keep one"
            )
    return named
