"""Tables as people and spreadsheets write them: CSV with commas, semicolons or tabs."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Sequence
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from manifests.clip import ManifestError
from manifests.jsonl import reason

SEPARATORS = ",;\t"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Row(NamedTuple):
    """A row that is not empty.

    Attributes:
        line: of the file, where it ends.
        cells: column -> text without spaces around it; "" where the row is too short.
        beyond: what is in cells that have no column.
    """

    line: int
    cells: dict[str, str]
    beyond: str


class Sheet(NamedTuple):
    """The names of the columns, what separates the cells, and the rows."""

    columns: list[str]
    separator: str
    rows: list[Row]


def read_table(file: Path, needed: Sequence[str], known: Sequence[str] = ()) -> Sheet:
    """Read a table whose first line names the columns; empty rows are skipped.

    The cells are separated by what separates the names: commas, semicolons or tabs.

    Args:
        file: in UTF-8, or in UTF-16 with its mark at the beginning.
        needed: columns that it must have.
        known: columns that it may have besides; any if there are none.

    Raises:
        ManifestError: it cannot be read, or has other columns, or one of them twice.
    """
    try:
        content = file.read_bytes()
        wide = content.startswith(UTF_16)
        text = content.decode("utf-16" if wide else "utf-8-sig")
        header = text.partition("\n")[0]
        if wide and not "".join(header.split()).isprintable():  # almost all bytes are UTF-16
            raise csv.Error("it is not text in UTF-8")
        separator = max(SEPARATORS, key=header.count)
        lines = csv.reader(StringIO(text, newline=""), delimiter=separator)
        columns = [name.strip() for name in next(lines, [])]
        found = [(lines.line_num, [cell.strip() for cell in line]) for line in lines]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{file}: {reason(error)}; give a CSV file in UTF-8") from error
    named = [name for name in columns if name]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise ManifestError(f"{file}: has the column {', '.join(twice)} more than once; keep one")
    if not set(needed) <= set(named) or (known and not set(named) <= {*needed, *known}):
        may = f" and may have {', '.join(known)}" if known else ""
        raise ManifestError(
            f"{file}: needs the columns {' and '.join(needed)}{may}; it has "
            + (", ".join(named) or "none")
        )
    rows = []
    for number, line in found:
        if not any(line):
            continue
        cells = list(zip_longest(columns, line, fillvalue=""))
        beyond = "".join(cell for name, cell in cells if not name)
        rows.append(Row(number, {name: cell for name, cell in cells if name}, beyond))
    return Sheet(named, separator, rows)
