"""The name of a sealed shard, which tells its recipe and its content."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

SHARD_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.h5")


@dataclass(frozen=True, order=True)
class ShardName:
    """FINGERPRINT-CONTENT.h5, so that the name alone tells whether a byte has changed.

    Attributes:
        fingerprint: of the recipe, 16 hexadecimal digits.
        content: start of the SHA-256 of the whole file, 16 hexadecimal digits.

    >>> name = ShardName.parse("c4862aaca9179168-0123456789abcdef.h5")
    >>> name.content, str(name)
    ('0123456789abcdef', 'c4862aaca9179168-0123456789abcdef.h5')
    """

    fingerprint: str
    content: str

    @classmethod
    def parse(cls, text: str) -> ShardName | None:
        """Return the parsed name; None if it is not that of a sealed shard."""
        match = SHARD_NAME.fullmatch(text)
        return cls(match[1], match[2]) if match else None

    def __str__(self) -> str:
        return f"{self.fingerprint}-{self.content}.h5"


def file_hash(path: Path) -> str:
    """Return the start of the SHA-256 of a file, as it stands in a shard's name."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
