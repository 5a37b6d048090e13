"""One thing or several: what takes both makes a list of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

Name = TypeVar("Name", bound=str | Path)


def several(given: Name | Iterable[Name]) -> list[Name]:
    """Return a list of what is given: of one text or path, which is no list of its letters.

    >>> several("abc"), several(("a", "b"))
    (['abc'], ['a', 'b'])
    """
    return [given] if isinstance(given, str | Path) else list(given)
