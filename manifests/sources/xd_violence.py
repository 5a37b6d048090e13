"""A manifest from the official lists of XD-Violence (Wu et al., ECCV 2020)."""

from __future__ import annotations

from pathlib import Path

from manifests.clip import Clip, ManifestError
from manifests.jsonl import relative_path
from manifests.sources.official_lists import (
    bare_name,
    check_annotated,
    find_videos,
    frame_intervals,
    read_lines,
)
from manifests.sources.video_files import Listing

FPS = 24.0
NORMAL = "A"
CODES = {
    "A": "Normal",
    "B1": "Fighting",
    "B2": "Shooting",
    "B4": "Riot",
    "B5": "Abuse",
    "B6": "Car accident",
    "G": "Explosion",
}


def from_xd_violence(
    lists: str | Path, root: str | Path, videos: str | Path | None = None
) -> Listing:
    """Return the 3,954 training and 800 test clips with their classes and annotations.

    Labels are the official codes (see `CODES`), up to three per clip. The group is the film or the
    online video that a clip was cut from; the official split divides some of them.

    Args:
        lists: folder with ``train.txt``, ``test.txt`` and ``annotations.txt``.
        root: what the manifest's paths are relative to.
        videos: folder with the videos; without it the paths are the official names.

    Raises:
        ManifestError: a list cannot be read, a name has no known class, annotations and test list
            do not fit, or `videos` has none of the clips.

    Example::

        clips, missing, *_ = from_xd_violence(Path("lists"), root=Path("."), videos=Path("videos"))
    """
    lists, root = Path(lists), Path(root)
    videos = None if videos is None else Path(videos)
    annotations = lists / "annotations.txt"
    rows = [line.split() for line in read_lines(annotations)]
    marked = {
        bare_name(name): frame_intervals(annotations, name, frames, FPS) for name, *frames in rows
    }
    splits = {
        bare_name(name): split
        for split in ("train", "test")
        for name in read_lines(lists / f"{split}.txt")
    }
    labels = {name: _codes(name) for name in splits}
    violent = {n for n, split in splits.items() if split == "test" and labels[n] != (NORMAL,)}
    check_annotated(annotations, set(marked), violent)
    paths = {name: f"{name}.mp4" for name in splits}
    files, found = find_videos(videos, paths) if videos else (None, None)
    clips = []
    for name, split in splits.items():
        if files is not None and name not in files:
            continue
        clips.append(
            Clip(
                id=name,
                path=relative_path(files[name], root) if files else paths[name],
                labels=labels[name],
                intervals=marked.get(name, ()) if split == "test" else None,
                split=split,
                group=name.split("__#")[0],
                fps=FPS,
            )
        )
    missing = [name for name in splits if files is not None and name not in files]
    return Listing(clips, missing, {}, found)


def _codes(name: str) -> tuple[str, ...]:
    """Return the classes in a name: ``..._label_G-B2-0`` has G and B2."""
    codes = tuple(code for code in name.rpartition("_label_")[2].split("-") if code != "0")
    if not codes or any(code not in CODES for code in codes):
        raise ManifestError(
            f"{name}: expected ..._label_ and up to three of {', '.join(CODES)} in the name"
        )
    return codes
