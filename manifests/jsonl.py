"""Manifests on disk: JSON Lines, one clip a line."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from manifests.clip import Clip, ManifestError

MAKE_ONE = "make a manifest with 'avarnet manifest folders DIR -o FILE'"


def parse(path: Path) -> Iterator[tuple[int, Clip | ManifestError]]:
    """Yield (line number, clip or what is wrong with the line); blank lines are skipped.

    Raises:
        ManifestError: the file cannot be read at all.
    """
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.strip():
                    continue
                try:
                    yield number, Clip.from_json(json.loads(raw.decode("utf-8-sig")))
                except ManifestError as error:
                    yield number, error
                except (ValueError, RecursionError):
                    yield (
                        number,
                        ManifestError(
                            "not a line of JSON; correct it, or make the manifest again with "
                            "'avarnet manifest'"
                        ),
                    )
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}; {MAKE_ONE}") from error


def read(path: str | Path) -> list[Clip]:
    """Return all clips of a manifest, in the order of its lines.

    Raises:
        ManifestError: the file cannot be read or is empty, a line is wrong (it is named), or two
            lines have one id (both are named).
    """
    path = Path(path)
    seen: dict[str, int] = {}
    clips = []
    for number, clip in parse(path):
        if isinstance(clip, ManifestError):
            raise ManifestError(f"{path}, line {number}: {clip}")
        if clip.id in seen:
            raise ManifestError(
                f"{path}, line {number}: clip id {clip.id} is on line {seen[clip.id]} already; "
                "ids must be unique"
            )
        seen[clip.id] = number
        clips.append(clip)
    if not clips:
        raise ManifestError(f"{path}: no clips in it; {MAKE_ONE}")
    return clips


def write(path: str | Path, clips: Iterable[Clip]) -> None:
    """Write a manifest; a reader sees the old one or the new one, never a part.

    Raises:
        ManifestError: there is a folder of this name.
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            for clip in clips:
                file.write(json.dumps(clip.to_json(), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def reason(error: Exception) -> str:
    """Say why a file of text cannot be read, without its name, which a message has already.

    >>> reason(FileNotFoundError(2, "No such file or directory", "a.csv"))
    'No such file or directory'
    """
    if isinstance(error, UnicodeDecodeError):
        return "it is no text in UTF-8"
    return getattr(error, "strerror", None) or str(error)


def default_root(manifest: Path) -> Path:
    """Return what a manifest's paths are relative to unless told otherwise: its own folder."""
    return manifest.resolve().parent


def relative_path(file: Path, root: Path) -> str:
    """Return `file` as a manifest writes it: relative to `root`, with forward slashes.

    Symbolic links keep their own name: data sets are often links to blobs named by their hash.

    >>> relative_path(Path("/data/videos/a.mp4"), Path("/data"))
    'videos/a.mp4'
    """
    file, root = file.absolute(), root.absolute()
    if file.is_relative_to(root) and ".." not in file.parts:
        return file.relative_to(root).as_posix()
    # '..' climbs from where a linked folder really is, so both folders must be the real ones
    return Path(os.path.relpath(file.parent.resolve() / file.name, root.resolve())).as_posix()
