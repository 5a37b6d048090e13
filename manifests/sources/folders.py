"""A manifest from folders: one class per sub-folder, as in VAAR."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from manifests.clip import Clip, ManifestError, id_fault
from manifests.jsonl import relative_path
from manifests.sources.video_files import VIDEO_SUFFIXES, Listing, videos_below


def from_folders(directory: str | Path, root: str | Path) -> Listing:
    """Return a clip for each video in ``directory/CLASS/...``.

    The id is the path below `directory` without its suffix (with it, where two files would share
    an id). Videos whose names cannot be ids are refused, and the others taken.

    Args:
        directory: the folder of class folders.
        root: what the manifest's paths are relative to.

    Raises:
        ManifestError: the folder has no videos, some are in no class folder, or none can be a clip.

    Example::

        clips = from_folders(Path("videos"), root=Path(".")).clips
    """
    directory, root = Path(directory), Path(root)
    found = videos_below(directory)
    if not found.videos:
        others = ", ".join(f"{suffix or 'no suffix'}: {n}" for suffix, n in found.left_out.items())
        raise ManifestError(
            f"{directory}: no videos in it{f' (files there, by suffix: {others})' * bool(others)}; "
            f"expected DIR/CLASS/clip.mp4 (suffixes: {' '.join(sorted(VIDEO_SUFFIXES))})"
        )
    below = [path.relative_to(directory) for path in found.videos]
    if loose := [path.name for path in below if len(path.parts) == 1]:
        raise ManifestError(
            f"{directory}: videos in no class folder: {len(loose)} ({', '.join(loose[:3])}); "
            "expected DIR/CLASS/clip.mp4"
        )
    bare = [path.with_suffix("").as_posix() for path in below]
    # a whole name may be another's bare one: x.mp4 and x.mp4.avi
    taken = Counter([*bare, *(path.as_posix() for path in below)])
    clips: list[Clip] = []
    refused: dict[str, str] = {}
    for name, file, path in zip(bare, found.videos, below, strict=True):
        clip_id = name if taken[name] == 1 else path.as_posix()
        try:
            if fault := id_fault(clip_id):
                raise ManifestError(fault)
            clips.append(Clip(clip_id, relative_path(file, root), (path.parts[0],)))
        except ManifestError as error:
            refused[path.as_posix()] = str(error)
    if not clips:
        listed = "; ".join(f"{name!a}: {fault}" for name, fault in refused.items())
        raise ManifestError(
            f"{directory}: none of its videos has a name that can be a clip's id: {listed}. "
            "Rename the files"
        )
    return Listing(clips, [], refused, found)
