"""The videos below a folder, and all that was left out of them."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from manifests.clip import Clip, ManifestError

VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".flv"),
    *(".mkv", ".mk3d", ".webm", ".ogv", ".ogm"),
    *(".avi", ".divx", ".xvid", ".wmv", ".asf", ".wtv", ".rm", ".rmvb"),
    *(".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".mod", ".tod"),
    *(".ts", ".mts", ".m2ts", ".m2t", ".mpegts", ".tp", ".trp"),
    *(".dv", ".dif", ".mxf", ".dav", ".nut", ".ivf", ".y4m", ".mjpeg", ".mjpg"),
    # without time stamps: the reader reports that, and the way out
    *(".h264", ".264", ".avc", ".h265", ".265", ".hevc"),
}


@dataclass
class Found:
    """What is below a folder.

    Attributes:
        videos: the files whose suffix is one of `VIDEO_SUFFIXES`, in either case; sorted.
        left_out: suffix, in lower case ("" if there is none) -> number of the files that have it.
        hidden: number of files and folders whose names begin with a dot.
        not_followed: folder that a link lists a second time, or inside itself -> which one it is.
        unreadable: folder, or link without a suffix to nothing -> why it cannot be read.
    """

    videos: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    not_followed: dict[Path, str] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)


class ClosedFolder(ManifestError):
    """A folder that cannot be read, and why.

    Args:
        folder: that was to be read.
        reason: what is wrong, and the way out.
    """

    def __init__(self, folder: str | Path, reason: str) -> None:
        super().__init__(f"{folder}: {reason}")
        self.reason = reason


class Listing(NamedTuple):
    """The clips of a folder or an official list, and what could not be one.

    Attributes:
        clips: to write into a manifest.
        missing: names in the list that are not in the folder of videos.
        refused: path of a video below the folder -> why it cannot be a clip.
        found: what is in the folder; None if no folder was given.
    """

    clips: list[Clip]
    missing: list[str]
    refused: dict[str, str]
    found: Found | None


def videos_below(directory: str | Path) -> Found:
    """Find the video files below a folder; hidden ones are left out.

    Links are followed. Every folder is listed once, by its own name if that is below `directory`
    too: a link back up, or a second way into a folder, adds nothing.

    Raises:
        ManifestError: it is not a folder; as a `ClosedFolder`, it cannot be read.

    Example::

        found = videos_below(Path("videos"))
        print(len(found.videos), found.left_out)
    """
    directory = Path(directory)
    if not directory.is_dir():
        what = "is a file; give the folder of videos" if directory.exists() else "no such folder"
        raise ManifestError(f"{directory}: {what}")
    found = Found()
    top = os.path.realpath(directory)
    listed = {top: directory}  # real path -> by which name it is listed
    folders, links = [(directory, top)], list[tuple[Path, str]]()
    while folders or links:
        if not folders:  # all that is not behind a link comes first
            links.sort(key=lambda link: (len(link[0].parts), link))  # a class before what is in one
            link, holder = links.pop(0)
            real = os.path.realpath(link)
            if _is_in(holder, real):
                found.not_followed[link] = "a link to a folder that it is in"
            elif real in listed:
                found.not_followed[link] = f"the same folder as {listed[real]}"
            else:
                listed[real] = link
                folders.append((link, real))
            continue
        folder, real = folders.pop()
        try:
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            if folder == directory:
                raise ClosedFolder(directory, f"{error.strerror}; ask its owner") from error
            found.unreadable[folder] = error.strerror or str(error)
            continue
        for entry in entries:
            path = folder / entry.name
            suffix = path.suffix.lower()
            if entry.name.startswith("."):
                found.hidden += 1
            elif _is_folder(entry):
                below = f"{real.rstrip('/')}/{entry.name}"
                if entry.is_symlink():
                    links.append((path, real))
                elif below in listed:
                    found.not_followed[path] = f"the same folder as {listed[below]}"
                else:
                    listed[below] = path
                    folders.append((path, below))
            elif suffix in VIDEO_SUFFIXES:
                found.videos.append(path)  # a dangling link, too: `check` reports it
            elif not suffix and entry.is_symlink() and not path.exists():
                found.unreadable[path] = "a link that leads nowhere"
            else:
                found.left_out[suffix] += 1
    found.videos.sort()
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_in(path: str, folder: str) -> bool:
    """Whether a real path is a folder's own, or below it."""
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")
