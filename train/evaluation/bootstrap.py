"""Intervals and tests of recordings: clips that were cut from one are not independent.

Whole groups are drawn anew, with all their clips (the cluster bootstrap: Field and Welsh, Journal
of the Royal Statistical Society B, 2007). Drawn clip by clip, an interval of "95 %" holds the truth
in three of four cases where a recording gave six clips that are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

BOOTSTRAPS = 1000
CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959964  # of a two-sided interval of 95 %


def group_numbers(clip_ids: Sequence[str], groups: Mapping[str, str]) -> NDArray[np.int64]:
    """Return (clips,), the number of each clip's group; a clip without one is a group of its own.

    Args:
        clip_ids: the clips.
        groups: clip id -> group.

    >>> group_numbers(["a", "b", "c"], {"a": "street", "c": "street"}).tolist()
    [1, 0, 1]
    """
    names = [(1, groups[i]) if i in groups else (0, i) for i in clip_ids]
    order = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([order[name] for name in names])


def drawn_anew(
    numbers: NDArray[np.int64], draws: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield (clips,), how often each clip is there, where as many groups as there are are drawn.

    Args:
        numbers: (clips,) number of each clip's group, from 0 on.
        draws: how many to yield.
        rng: draws them.
    """
    count = int(numbers.max()) + 1
    for chosen in rng.integers(0, count, (draws, count)):
        yield np.bincount(chosen, minlength=count)[numbers]


def interval(
    value: NDArray[np.float64] | float, draws: NDArray[np.float64], numbers: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the ends (2, ...) of the interval of a figure from what it is in draws (draws, ...).

    The percentile interval, widened about the value as few groups ask for: by Student's quantile
    instead of the normal one, and by the deviation of a sample instead of a population. Groups of
    unequal sizes count for fewer: n^2 / sum of n_g^2 (Kish 1965).

    Args:
        value: of the figure itself.
        draws: of `drawn_anew`.
        numbers: (clips,) number of each clip's group.
    """
    from scipy.stats import t

    tail = 100 * (1 - CONFIDENCE) / 2
    ends = np.percentile(draws, [tail, 100 - tail], axis=0)
    effective = len(numbers) ** 2 / float(np.square(np.bincount(numbers)).sum())
    if effective <= 1:  # a single group: nothing tells how far another one is
        return np.asarray(ends)
    quantile = float(t.ppf(1 - tail / 100, effective - 1)) / NORMAL_QUANTILE
    return np.asarray(value + (ends - value) * quantile * np.sqrt(effective / (effective - 1)))


def sign_flips(differences: NDArray[np.float64], draws: int, rng: np.random.Generator) -> float:
    """Return how likely a sum as large as that of (groups,) differences is between equals.

    Between equals it is chance which of two has a group's difference (two-sided).

    Args:
        differences: of each group.
        draws: how many permutations.
        rng: draws them.
    """
    signs = rng.choice([-1.0, 1.0], (draws, len(differences)))
    as_large = np.abs(signs @ differences) >= np.abs(differences.sum()) - 1e-9
    return float(1 + as_large.sum()) / (1 + draws)
