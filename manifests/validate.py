"""What is wrong with a manifest, line by line, and the way out of each."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from manifests.clip import Clip, ManifestError
from manifests.jsonl import MAKE_ONE, parse
from manifests.names import listed, quoted
from manifests.normal import normal_label

SIDE = re.compile(r"train|val|test")
FOLD = re.compile(r"fold-\d+")
LEAST_MISSING = 1.0  # seconds; lists of durations are often rounded


class Finding(NamedTuple):
    """One thing that is wrong."""

    severity: str  # "error" or "warning"
    line: int
    clip: str  # its id; empty if the line has none
    kind: str  # for programs, such as "duplicate-id"
    problem: str  # for people
    way_out: str


class _Numbered(NamedTuple):
    """A clip and the line it is on."""

    line: int
    clip: Clip

    def error(self, kind: str, problem: str, way_out: str) -> Finding:
        """Return a finding on this line; see `Finding` for the arguments."""
        return Finding("error", self.line, self.clip.id, kind, problem, way_out)

    def warning(self, kind: str, problem: str, way_out: str) -> Finding:
        """Return a finding on this line; see `Finding` for the arguments."""
        return Finding("warning", self.line, self.clip.id, kind, problem, way_out)


class Probed(NamedTuple):
    """What a file itself contains."""

    duration: float  # seconds
    sound: bool  # whether it has any
    cut_short: str = ""  # how it shows that the file was cut short


Probe = Callable[[Path, Path | None], Probed]


def check(manifest: str | Path, root: str | Path, probe: Probe | None = None) -> list[Finding]:
    """Return all findings: errors first, both in the order of the lines.

    Args:
        manifest: the manifest.
        root: what its paths are relative to.
        probe: given a video and its sound file, returns what they contain, or raises what is
            wrong with them; without it, files are not opened.

    Raises:
        ManifestError: the file cannot be read at all.

    Example::

        errors = [f for f in check(Path("m.jsonl"), Path(".")) if f.severity == "error"]
    """
    manifest, root = Path(manifest), Path(root)
    findings: list[Finding] = []
    clips: list[_Numbered] = []
    for line, clip in parse(manifest):
        if isinstance(clip, ManifestError):
            findings.append(Finding("error", line, "", "bad-line", str(clip), "correct the line"))
        else:
            clips.append(_Numbered(line, clip))
    if not findings and not clips:
        findings.append(Finding("error", 0, "", "empty", "no clips in it", MAKE_ONE))
    findings += _duplicates(clips, root)
    findings += _splits(clips)
    findings += _groups(clips)
    findings += _labels(clips)
    for numbered in clips:
        findings += _file(numbered, root, probe)
    return sorted(findings, key=lambda finding: (finding.severity != "error", finding.line))


def _duplicates(clips: list[_Numbered], root: Path) -> Iterator[Finding]:
    by_id: dict[str, _Numbered] = {}
    by_path: dict[str, _Numbered] = {}
    by_size: dict[int, list[_Numbered]] = defaultdict(list)
    for numbered in clips:
        clip = numbered.clip
        first = by_id.setdefault(clip.id, numbered)
        if first is not numbered:
            yield numbered.error(
                "duplicate-id",
                f"the id is on line {first.line} already",
                "give one of the two another id, or remove it",
            )
        # os.path, not pathlib: no path that a manifest may hold makes it raise
        path = os.path.realpath(clip.resolve(root))
        first = by_path.setdefault(path, numbered)
        if first is not numbered:
            yield _twin(numbered, first, "duplicate-path", "is the same file")
        elif os.path.isfile(path) and (size := os.path.getsize(path)):
            by_size[size].append(numbered)
    for same_size in by_size.values():
        if len(same_size) == 1:
            continue
        by_content: dict[str, _Numbered] = {}
        for numbered in same_size:
            try:
                with open(numbered.clip.resolve(root), "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                continue  # reported by the check of the file itself
            first = by_content.setdefault(content, numbered)
            if first is not numbered:
                yield _twin(numbered, first, "duplicate-content", "has the same content")


def _twin(numbered: _Numbered, first: _Numbered, kind: str, what: str) -> Finding:
    problem, way_out = f"{what} as {first.clip.id} on line {first.line}", "remove one of the two"
    if len({numbered.clip.split, first.clip.split} - {None}) == 2:  # it leaks
        return numbered.error(kind, f"{problem}, in another split", way_out)
    return numbered.warning(kind, problem, way_out)


def _splits(clips: list[_Numbered]) -> Iterator[Finding]:
    first: dict[str, _Numbered] = {}  # of each way to split, in the order of the lines
    for numbered in clips:
        clip = numbered.clip
        if clip.split is None:
            first.setdefault("no split", numbered)
        elif SIDE.fullmatch(clip.split):
            first.setdefault("train, val or test", numbered)
        elif FOLD.fullmatch(clip.split):
            first.setdefault("folds", numbered)
        else:
            yield numbered.error(
                "unknown-split",
                f"split {clip.split!r}",
                "use train, val, test or fold-K, or run 'avarnet manifest split'",
            )
    if len(first) > 1:
        _, second, *_ = first.values()
        ways = " and ".join(f"{way} (line {at.line})" for way, at in first.items())
        yield second.warning(
            "mixed-splits",
            f"some clips have {ways}",
            "split all clips with 'avarnet manifest split'",
        )


def _groups(clips: list[_Numbered]) -> Iterator[Finding]:
    groups: dict[str, dict[str, list[_Numbered]]] = defaultdict(lambda: defaultdict(list))
    for numbered in clips:
        if numbered.clip.group is not None and numbered.clip.split is not None:
            groups[numbered.clip.group][numbered.clip.split].append(numbered)
    for group, sides in groups.items():
        if len(sides) == 1:
            continue
        _, (second, *_), *_ = sides.values()
        counts = ", ".join(f"{split} (clips: {len(members)})" for split, members in sides.items())
        yield second.warning(
            "group-across-splits",
            f"group {group} is in {counts}: what is learned from one leaks to the other",
            "run 'avarnet manifest split', unless the split is the official one",
        )


def _labels(clips: list[_Numbered]) -> Iterator[Finding]:
    """Find labels that differ by how they are written, and those that intervals contradict."""
    first: dict[str, dict[str, _Numbered]] = defaultdict(dict)  # of each way to write a label
    for numbered in clips:
        labels = numbered.clip.labels
        for label in labels:
            first["".join(label.split()).casefold()].setdefault(label, numbered)
        if len(set(labels)) < len(labels):
            yield numbered.warning(
                "duplicate-label", f"a label is twice in {listed(labels)}", "keep it once"
            )
    for ways in first.values():
        one, *others = ways
        for other in others:
            yield ways[other].warning(
                "similar-labels",
                f"label {other!r} differs from {one!r} (line {ways[one].line}) by case or spaces "
                "alone: they count as two classes",
                "write both alike",
            )
    try:
        normal = normal_label(numbered.clip.label for numbered in clips)
    except ManifestError:
        return  # which training asks for
    for numbered in clips:
        clip = numbered.clip
        if normal is None or clip.intervals is None:
            continue
        if clip.label == normal and clip.intervals:
            problem, way_out = "has anomalies", "correct the label or the intervals"
        elif clip.label != normal and not clip.intervals:
            problem = "is never anomalous by its intervals, []"
            way_out = "if nobody has looked, take the field out of the line"
        else:
            continue
        what = f"a {quoted(clip.label)} clip {problem}"
        yield numbered.warning("label-against-intervals", what, way_out)


def _file(numbered: _Numbered, root: Path, probe: Probe | None) -> Iterator[Finding]:
    clip = numbered.clip
    path, audio = clip.resolve(root), clip.resolve_audio(root)
    duration = clip.duration
    missing = [file for file in (path, audio) if file is not None and not os.path.isfile(file)]
    for file in missing:
        try:
            os.stat(file)
            what = "is not a regular file"
        except PermissionError:
            yield numbered.error("unreadable", f"no permission to read {file}", "ask its owner")
            continue
        except OSError:
            what = "does not exist"
        yield numbered.error(
            "missing-file",
            f"{file} {what}",
            "give the folder it is in with --root, or remove the line",
        )
    if not missing and not os.access(path, os.R_OK):
        yield numbered.error("unreadable", f"no permission to read {path}", "ask its owner")
    elif not missing and os.path.getsize(path) == 0:
        yield numbered.error("empty-file", f"{path} is empty", "copy the file again")
    elif not missing and probe is not None:
        try:
            probed = probe(path, audio)
        except Exception as error:  # whatever a decoder raises for a file of any origin
            yield numbered.error("unreadable", str(error), "replace the file or the line")
        else:
            yield from _length(numbered, probed)
            duration = probed.duration
            if not probed.sound:
                yield numbered.warning(
                    "no-sound",
                    "the clip has no sound",
                    "nothing to do: its sound is flagged as missing; or name a sound file (audio)",
                )
    for start, end in clip.intervals or ():
        if duration is not None and end > duration + 1 / (clip.fps or 10):
            yield numbered.error(
                "interval-outside",
                f"anomaly from {start:g} to {end:g} s in a clip of {duration:g} s",
                "correct the interval, or the file is another one than was annotated",
            )


def _length(numbered: _Numbered, probed: Probed) -> Iterator[Finding]:
    """Find a file that is shorter than its container, or else the manifest, states."""
    stated = numbered.clip.duration
    if probed.cut_short:
        yield numbered.warning(
            "cut-short",
            probed.cut_short,
            "copy or download it again; as it is, the rest is read and flagged as cut short",
        )
    elif stated is not None and stated - probed.duration > LEAST_MISSING + stated / 100:
        yield numbered.warning(
            "shorter-than-stated",
            f"the manifest states {stated:g} s, but the file has {probed.duration:.1f} s",
            "copy the file again if it was cut short, or correct the duration",
        )
