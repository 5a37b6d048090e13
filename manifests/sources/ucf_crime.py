"""A manifest from the official lists of UCF-Crime (Sultani et al., CVPR 2018)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import NamedTuple

from manifests.clip import Clip
from manifests.jsonl import relative_path
from manifests.sources.official_lists import (
    bare_name,
    check_annotated,
    find_videos,
    frame_intervals,
    read_lines,
)
from manifests.sources.video_files import Listing

FPS = 30.0
NORMAL = "Normal"


class _Listed(NamedTuple):
    """A clip of the official lists."""

    path: PurePosixPath
    split: str


def from_ucf_crime(
    lists: str | Path, root: str | Path, videos: str | Path | None = None
) -> Listing:
    """Return the 1,610 training and 290 test clips with their classes and annotations.

    Args:
        lists: folder with ``Anomaly_Train.txt``, ``Anomaly_Test.txt`` and
            ``Temporal_Anomaly_Annotation.txt``.
        root: what the manifest's paths are relative to.
        videos: folder with the videos; without it the paths are those of the lists.

    Raises:
        ManifestError: a list cannot be read, annotations and test list do not fit, or `videos` has
            none of the clips.

    Example::

        clips, missing, *_ = from_ucf_crime(Path("lists"), root=Path("."), videos=Path("videos"))
    """
    lists, root = Path(lists), Path(root)
    videos = None if videos is None else Path(videos)
    annotations = lists / "Temporal_Anomaly_Annotation.txt"
    rows = [line.split() for line in read_lines(annotations)]
    marked = {
        bare_name(row[0]): frame_intervals(annotations, row[0], row[2:], FPS)  # row[1]: class
        for row in rows
    }
    listed = {
        bare_name(PurePosixPath(line).name): _Listed(PurePosixPath(line), split)
        for split in ("train", "test")
        for line in read_lines(lists / f"Anomaly_{split.capitalize()}.txt")
    }
    check_annotated(
        annotations, set(marked), {n for n, clip in listed.items() if clip.split == "test"}
    )
    paths = {name: clip.path.as_posix() for name, clip in listed.items()}
    files, found = find_videos(videos, paths) if videos else (None, None)
    clips = []
    for name, (path, split) in listed.items():
        if files is not None and name not in files:
            continue
        folder = path.parent.name
        clips.append(
            Clip(
                id=name,
                path=relative_path(files[name], root) if files else paths[name],
                labels=(NORMAL if "Normal" in folder else folder,),
                intervals=marked.get(name),
                split=split,
                fps=FPS,
            )
        )
    missing = [name for name in listed if files is not None and name not in files]
    return Listing(clips, missing, {}, found)
