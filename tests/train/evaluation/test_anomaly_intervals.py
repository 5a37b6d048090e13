"""Intervals made of scores, and what chooses their settings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from train.evaluation.anomaly_intervals import Anomaly, Hysteresis

SCORES = st.lists(st.integers(0, 10), min_size=1, max_size=40)
CLASSES = ["cry", "normal", "siren"]


def probabilities(anomalous: list[int]) -> NDArray[np.float32]:
    """Of the three classes; what is no normal is twice as much a siren as a cry."""
    score = np.array(anomalous, np.float32) / 10
    return np.stack([score / 3, 1 - score, 2 * score / 3], axis=1)


def by_hand(scores: list[int], high: int, low: int, shortest: int) -> list[tuple[int, int]]:
    """Snippet by snippet, as one would tell it."""
    found, begin = [], None
    for at, score in enumerate([*scores, -1]):
        if begin is None and score >= low:
            begin = at
        if begin is not None and score < low:
            if max(scores[begin:at]) >= high and at - begin >= shortest:
                found.append((begin, at))
            begin = None
    return found


@given(SCORES, st.integers(1, 10), st.integers(0, 10), st.integers(1, 4))
def test_intervals_are_those_drawn_by_hand(
    scores: list[int], high: int, below: int, shortest: int
) -> None:
    low = max(1, high - below)
    settings = Hysteresis(high / 10 - 0.01, low / 10 - 0.01, shortest * 0.25)
    found = settings.find(probabilities(scores), CLASSES, "normal", 0.25)
    expected = by_hand(scores, high, low, shortest)
    assert [(a.start / 0.25, a.end / 0.25) for a in found] == expected
    assert all(anomaly.label == "siren" for anomaly in found)
    for anomaly, (first, last) in zip(found, expected, strict=True):
        assert anomaly.score == pytest.approx(max(scores[first:last]) / 10)


def test_the_class_of_an_interval_is_never_the_normal_one() -> None:
    found = Hysteresis(0.3, 0.3).find(
        np.array([[0.4, 0.6, 0.0]], np.float32), CLASSES, "normal", 1.0
    )
    assert found == [Anomaly(0.0, 1.0, "cry", pytest.approx(0.4))]


def test_settings_that_separate_the_clips_are_found() -> None:
    rng = np.random.default_rng(0)
    clips, anomalous = [], []
    for number in range(40):
        scores = rng.uniform(0, 0.3, 40).astype(np.float32)
        if number % 2:
            scores[10:18] = rng.uniform(0.5, 0.7, 8)
        else:
            scores[rng.integers(0, 40)] = 0.9  # a short flash is no event: length tells
        clips.append(scores)
        anomalous.append(bool(number % 2))
    settings, chosen = Hysteresis.choose(clips, anomalous, 0.25)
    assert chosen == {"clips": 40, "balanced_accuracy": 1.0}
    assert settings.shortest >= 0.5
    for scores, real in zip(clips, anomalous, strict=True):
        both = np.stack([1 - scores, scores], axis=1)
        found = settings.find(both, ["normal", "event"], "normal", 0.25)
        assert [(a.start, a.end) for a in found] == ([(2.5, 4.5)] if real else [])


def test_clips_of_one_kind_choose_nothing() -> None:
    settings, chosen = Hysteresis.choose([np.ones(3, np.float32)], [True], 0.25)
    assert settings == Hysteresis()
    assert chosen["balanced_accuracy"] is None
