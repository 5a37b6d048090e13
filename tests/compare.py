"""How alike two arrays of rows are."""

from __future__ import annotations

import numpy as np


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Return the smallest cosine between rows of the same number."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    product = (one * other).sum(-1)
    return float((product / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)).min())
