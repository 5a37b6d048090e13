"""Lists of names in messages and options, where a name may have commas of its own."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable

from manifests.clip import ManifestError

AMBIGUOUS = re.compile(r'[,"\r\n]|^\s|\s$|^$')  # in a list with commas between


def listed(names: Iterable[str]) -> str:
    """Return names with commas between, those in quotation marks that would be misread.

    >>> print(listed(["Crash", "Fire, smoke"]))
    Crash, "Fire, smoke"
    """
    return ", ".join(map(quoted, names))


def quoted(name: str) -> str:
    """Return a name as `listed` writes it."""
    return '"' + name.replace('"', '""') + '"' if AMBIGUOUS.search(name) else name


def names_in(text: str) -> list[str]:
    """Return the names of a list that a user wrote, which `listed` may have written.

    >>> names_in('Crash,"Fire, smoke"')
    ['Crash', 'Fire, smoke']

    Raises:
        ManifestError: quotation marks are not closed.
    """
    try:
        return next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise ManifestError(
            f"{text}: not a list of names; write commas between them, and a name that has a comma "
            'or quotation marks as "Fire, smoke", its own quotation marks twice'
        ) from error
