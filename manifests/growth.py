"""A manifest that grows: new clips join it, and what it holds already stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from manifests.clip import Clip, ManifestError
from manifests.jsonl import parse


class Grown(NamedTuple):
    """A manifest's clips with new ones.

    Attributes:
        clips: the old ones as they were, then the new ones.
        added: the new ones.
        refused: path of a clip that was not added -> why.
    """

    clips: list[Clip]
    added: list[Clip]
    refused: dict[str, str]


def add_clips(old: Sequence[Clip], new: Sequence[Clip], root: str | Path) -> Grown:
    """Add to a manifest's clips those whose files it does not list yet.

    Args:
        old: clips of the manifest.
        new: found in a folder or a table, with or without the old ones.
        root: what all their paths are relative to.
    """
    root = Path(root).resolve()
    files = {clip.resolve(root).resolve() for clip in old}
    by_id = {clip.id: clip for clip in old}
    added, refused = [], {}
    for clip in new:
        if clip.resolve(root).resolve() in files:
            continue
        if clip.id in by_id:
            refused[clip.path] = f"its id {clip.id} is that of {by_id[clip.id].path}"
            continue
        added.append(clip)
    return Grown([*old, *added], added, refused)


def refuse_to_lose_splits(path: str | Path, clips: Sequence[Clip]) -> None:
    """Refuse to write clips over a manifest that has them, or others, on sides of a split.

    Args:
        path: of the manifest, which need not exist.
        clips: that it would have.

    Raises:
        ManifestError: a clip there would lose its side, or be on another.
    """
    path = Path(path)
    if not path.is_file():
        return
    sides = {clip.id: clip.split for clip in clips}
    present = [line.clip for line in parse(path) if isinstance(line.clip, Clip)]
    lost = [clip for clip in present if clip.split and sides.get(clip.id) != clip.split]
    if lost:
        raise ManifestError(
            f"{path} is divided already, and this would erase the split of {len(lost)} of its "
            f"{len(present)} clips ({lost[0].id}: {lost[0].split}); 'avarnet manifest add' keeps "
            "it and adds what is new, --force overwrites it"
        )
