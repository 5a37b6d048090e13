"""The log of a store's extractions: ``extract.log`` in the store."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from features import visible
from features.store_files import append_line

LOG = "extract.log"


def log(store: Path, line: str) -> None:
    """Write a line, with the time before it.

    Args:
        store: folder of the store; it may be away.
        line: without its end.
    """
    with suppress(OSError):
        append_line(store / LOG, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {visible(line)}")
