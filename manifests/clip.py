"""One clip of a manifest: where it is, what it shows and when, which side of a split it is on."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_ID_BYTES = 200
FRAME_SLACK = 1e-6  # of a frame: annotations in whole frames survive the way through seconds
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
UNWRITABLE = re.compile(r"[\x00\ud800-\udfff]")  # names no file, or is not Unicode text


class AvarnetError(Exception):
    """What a user can put right; the message says what is wrong where, and the way out.

    The base of the errors of all parts but `features`, which knows none of the others.
    """


class ManifestError(AvarnetError, ValueError):
    """A manifest or a list that cannot be used; the message names the place and the way out."""


def id_fault(text: str) -> str:
    """Return why a text cannot be a clip's id, in a few words; "" if it can.

    >>> id_fault("crash/001 "), id_fault("crash/001")
    ('has a space at its start or end', '')
    """
    if not text:
        return "is empty"
    if UNWRITABLE.search(text):
        return "is not Unicode text"
    if CONTROL.search(text):
        return "has a control character or a line break"
    if (size := len(text.encode())) > MAX_ID_BYTES:
        return f"is too long: {size} bytes, of at most {MAX_ID_BYTES}"
    if text != text.strip():
        return "has a space at its start or end"
    if "\\" in text:
        return "has a backslash"
    if text.startswith("/"):
        return "begins with a slash"
    return "has '..' for a folder" if ".." in text.split("/") else ""


class Interval(NamedTuple):
    """A stretch of time with an anomaly, in seconds from the first frame; the end is excluded."""

    start: float
    end: float


@dataclass(frozen=True)
class Clip:
    """One video file and what is known about it.

    Attributes:
        id: unique in its manifest.
        path: of the video, relative to the manifest's root (see `resolve`), or absolute.
        labels: its classes, the main one first.
        intervals: when it is anomalous; empty if never, None if nobody has looked.
        split: ``train``, ``val``, ``test`` or ``fold-K``.
        group: the recording or camera it comes from; a split never divides a group.
        duration: seconds.
        fps: the frame rate in which its annotations were counted.
        audio: a sound file beside the video, like `path`.

    >>> Clip("crash/001", "crash/001.mp4", ("crash",), (Interval(1.0, 2.0),)).label
    'crash'
    """

    id: str
    path: str
    labels: tuple[str, ...]
    intervals: tuple[Interval, ...] | None = None
    split: str | None = None
    group: str | None = None
    duration: float | None = None
    fps: float | None = None
    audio: str | None = None

    def __post_init__(self) -> None:
        if fault := id_fault(self.id):
            raise ManifestError(
                f"clip id {self.id!r}: {fault}; expected 1 to {MAX_ID_BYTES} bytes of Unicode "
                "text, no control character, no space around it, no leading '/', no backslash, no "
                "'..'; rename the file or give the clip an id"
            )
        if not self.path:
            raise ManifestError(f"clip {self.id}: its path is empty")
        if not isinstance(self.labels, tuple):
            raise ManifestError(
                f"clip {self.id}: labels {self.labels!r}; expected a tuple of texts"
            )
        if not self.labels or not all(self.labels):
            raise ManifestError(f"clip {self.id}: needs a label (a normal clip is 'Normal', say)")
        for text in (self.path, self.split, self.group, self.audio, *self.labels):
            if text is not None and UNWRITABLE.search(text):
                raise ManifestError(
                    f"clip {self.id}: {text!r} is not Unicode text without NUL; rename the file or "
                    "correct the text"
                )
        for start, end in self.intervals or ():
            if not (math.isfinite(end) and 0 <= start < end):
                raise ManifestError(
                    f"clip {self.id}: interval {start} to {end} s; expected 0 <= start < end"
                )
        for name in ("duration", "fps"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ManifestError(f"clip {self.id}: {name} {value}; expected a positive number")

    @property
    def label(self) -> str:
        """The main class."""
        return self.labels[0]

    def resolve(self, root: str | Path) -> Path:
        """Return where the video is, given the manifest's root."""
        return Path(root) / self.path

    def resolve_audio(self, root: str | Path) -> Path | None:
        """Return where the sound file is, if the manifest names one."""
        return Path(root) / self.audio if self.audio else None

    def frame_labels(self, num_frames: int, fps: float | None = None) -> NDArray[np.uint8]:
        """Return the truth of every native frame: (num_frames,), 1 where it is anomalous.

        Frame k is shown at k / fps and belongs to an interval if start <= k / fps < end.

        Args:
            num_frames: frames of the video.
            fps: their rate; the annotations' own by default.

        Raises:
            ManifestError: the clip has no annotation in time, or its rate is unknown or not a
                positive number.

        >>> Clip("a", "a.mp4", ("B1",), (Interval(0.5, 1.0),), fps=4).frame_labels(6).tolist()
        [0, 0, 1, 1, 0, 0]
        """
        if self.intervals is None:
            raise ManifestError(f"clip {self.id}: has no annotation in time (intervals)")
        truth = np.zeros(num_frames, np.uint8)
        if not self.intervals:
            return truth
        rate = self.fps if fps is None else fps
        if rate is None:
            raise ManifestError(f"clip {self.id}: its frame rate is not known; give fps")
        if not (math.isfinite(rate) and rate > 0):
            raise ManifestError(f"clip {self.id}: fps {rate}; expected a positive number")
        for start, end in self.intervals:
            first, last = (math.ceil(second * rate - FRAME_SLACK) for second in (start, end))
            truth[first:last] = 1
        return truth

    def __repr__(self) -> str:
        known = ((field.name, getattr(self, field.name)) for field in fields(self))
        return f"Clip({', '.join(f'{name}={v!r}' for name, v in known if v is not None)})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align: left">{name}</th>'
            f'<td style="text-align: left">{escape(repr(value))}</td></tr>'
            for name, value in self.to_json().items()
        )
        return f"<table>{rows}</table>"

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without the fields that are None."""
        whole = {field.name: getattr(self, field.name) for field in fields(self)}
        whole["labels"] = list(self.labels)
        if self.intervals is not None:
            whole["intervals"] = [list(interval) for interval in self.intervals]
        return {name: value for name, value in whole.items() if value is not None}

    @classmethod
    def from_json(cls, whole: Any) -> Clip:
        """Read what `to_json` gives.

        Raises:
            ManifestError: a field is missing, unknown or of the wrong type.
        """
        if not isinstance(whole, dict):
            raise ManifestError(f"expected a JSON object, found {type(whole).__name__}")
        known = [field.name for field in fields(cls)]
        if unknown := sorted(whole.keys() - set(known)):
            raise ManifestError(
                f"no such field: {', '.join(unknown)}; there are {', '.join(known)}"
            )
        texts = {name: whole.get(name) for name in ("id", "path", "split", "group", "audio")}
        for name in ("id", "path", "labels"):
            if whole.get(name) is None:
                raise ManifestError(f"the field {name} is missing")
        for name, value in texts.items():
            if not (value is None or isinstance(value, str)):
                raise ManifestError(f"field {name}: expected text, found {value!r}")
        numbers = {
            name: _number(name, whole[name])
            for name in ("duration", "fps")
            if whole.get(name) is not None
        }
        labels = whole.get("labels")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ManifestError(f"field labels: expected a list of texts, found {labels!r}")
        pairs = whole.get("intervals")
        if pairs is not None and not (
            isinstance(pairs, list)
            and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
        ):
            raise ManifestError(f"field intervals: expected [[start, end], ...], found {pairs!r}")
        intervals = (
            None
            if pairs is None
            else tuple(Interval(*(_number("intervals", second) for second in p)) for p in pairs)
        )
        return cls(**{**whole, **numbers, "labels": tuple(labels), "intervals": intervals})


def _number(field: str, value: object) -> float:
    """Return a JSON number; refuse true, false and text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ManifestError(f"field {field}: expected a number, found {value!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise ManifestError(f"field {field}: expected a number, found one too large") from error
