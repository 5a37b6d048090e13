"""Manifests on disk: JSON Lines, one clip a line."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from manifests.clip import Clip, ManifestError

MAKE_ONE = "make a manifest with 'avarnet manifest folders DIR -o FILE'"
OPEN_FILES = ("/dev/fd/", "/dev/std", "/proc/")  # names of what processes have open


class Line(NamedTuple):
    """A line of a manifest."""

    number: int  # from 1
    clip: Clip | ManifestError  # or what is wrong with the line


def parse(path: str | Path) -> Iterator[Line]:
    """Yield the lines of a manifest; blank ones are skipped.

    Raises:
        ManifestError: the file cannot be read at all.
    """
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.strip():
                    continue
                try:
                    yield Line(number, Clip.from_json(json.loads(raw.decode("utf-8-sig"))))
                except ManifestError as error:
                    yield Line(number, error)
                except (ValueError, RecursionError):
                    yield Line(
                        number,
                        ManifestError(
                            "not a line of JSON; correct it, or make the manifest again with "
                            "'avarnet manifest'"
                        ),
                    )
    except OSError as error:
        way_out = "ask its owner" if isinstance(error, PermissionError) else MAKE_ONE
        raise ManifestError(f"{path}: {error.strerror}; {way_out}") from error


def read(path: str | Path) -> list[Clip]:
    """Return all clips of a manifest, in the order of its lines.

    Raises:
        ManifestError: the file cannot be read or is empty, a line is wrong (it is named), or two
            lines have one id (both are named).
    """
    path = Path(path)
    line_of: dict[str, int] = {}  # clip id -> its line
    clips = []
    for number, clip in parse(path):
        if isinstance(clip, ManifestError):
            raise ManifestError(f"{path}, line {number}: {clip}")
        if clip.id in line_of:
            raise ManifestError(
                f"{path}, line {number}: clip id {clip.id} is on line {line_of[clip.id]} already; "
                "ids must be unique"
            )
        line_of[clip.id] = number
        clips.append(clip)
    if not clips:
        raise ManifestError(f"{path}: no clips in it; {MAKE_ONE}")
    return clips


def write(path: str | Path, clips: Iterable[Clip]) -> None:
    """Write a manifest; a reader sees the old one or the new one, never a part.

    Of a link, the file that it leads to is written: paths are relative to the folder of that.

    Args:
        path: of the manifest; its folder is made if absent.
        clips: in the order of the lines.

    Raises:
        ManifestError: `path` is a folder, or standard output, a pipe or a device.
        OSError: the folder cannot be made or written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(f"{folder}/m.jsonl", [Clip("a", "a.mp4", ("Normal",))])
    ...     [clip.id for clip in read(f"{folder}/m.jsonl")]
    ['a']
    """
    path = Path(path)
    if path.is_dir():
        raise ManifestError(f"{path} is a folder; give a file for the manifest")
    if is_irregular(path):
        raise ManifestError(
            f"{path} is no regular file; give one for the manifest, such as m.jsonl"
        )
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            for clip in clips:
                file.write(json.dumps(clip.to_json(), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # users know no other name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def is_irregular(path: Path) -> bool:
    """Return whether a path is a pipe, a device or standard output, which no file may replace."""
    irregular = path.exists() and not path.is_file() and not path.is_dir()
    return irregular or str(path) == "-" or str(path.absolute()).startswith(OPEN_FILES)


def reason(error: Exception) -> str:
    """Return why a text file cannot be read, without its name, which a message has already.

    >>> reason(FileNotFoundError(2, "No such file or directory", "a.csv"))
    'No such file or directory'
    """
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8"
    return getattr(error, "strerror", None) or str(error)


def default_root(manifest: str | Path) -> Path:
    """Return what a manifest's paths are relative to by default: its own folder."""
    return Path(manifest).resolve().parent


def relative_path(file: str | Path, root: str | Path) -> str:
    """Return `file` as a manifest writes it: relative to `root`, with forward slashes.

    Symbolic links keep their own name: data sets are often links to blobs named by their hash.

    Args:
        file: absolute, or relative to the current folder.
        root: what the manifest's paths are relative to; likewise.

    >>> relative_path(Path("/data/videos/a.mp4"), Path("/data"))
    'videos/a.mp4'
    """
    file, root = Path(file).absolute(), Path(root).absolute()
    if file.is_relative_to(root) and ".." not in file.parts:
        return file.relative_to(root).as_posix()
    # '..' goes up from where a linked folder really is, so both folders must be the real ones
    return Path(os.path.relpath(file.parent.resolve() / file.name, root.resolve())).as_posix()
