"""What decides a feature's value, as plain data: features of two recipes are never mixed."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_BYTES = 60_000  # of a recipe; it is an attribute of every shard
# what reading a stranger's JSON may raise
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)
READING = "reading"  # key of a stream's settings: version of the code that read its files
# version of that code -> what it reads differently from the one before; the last is the current
# one. Streams made before versions were counted have none, nor have imported ones
READING_CHANGES = {
    2: "sound is placed by its time stamps, and what comes after a broken packet is kept; frames "
    "are placed right in AVI files with B-frames and in files whose clock jumps; rows of values "
    "that are not finite are not valid; a clip's rows do not depend on the batch that it shared "
    "or on the number of workers (one unit of float16 in a few values)",
}
STREAM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # part of paths, also of exports


class FeatureError(Exception):
    """A store, a shard or a recipe that cannot be used; the message names it and the way out."""


class VersionError(FeatureError):
    """A shard of another version of the format."""


class UnreadableShard(UserWarning):
    """A store is opened without a shard that cannot be read; the message names it."""


class WriteError(FeatureError):
    """A store that cannot be written: a full disk, a read-only or vanished folder."""


@dataclass(frozen=True)
class Recipe:
    """All that decides the value of a feature.

    Attributes:
        snippet_seconds: length of one step of the time grid, in seconds.
        precision: arithmetic of the networks, ``fp32`` or ``bf16``; ``imported`` if unknown.
        streams: stream name -> the settings of its network (weights hash, preprocessing, pooling);
            ``features`` is the number of values in a row.
        source: stream name -> where its weights came from (name or path, pretrained or random).
            It says where to load the network again and is not part of the fingerprint: the same
            weights from another folder give the same features.

    >>> Recipe(0.25, "fp32", {"video": {"features": 2}}).fingerprint
    'c4862aaca9179168'
    """

    snippet_seconds: float
    precision: str
    streams: dict[str, dict[str, Any]]
    source: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of everything that decides a value."""
        canonical = json.dumps(self._decisive(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def random_streams(self) -> list[str]:
        """The streams whose network has random weights."""
        return [name for name, source in self.source.items() if source.get("weights") == "random"]

    @property
    def streams_with_lookahead(self) -> list[str]:
        """The audio streams that used sound after a snippet, which live streams cannot do."""
        return [name for name, s in self.streams.items() if "window_seconds" in s]

    @property
    def crops(self) -> dict[str, int]:
        """Stream name -> crops of each frame that lie side by side in a row, where it has some."""
        return {name: s["crops"] for name, s in self.streams.items() if "crops" in s}

    @property
    def reading(self) -> dict[str, Any]:
        """Stream name -> version of the code that read its files; None if it was not counted."""
        return {name: settings.get(READING) for name, settings in self.streams.items()}

    def streams_read_otherwise(self, other: Recipe) -> list[str]:
        """Return the streams of both whose files were read by code of different versions."""
        mine, theirs = self.reading, other.reading
        return [name for name in mine if name in theirs and mine[name] != theirs[name]]

    def read_otherwise(self, other: Recipe) -> str:
        """Return a sentence on how the code that read `other` differs; "" if it does not.

        Rows that were read by different versions must not be mixed, though most files give nearly
        the same ones.
        """
        mine, theirs = self.reading, other.reading
        names = self.streams_read_otherwise(other)
        if not names:
            return ""
        pairs = {f"{_version(theirs[n])}, not {_version(mine[n])}" for n in names}
        # None stands for the first version
        versions = {v if type(v) is int else 1 for n in names for v in (mine[n], theirs[n])}
        known = [READING_CHANGES[v] for v in READING_CHANGES if min(versions) < v <= max(versions)]
        changes = "; ".join(known)
        if max(versions) not in READING_CHANGES:
            changes = "what only a newer avarnet knows"
        what = "stream" if len(names) == 1 else "streams"
        return (
            f"the files of the {what} {', '.join(names)} were read by another version of the "
            f"reading code ({'; '.join(sorted(pairs))}); what changed: {changes}"
        )

    def only(self, streams: Iterable[str]) -> Recipe:
        """Return the recipe of some of the streams."""
        return Recipe(
            self.snippet_seconds,
            self.precision,
            {name: self.streams[name] for name in streams},
            {name: self.source[name] for name in streams if name in self.source},
        )

    def differences(self, other: Recipe) -> list[str]:
        """Return one line ``field: mine, not theirs`` for each decisive field that differs.

        A stream that one of the two lacks is one line.
        """
        both = self.streams.keys() & other.streams.keys()
        lines = [f"stream {n}: present, not absent" for n in self.streams if n not in both]
        lines += [f"stream {n}: absent, not present" for n in other.streams if n not in both]
        mine, theirs = (
            _flatten({**r._decisive(), "streams": {n: r.streams[n] for n in both}})
            for r in (self, other)
        )
        return lines + [
            f"{key}: {mine.get(key, 'absent')}, not {theirs.get(key, 'absent')}"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]

    def to_json(self) -> str:
        """Return the recipe as indented JSON, with its fingerprint for a human reader."""
        whole = {"fingerprint": self.fingerprint, **self._decisive(), "source": self.source}
        return json.dumps(whole, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what `to_json` wrote.

        Raises:
            FeatureError: the text is not a recipe, or its fingerprint is not that of its content.
        """
        try:
            whole = json.loads(text)
            recipe = cls(
                float(whole["snippet_seconds"]),
                str(whole["precision"]),
                {str(name): dict(stream) for name, stream in whole["streams"].items()},
                {str(name): dict(origin) for name, origin in whole.get("source", {}).items()},
            )
            stated, found = whole["fingerprint"], recipe.fingerprint
        except UNREADABLE as error:
            raise FeatureError(f"not a recipe: {error!r}") from error
        recipe._check()
        if stated != found:
            raise FeatureError(
                f"the recipe says fingerprint {stated} but its content has {found}: "
                "it was edited or damaged; take it again from whoever made it"
            )
        return recipe

    def _check(self) -> None:
        """Refuse values that no recipe can have, before a reader relies on them."""
        if not (math.isfinite(self.snippet_seconds) and self.snippet_seconds > 0):
            raise FeatureError(f"not a recipe: snippet_seconds {self.snippet_seconds}")
        if not self.streams:
            raise FeatureError("not a recipe: it has no streams")
        for name, settings in self.streams.items():
            width, crops = settings.get("features"), settings.get("crops", 1)
            whole = type(width) is int and type(crops) is int and width > 0 and crops > 0
            if not STREAM_NAME.fullmatch(name) or not whole or width % crops:
                raise FeatureError(
                    f"not a recipe: stream {name!r} of {width!r} values a row in {crops!r} crops; "
                    "expected a name of letters, digits, - and _ (64 at most) and whole numbers"
                )

    def save(self, path: str | Path) -> None:
        """Write the recipe to a file."""
        path = Path(path)
        path.write_text(self.to_json() + "\n", encoding="utf-8")

    def _decisive(self) -> dict[str, Any]:
        return {
            "snippet_seconds": self.snippet_seconds,
            "precision": self.precision,
            "streams": self.streams,
        }


def _version(reading: Any) -> str:
    return f"version {reading}" if type(reading) is int else "one before versions were counted"


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
