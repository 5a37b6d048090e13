"""What is wrong with a manifest, line by line, and the way out of each."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from manifests.clip import Clip, ManifestError
from manifests.io import parse

SPLITS = re.compile(r"train|val|test|fold-\d+")


class Finding(NamedTuple):
    """One thing that is wrong."""

    severity: str  # "error" or "warning"
    line: int
    clip: str  # its id; empty if the line has none
    kind: str
    problem: str
    way_out: str


class Numbered(NamedTuple):
    """A clip and the line it is on."""

    line: int
    clip: Clip


Probe = Callable[[Path, Path | None], tuple[float, bool]]


def check(manifest: Path, root: Path, probe: Probe | None = None) -> list[Finding]:
    """Return all findings, in the order of the lines.

    Args:
        manifest: the manifest.
        root: what its paths are relative to.
        probe: given a video and its sound file, returns its duration in seconds and whether it has
            sound, or raises what is wrong with it; without it, files are not opened.

    Raises:
        ManifestError: the file cannot be read at all.
    """
    findings: list[Finding] = []
    clips: list[Numbered] = []
    for line, clip in parse(manifest):
        if isinstance(clip, ManifestError):
            findings.append(Finding("error", line, "", "bad-line", str(clip), "mend the line"))
        else:
            clips.append(Numbered(line, clip))
    findings += _duplicates(clips, root)
    findings += _splits(clips)
    for numbered in clips:
        findings += _file(numbered, root, probe)
    return sorted(findings, key=lambda finding: finding.line)


def _duplicates(clips: list[Numbered], root: Path) -> Iterator[Finding]:
    by_id: dict[str, Numbered] = {}
    by_path: dict[Path, Numbered] = {}
    by_size: dict[int, list[Numbered]] = defaultdict(list)
    for numbered in clips:
        line, clip = numbered
        first = by_id.setdefault(clip.id, numbered)
        if first is not numbered:
            yield Finding(
                "error",
                line,
                clip.id,
                "duplicate-id",
                f"the id is on line {first.line} already",
                "give one of the two another id, or remove it",
            )
        path = clip.resolve(root).resolve()
        first = by_path.setdefault(path, numbered)
        if first is not numbered:
            yield _twin(numbered, first, "duplicate-path", "is the same file")
        elif path.is_file() and (size := path.stat().st_size):
            by_size[size].append(numbered)
    for same_size in by_size.values():
        if len(same_size) == 1:
            continue
        by_content: dict[str, Numbered] = {}
        for numbered in same_size:
            try:
                with open(numbered.clip.resolve(root), "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                continue  # said by the check of the file itself
            first = by_content.setdefault(content, numbered)
            if first is not numbered:
                yield _twin(numbered, first, "duplicate-content", "has the same content")


def _twin(numbered: Numbered, first: Numbered, kind: str, what: str) -> Finding:
    leak = numbered.clip.split != first.clip.split
    return Finding(
        "error" if leak else "warning",
        numbered.line,
        numbered.clip.id,
        kind,
        f"{what} as {first.clip.id} on line {first.line}" + (", in another split" if leak else ""),
        "remove one of the two",
    )


def _splits(clips: list[Numbered]) -> Iterator[Finding]:
    splits: dict[str, dict[str, int]] = defaultdict(dict)
    for line, clip in clips:
        if clip.split is not None and not SPLITS.fullmatch(clip.split):
            yield Finding(
                "error",
                line,
                clip.id,
                "unknown-split",
                f"split {clip.split!r}",
                "use train, val, test or fold-K, or run 'avarnet manifest split'",
            )
        if clip.group is not None and clip.split is not None:
            seen = splits[clip.group]
            if clip.split not in seen and seen:
                other, at = next(iter(seen.items()))
                yield Finding(
                    "warning",
                    line,
                    clip.id,
                    "group-across-splits",
                    f"group {clip.group} is in {clip.split} and, on line {at}, in {other}: what is "
                    "learned from one leaks to the other",
                    "run 'avarnet manifest split', unless the split is the official one",
                )
            seen.setdefault(clip.split, line)


def _file(numbered: Numbered, root: Path, probe: Probe | None) -> Iterator[Finding]:
    line, clip = numbered
    path, audio = clip.resolve(root), clip.resolve_audio(root)
    duration = clip.duration
    for file in (path, audio):
        if file is not None and not file.is_file():
            what = "is not a regular file" if file.exists() else "does not exist"
            yield Finding(
                "error",
                line,
                clip.id,
                "missing-file",
                f"{file} {what}",
                "give the folder it is in with --root, or remove the line",
            )
            return
    if path.stat().st_size == 0:
        yield Finding(
            "error", line, clip.id, "empty-file", f"{path} is empty", "copy the file again"
        )
    elif probe is not None:
        try:
            duration, sound = probe(path, audio)
        except Exception as error:  # whatever a decoder says of a file from anywhere
            yield Finding(
                "error", line, clip.id, "unreadable", str(error), "replace the file or the line"
            )
        else:
            if not sound:
                yield Finding(
                    "warning",
                    line,
                    clip.id,
                    "no-sound",
                    "the clip has no sound",
                    "nothing to do: its sound is flagged as missing; or name a sound file (audio)",
                )
    for start, end in clip.intervals or ():
        if duration is not None and end > duration + 1 / (clip.fps or 10):
            yield Finding(
                "error",
                line,
                clip.id,
                "interval-outside",
                f"anomaly from {start:g} to {end:g} s in a clip of {duration:g} s",
                "correct the interval, or the file is another one than was annotated",
            )
