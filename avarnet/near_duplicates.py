"""Clips of a manifest's split that are nearly the same, by their cached features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import features
import manifests
from manifests.jsonl import parse

WAY_OUT = (
    "look at both; if they show the same, remove one, or give them one group and divide again "
    "(manifest split --no-keep)"
)


def near_duplicates(
    manifest: str | Path,
    store: features.Store | features.Joined,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[list[manifests.Finding], int, int]:
    """Return a warning for each two clips of different sides that are nearly the same.

    Args:
        manifest: the manifest.
        store: its clips' features.
        progress: called with (clips done, clips in all).

    Returns:
        The warnings, the most alike first; how many clips were compared, and how many were not:
        they have no side, or nothing readable in the store.
    """
    listed = {
        clip.id: (line, clip)
        for line, clip in parse(Path(manifest))
        if isinstance(clip, manifests.Clip)
    }
    sides = {i: clip.split for i, (_, clip) in listed.items() if clip.split and i in store}
    searcher = features.Searcher(store)
    sides = {clip_id: side for clip_id, side in sides.items() if clip_id not in searcher.damaged}
    found = []
    for one, other, similarity in searcher.near_duplicates(sides, progress=progress):
        line, clip = listed[other]
        problem = (
            f"is nearly the same as {other} on line {line}, which is in {clip.split}: similarity "
            f"{similarity:.3f}"
        )
        found.append(
            manifests.Finding("warning", listed[one][0], one, "near-duplicate", problem, WAY_OUT)
        )
    return found, len(sides), len(listed) - len(sides)
