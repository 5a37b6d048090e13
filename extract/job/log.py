"""The log of a store's extractions: ``extract.log`` in the store."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

LOG = "extract.log"
REFUSED = "refused recipe"  # before a fingerprint


def log(store: Path, line: str) -> None:
    """Write a line, with the time before it.

    Args:
        store: folder of the store; it may be away.
        line: without its end.
    """
    with suppress(OSError), open(store / LOG, "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def log_refusal(store: Path, fingerprint: str, reason: str) -> None:
    """Write that a recipe does not work.

    Args:
        store: folder of the store.
        fingerprint: of the recipe.
        reason: in one line.
    """
    log(store, f"{REFUSED} {fingerprint}: {reason}")


def earlier_refusal(store: Path, fingerprint: str) -> str:
    """Return why a recipe was refused in an earlier run; "" if it was not.

    Args:
        store: folder of the store.
        fingerprint: of the recipe.
    """
    with suppress(OSError):
        for line in (store / LOG).read_text(encoding="utf-8").splitlines():
            _, found, reason = line.partition(f" {REFUSED} {fingerprint}: ")
            if found:
                return reason
    return ""
