"""Segments and alarms, by cases that can be counted by hand; intervals against plain resampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score

from manifests import Clip, Interval
from train.evaluation.alarms import false_alarms
from train.evaluation.curves import Ranking
from train.evaluation.frames import _intervals
from train.evaluation.segments import OVERLAPS, segment_figures, stretches_above

HALF = 0.5  # seconds a snippet


def clip(name: str, *intervals: tuple[float, float], labels: str = "a") -> Clip:
    return Clip(name, "x.mp4", tuple(labels), tuple(Interval(*i) for i in intervals))


def scores(text: str) -> np.ndarray:
    """A digit a snippet: tenths."""
    return np.array([int(c) / 10 for c in text], np.float32)


def segments(clips: list[Clip], predicted: list[np.ndarray]) -> dict[str, Any]:
    normal = [not one.intervals for one in clips]
    labels = {label for one in clips if one.intervals for label in one.labels}
    classes = {
        label: [k for k, one in enumerate(clips) if one.intervals and label in one.labels]
        for label in labels
    }
    return segment_figures(clips, predicted, HALF, classes, normal)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), st.floats(0, 1, width=32))
@settings(max_examples=60, deadline=None)
def test_stretches_are_all_that_is_above(values: list[float], threshold: float) -> None:
    own = np.array(values, np.float32)
    inside = np.zeros(len(own), bool)
    for first, last in stretches_above(own, threshold):
        assert first < last
        inside[first:last] = True
    assert (inside == (own >= np.float32(threshold))).all()


def test_a_perfect_detector_and_a_blind_one() -> None:
    clips = [clip("a", (1.0, 2.0), (4.0, 5.0)), clip("n")]
    perfect = segments(clips, [scores("0099000099"), scores("000000")])
    assert perfect["ap"] == {"0.1": 1, "0.2": 1, "0.3": 1, "0.4": 1, "0.5": 1, "mean": 1}
    assert segments(clips, [scores("9900990000"), scores("000000")])["ap"]["mean"] == 0
    none = segments([clip("n")], [scores("0123")])
    assert (none["ap"]["mean"], none["map"]["mean"], none["per_class"]) == (None, None, {})


def test_a_false_segment_that_is_surer_costs_half() -> None:
    clips = [clip("a", (1.0, 2.0)), clip("n")]
    found = segments(clips, [scores("005500"), scores("999000")])
    assert found["ap"]["0.5"] == pytest.approx(0.5)  # the second of two is right
    # as sure as the right one: they are one point of the curve, whichever clip comes first
    for order in (1, -1):
        found = segments(clips[::order], [scores("009900"), scores("999000")][::order])
        assert found["ap"]["0.5"] == pytest.approx(0.5)


def test_half_an_overlap_counts_up_to_a_half() -> None:
    found = segments([clip("a", (0.0, 2.0))], [scores("99000000")])["ap"]
    assert [found[str(k)] for k in (0.1, 0.4, 0.5)] == [1, 1, 1]
    found = segments([clip("a", (0.0, 2.5))], [scores("99000000")])["ap"]
    assert [found[str(k)] for k in (0.1, 0.4, 0.5)] == [1, 1, 0]


def test_an_anomaly_is_found_once() -> None:
    # of two segments in one anomaly the second is false, and the other anomaly is never found
    found = segments([clip("a", (0.0, 3.0), (5.0, 6.0))], [scores("990088000000")])["ap"]
    assert found["0.3"] == pytest.approx(0.5)


def test_each_class_is_judged_beside_the_normal_clips() -> None:
    clips = [
        clip("x", (1.0, 2.0), labels="x"),
        clip("y", (1.0, 2.0), labels="y"),
        clip("both", (0.0, 1.0), labels="xy"),
        clip("n"),
    ]
    found = segments(clips, [scores(x) for x in ("009900", "000022", "770000", "000880")])
    # of x: right, false (normal), right; of y: false (normal), right, false
    assert found["per_class"]["x"]["0.5"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["per_class"]["y"]["0.5"] == pytest.approx((1 / 2) / 2)
    assert found["map"]["0.5"] == pytest.approx((5 / 6 + 1 / 4) / 2)
    assert found["ap"]["0.5"] == pytest.approx((1 + 2 / 3) / 3)


@given(st.integers(0, 9999), st.booleans())
@settings(max_examples=40, deadline=None)
def test_of_one_class_map_is_ap_and_a_looser_overlap_finds_more(seed: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    clips, predicted = [], []
    for k in range(6):
        first = float(rng.integers(0, 10))
        clips.append(clip(str(k), *([(first, first + float(rng.integers(1, 6)))] * (k % 2))))
        predicted.append(rng.integers(0, 4 if tied else 999, 32).astype(np.float32))
    found = segments(clips, predicted)
    assert found["map"] == found["ap"] == pytest.approx(found["per_class"]["a"])
    values = [found["ap"][str(overlap)] for overlap in OVERLAPS]
    assert tied or values == sorted(values, reverse=True)
    turned = segments(clips[::-1], predicted[::-1])["ap"]
    assert turned == pytest.approx(found["ap"])


def test_false_alarms_are_counted_at_the_recall_asked_for() -> None:
    clips = [clip("a", (0.0, 1.0), (3.0, 4.0)), clip("n")]
    predicted = [scores("80000060"), scores("07000500")]
    every = false_alarms(clips, predicted, HALF, recall=1.0)
    assert every["threshold"] == pytest.approx(0.6)
    assert (every["asked"], every["recall"]) == (1, 1)
    assert every["hours"] == pytest.approx(12 * HALF / 3600)  # of 16 snippets 4 are anomalous
    assert every["per_hour"] == pytest.approx(1 / every["hours"])  # the 0.7
    half = false_alarms(clips, predicted, HALF, recall=0.5)
    assert (half["recall"], half["per_hour"]) == (0.5, 0)
    assert false_alarms([clip("n")], [scores("09")], HALF)["per_hour"] is None
    assert false_alarms([clip("a", (0.0, 1.0))], [scores("09")], HALF)["per_hour"] is None


def test_an_alarm_over_everything_is_not_right() -> None:
    """A minute with an anomaly from 12 s to 16 s: of six alarms of ten seconds five are false."""
    always = np.ones(120, np.float32)
    found = false_alarms([clip("a", (12.0, 16.0))], [always], HALF, recall=1.0)
    assert found["recall"] == 1
    assert found["per_hour"] == pytest.approx(5 / (56 / 3600))
    # and one that never ends is as often false where nothing happens
    found = false_alarms([clip("a", (0.0, 1.0)), clip("n")], [always[:2], always], HALF)
    assert found["per_hour"] == pytest.approx(6 / (60 / 3600))
    # a snippet that lasts longer than an alarm is one alarm
    found = false_alarms([clip("a", (0.0, 1.0))], [always[:3]], 30.0)
    assert found["per_hour"] == pytest.approx(2 / (60 / 3600))


@given(st.integers(0, 9999), st.floats(0.05, 1), st.floats(0.05, 1))
@settings(max_examples=60, deadline=None)
def test_to_notice_more_takes_a_lower_threshold(seed: int, one: float, other: float) -> None:
    rng = np.random.default_rng(seed)
    clips = [clip("a", (3.0, 7.2), (20.1, 21.0)), clip("b", (0.0, 30.0)), clip("n")]
    predicted = [rng.random(60).astype(np.float32) for _ in clips]
    less, more = (false_alarms(clips, predicted, HALF, recall) for recall in sorted((one, other)))
    assert less["threshold"] >= more["threshold"]
    for found, asked in ((less, min(one, other)), (more, max(one, other))):
        assert found["recall"] >= asked - 1e-9
        assert found["recall"] - asked < 1 / 3  # no more than it takes


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=9),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=150, deadline=None)
def test_areas_are_those_of_clips_repeated(clips: list[tuple[int, list[tuple[int, int]]]]) -> None:
    truth = [np.array([t for t, _ in frames], np.uint8) for _, frames in clips]
    predicted = [np.array([s for _, s in frames], np.float32) for _, frames in clips]
    times = np.array([count for count, _ in clips])
    found = Ranking(truth, predicted).areas(times)
    real, own = (np.concatenate([np.tile(x, n) for x, n in zip(y, times, strict=True)])
                 for y in (truth, predicted))  # fmt: skip
    if len(set(real.tolist())) < 2:
        assert np.isnan(found).all()
        return
    precision, recall, _ = precision_recall_curve(real, own)
    assert found == pytest.approx([auc(recall, precision), roc_auc_score(real, own)])


def test_intervals_are_those_of_drawing_whole_clips_anew() -> None:
    rng = np.random.default_rng(0)
    truth = [(rng.random(40) < 0.3).astype(np.uint8) for _ in range(12)]
    predicted = [((x * 0.3 + rng.random(40)) * 8).round().astype(np.float32) for x in truth]
    found = _intervals(truth, predicted, np.arange(12), seed=3)
    draws = []
    for chosen in np.random.default_rng(3).integers(0, 12, (1000, 12)):
        real, own = (np.concatenate([x[i] for i in chosen]) for x in (truth, predicted))
        draws.append(Ranking([real], [own]).areas(np.array([1])))
    value = Ranking(truth, predicted).areas(np.ones(12, int))
    wider = t.ppf(0.975, 11) / norm.ppf(0.975) * np.sqrt(12 / 11)  # as 12 recordings ask for
    low, high = value + wider * (np.percentile(draws, [2.5, 97.5], axis=0) - value)
    assert found["ap"] == pytest.approx([float(low[0]), float(high[0])])
    assert found["roc_auc"] == pytest.approx([low[1], high[1]])
