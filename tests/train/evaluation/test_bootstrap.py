"""Intervals hold the truth as often as they say where clips of one recording are alike."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from train.evaluation.bootstrap import drawn_anew, group_numbers, interval, sign_flips

# clips of each recording of the Surveillance Camera Fight Dataset
SIZES = [20, 17, 15, 15, 11, 10, 10, 10, 9, 9, 8, 7, 7, *[6] * 5, *[5] * 3, *[4] * 4, *[3] * 5]
SIZES += [*[2] * 5, 1, 1]
GROUPS = np.repeat(np.arange(len(SIZES)), SIZES)
ACCURACY = 0.72
WORLDS, DRAWS = 1000, 500


def right(rng: np.random.Generator, correlation: float) -> NDArray[np.float64]:
    """Draw which clips are right: ACCURACY of them, those of a recording alike (beta-binomial)."""
    both = 1 / correlation - 1
    share = rng.beta(ACCURACY * both, (1 - ACCURACY) * both, len(SIZES))
    return (rng.random(len(GROUPS)) < share[GROUPS]).astype(float)


def coverage(groups: NDArray[np.int64], correlation: float) -> float:
    """Return how often the interval of the accuracy holds the truth."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(WORLDS):
        x = right(rng, correlation)
        draws = np.array([n @ x / n.sum() for n in drawn_anew(groups, DRAWS, rng)])
        low, high = interval(x.mean(), draws, groups)
        covered += low <= ACCURACY <= high
    return covered / WORLDS


@pytest.mark.parametrize("correlation", [0.1, 0.2, 0.3])
def test_intervals_by_recording_hold_the_truth(correlation: float) -> None:
    assert coverage(GROUPS, correlation) >= 0.93


def test_intervals_by_clip_would_not() -> None:
    assert coverage(np.arange(len(GROUPS)), 0.3) < 0.85


@pytest.mark.parametrize("correlation", [0.1, 0.3])
def test_equal_runs_rarely_differ_significantly(correlation: float) -> None:
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(WORLDS):
        differences = right(rng, correlation) - right(rng, correlation)
        found += sign_flips(np.bincount(GROUPS, differences), DRAWS, rng) < 0.05
    assert found / WORLDS <= 0.07


def test_clips_without_a_group_are_groups_of_their_own() -> None:
    groups = group_numbers(["a", "b", "c", "d"], {"a": "b", "d": "b"})
    assert groups[0] == groups[3]
    assert len(set(groups.tolist())) == 3


def test_groups_are_drawn_whole() -> None:
    numbers = np.array([0, 0, 1, 2, 2, 2])
    for weights in drawn_anew(numbers, 50, np.random.default_rng(0)):
        assert len(set(weights[numbers == 0])) == len(set(weights[numbers == 2])) == 1
        assert weights[0] + weights[2] + weights[3] == 3
