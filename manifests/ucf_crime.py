"""A manifest from the official lists of UCF-Crime (Sultani et al., CVPR 2018)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from manifests.clip import Clip, Interval
from manifests.io import relative_path
from manifests.official import (
    Listing,
    bare_name,
    check_annotated,
    find_videos,
    frame_intervals,
    read_lines,
)

FPS = 30.0
NORMAL = "Normal"


def from_ucf_crime(lists: Path, root: Path, videos: Path | None = None) -> Listing:
    """Return the 1,610 training and 290 test clips with their classes and annotations.

    Args:
        lists: folder with ``Anomaly_Train.txt``, ``Anomaly_Test.txt`` and
            ``Temporal_Anomaly_Annotation.txt``.
        root: what the manifest's paths are relative to.
        videos: folder with the videos; without it the paths are those of the lists.

    Raises:
        ManifestError: annotations and test list do not fit.
    """
    annotations = lists / "Temporal_Anomaly_Annotation.txt"
    rows = [line.split() for line in read_lines(annotations)]
    marked = {
        bare_name(name): frame_intervals(annotations, name, frames, FPS)
        for name, _, *frames in rows
    }
    listed = {
        bare_name(PurePosixPath(line).name): (PurePosixPath(line), split)
        for split in ("train", "test")
        for line in read_lines(lists / f"Anomaly_{split.capitalize()}.txt")
    }
    check_annotated(annotations, set(marked), {n for n, (_, s) in listed.items() if s == "test"})
    files = find_videos(videos, list(listed)) if videos else None
    clips = []
    for name, (path, split) in listed.items():
        if files is not None and name not in files:
            continue
        folder = path.parent.name
        intervals: tuple[Interval, ...] | None = marked.get(name)
        clips.append(
            Clip(
                name,
                relative_path(files[name], root) if files else path.as_posix(),
                (NORMAL if "Normal" in folder else folder,),
                intervals,
                split,
                fps=FPS,
            )
        )
    return Listing(clips, [name for name in listed if files is not None and name not in files])
