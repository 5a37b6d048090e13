"""A manifest from folders: one class per sub-folder, as in VAAR."""

from __future__ import annotations

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
        what = "is a file; give the folder of videos" if directory.exists() else "no such folder"
        raise ManifestError(f"{directory}: {what}")
    return sorted(
        path
        for path in directory.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES
        and not path.is_dir()  # a dangling link stays: the check of the manifest reports it
        and not any(part.startswith(".") for part in path.relative_to(directory).parts)
    )


def from_folders(directory: Path, root: Path) -> list[Clip]:
    """Return a clip for each video in ``directory/CLASS/...``.

    The id is the path below `directory` without its suffix (with it, where two files would share
    an id).

    Args:
        directory: the folder of class folders.
        root: what the manifest's paths are relative to.

    Raises:
        ManifestError: there are no videos, or some are in no class folder.

    Example::

        clips = from_folders(Path("videos"), root=Path("."))
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
    return [
        Clip(name, relative_path(file, root), (path.parts[0],))
        for name, file, path in zip(ids, files, below, strict=True)
    ]
