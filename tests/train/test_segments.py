"""Segments and alarms, by cases that can be counted by hand; intervals against plain resampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score

from manifests import Clip, Interval
from train.detection import _intervals
from train.segments import false_alarms, runs_above, segment_ap

HALF = 0.5  # seconds a snippet


def clip(name: str, *intervals: tuple[float, float]) -> Clip:
    return Clip(name, "x.mp4", ("a",), tuple(Interval(*i) for i in intervals))


def scores(text: str) -> np.ndarray:
    """A digit a snippet: tenths."""
    return np.array([int(c) / 10 for c in text], np.float32)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), st.floats(0, 1, width=32))
@settings(max_examples=60, deadline=None)
def test_runs_are_all_that_is_above(values: list[float], threshold: float) -> None:
    own = np.array(values, np.float32)
    inside = np.zeros(len(own), bool)
    for first, last in runs_above(own, threshold, HALF):
        assert first < last
        inside[round(first / HALF) : round(last / HALF)] = True
    assert (inside == (own >= np.float32(threshold))).all()


def test_a_perfect_detector_and_a_blind_one() -> None:
    clips = [clip("a", (1.0, 2.0), (4.0, 5.0)), clip("n")]
    perfect = [scores("0099000099"), scores("000000")]
    found = segment_ap(clips, perfect, HALF)
    assert found == {"0.1": 1, "0.2": 1, "0.3": 1, "0.4": 1, "0.5": 1, "mean": 1}
    wrong = segment_ap(clips, [scores("9900990000"), scores("000000")], HALF)
    assert wrong["mean"] == 0
    assert segment_ap([clip("n")], [scores("0123")], HALF)["mean"] is None


def test_a_false_segment_that_is_surer_costs_half() -> None:
    clips = [clip("a", (1.0, 2.0)), clip("n")]
    found = segment_ap(clips, [scores("005500"), scores("999000")], HALF)
    assert found["0.5"] == pytest.approx(0.5)  # the second of two is right


def test_half_an_overlap_counts_up_to_a_half() -> None:
    found = segment_ap([clip("a", (0.0, 2.0))], [scores("99000000")], HALF)
    assert [found[str(k)] for k in (0.1, 0.4, 0.5)] == [1, 1, 1]
    found = segment_ap([clip("a", (0.0, 2.5))], [scores("99000000")], HALF)
    assert [found[str(k)] for k in (0.1, 0.4, 0.5)] == [1, 1, 0]


def test_false_alarms_are_counted_at_the_recall_asked_for() -> None:
    clips = [clip("a", (0.0, 1.0), (3.0, 4.0)), clip("n")]
    said = [scores("80000060"), scores("07000500")]
    every = false_alarms(clips, said, HALF, recall=1.0)
    assert every["threshold"] == pytest.approx(0.6)
    assert every["recall"] == 1
    assert every["hours"] == pytest.approx(16 * HALF / 3600)
    assert every["per_hour"] == pytest.approx(1 / every["hours"])  # the 0.7
    half = false_alarms(clips, said, HALF, recall=0.5)
    assert (half["recall"], half["per_hour"]) == (0.5, 0)
    assert false_alarms([clip("n")], [scores("09")], HALF)["per_hour"] is None


def test_intervals_are_those_of_drawing_whole_clips_anew() -> None:
    rng = np.random.default_rng(0)
    truth = [(rng.random(40) < 0.3).astype(np.uint8) for _ in range(12)]
    # few levels, so that scores are tied within clips and between them
    said = [((t * 0.3 + rng.random(40)) * 8).round().astype(np.float32) for t in truth]
    found = _intervals(truth, said, seed=3)
    draws = []
    for chosen in np.random.default_rng(3).integers(0, 12, (200, 12)):
        real, own = (np.concatenate([x[i] for i in chosen]) for x in (truth, said))
        precision, recall, _ = precision_recall_curve(real, own)
        draws.append((auc(recall, precision), roc_auc_score(real, own)))
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    assert found["ap"] == pytest.approx([low[0], high[0]])
    assert found["roc_auc"] == pytest.approx([low[1], high[1]])
