"""What the official lists of XD-Violence and UCF-Crime have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from manifests.clip import Interval, ManifestError
from manifests.jsonl import reason
from manifests.names import listed
from manifests.sources.video_files import Found, videos_below


def read_lines(file: Path) -> list[str]:
    """Return the non-empty lines of a list.

    Raises:
        ManifestError: it cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(
            f"{file}: {reason(error)}; give the folder of the official lists"
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def bare_name(name: str) -> str:
    """Return a listed name without a file suffix; some lists carry it, some do not."""
    return name.removesuffix(".mp4")


def frame_intervals(file: Path, name: str, frames: list[str], fps: float) -> tuple[Interval, ...]:
    """Return pairs of frame numbers (first included, last excluded; -1 for none) as seconds.

    Args:
        file: the list, for messages.
        name: of the clip, for messages.
        frames: the numbers as the list has them.
        fps: frame rate in which they were counted.

    Raises:
        ManifestError: they are not pairs of whole numbers.
    """
    try:
        numbers = [int(frame) for frame in frames]
        pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    except ValueError as error:
        raise ManifestError(
            f"{file}: {name}: expected pairs of frame numbers, found {' '.join(frames)!r}; "
            "take the official file"
        ) from error
    if not pairs:
        raise ManifestError(f"{file}: {name}: no frame numbers; take the official file")
    return tuple(Interval(start / fps, end / fps) for start, end in pairs if start >= 0)


def check_annotated(file: Path, annotated: set[str], expected: set[str]) -> None:
    """Refuse annotations that do not fit the test list one to one.

    Args:
        file: the annotations, for messages.
        annotated: the clips in it.
        expected: the clips of the test list that are anomalous.

    Raises:
        ManifestError: naming some of the clips that have no counterpart.
    """
    for names, problem in (
        (annotated - expected, "annotated, but no clip of the test list that could be"),
        (expected - annotated, "in the test list, but not annotated"),
    ):
        if names:
            some = listed(sorted(names)[:3])
            raise ManifestError(
                f"{file}: clips {problem}: {len(names)} (first: {some}); take all lists from "
                "one release"
            )


class ListedVideos(NamedTuple):
    """The videos of a list that are in a folder."""

    files: dict[str, Path]  # name -> file
    found: Found  # all that is in the folder


def find_videos(videos: Path, listed: Mapping[str, str]) -> ListedVideos:
    """Find the listed videos in a folder.

    Args:
        videos: the folder.
        listed: name -> official path; a file elsewhere below the folder serves if its name fits.

    Raises:
        ManifestError: the folder has none of them.
    """
    found = videos_below(videos)
    below = {path.stem: path for path in reversed(found.videos)}
    files = {}
    for name, path in listed.items():
        if (videos / path).is_file():
            files[name] = videos / path
        elif name in below:
            files[name] = below[name]
    if not files:
        raise ManifestError(
            f"{videos}: none of the {len(listed)} listed videos is in it; give the folder that "
            "holds them"
        )
    return ListedVideos(files, found)
