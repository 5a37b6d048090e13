"""Numbers that are none: samples and features that are NaN, infinite, or too large to be kept.

One such sample would make NaN of all that a network reads with it, and one such feature of all that
is trained with it. They are left out, and counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from features import FeatureError, Features

LOUDEST = 1e10  # full scale is 1; 32-bit numbers that were never scaled reach 2e9
MOST = 0.01  # share of rows that may be lost: of a clip, without its being named; of all
ENOUGH = 1000  # rows after which a job may be given up


class NotFiniteError(FeatureError):
    """Too many rows of a recipe are no finite numbers."""


@dataclass(frozen=True)
class Extracted(Features):
    """Features fresh from the networks, with what had to be left out of them.

    Attributes:
        rows: stream -> rows for which there was something to see or hear.
        broken: stream -> of those, rows that are invalid as samples of their sound are no numbers.
        not_finite: stream -> of those, rows that are invalid as the network made no finite float16
            of what was whole.
    """

    rows: dict[str, int] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)


def clean_sound(samples: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return samples with zeros where there are no numbers, and (samples,) where that is.

    >>> clean_sound(np.float32([0.5, np.nan, -np.inf, 1e30]))[0].tolist()
    [0.5, 0.0, 0.0, 0.0]
    """
    fine = np.abs(samples) < LOUDEST  # false for NaN
    if fine.all():
        return samples, ~fine
    return np.where(fine, samples, np.float32(0)), ~fine


def as_stored(rows: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Return (..., features) rows as they are kept, and (...,) whether they can be.

    Those that cannot be are zeros.

    >>> as_stored(np.float32([[1, 65504], [1, 65520], [np.nan, 0]]))[1].tolist()
    [True, False, False]
    """
    with np.errstate(over="ignore", invalid="ignore"):
        kept: NDArray[np.float16] = np.array(rows, np.float16)
    fine: NDArray[np.bool_] = np.asarray(np.isfinite(kept).all(-1))
    kept[~fine] = 0
    return kept, fine


class Tally:
    """How many rows of a job are finite, stream by stream, and whether its recipe will do.

    Args:
        expected: rows that there will be in all, as far as known.
    """

    def __init__(self, expected: float) -> None:
        self._expected = expected
        self._rows: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()

    def add(self, rows: dict[str, int], not_finite: dict[str, int]) -> None:
        """Count a clip's rows, where there was something to see or hear, and those lost of them.

        Args:
            rows: stream -> rows for which there was something to see or hear.
            not_finite: stream -> how many of those are lost.
        """
        self._rows.update(rows)
        self._lost.update(not_finite)

    def verdict(self, over: bool) -> str | None:
        """Return why the recipe will not do, or None.

        Args:
            over: no more clips will come; till then it is only given up where it is certain.
        """
        rows, lost = self._rows.total(), self._lost.total()
        if not over and (rows < ENOUGH or lost <= MOST * max(rows, self._expected)):
            return None
        if lost <= MOST * rows:
            return None
        parts = ", ".join(
            f"{count:,} of {self._rows[name]:,} in the stream {name}"
            for name, count in self._lost.most_common()
            if count
        )
        return (
            f"{lost:,} of {rows:,} rows so far are not finite in half precision ({parts}), though "
            f"what was read is: more than {MOST:.0%}. The network's values are NaN or beyond "
            f"{np.finfo(np.float16).max:,.0f}"
        )
