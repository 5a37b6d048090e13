"""Recipes that do not work: refused when too many rows are not finite, and refused again later."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from extract.finite import NotFiniteError
from extract.job.log import LOG, log
from features.store_files import read_file

REFUSED = "refused recipe"  # in the log, before a fingerprint


def refusal(store: Path, why: str) -> NotFiniteError:
    """Return the error of a recipe that does not work, with the ways out.

    Args:
        store: folder of the store.
        why: see `Tally.verdict`.
    """
    return NotFiniteError(
        f"recipe refused: {why}. Take --precision fp32, another network or other --layers, or a "
        f"checkpoint that is not damaged, in a new store; {store} can be deleted"
    )


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
        for line in read_file(store / LOG).decode(errors="replace").splitlines():
            _, found, reason = line.partition(f" {REFUSED} {fingerprint}: ")
            if found:
                return reason
    return ""
