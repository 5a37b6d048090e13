"""The linear term against the logistic regression that it is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_avarnet import SIZES, some_clip

from features import Features
from train.baselines.logistic import logistic
from train.config import Config
from train.data import Clips
from train.fitting.linear_fit import choose_factor, fit_linear_term
from train.fitting.trainer import SplitIndices, TrainingSet
from train.models.linear_term import LinearTerm
from train.models.network import AVARNet
from train.models.streams import totals_of

LOUD = np.float16([2, 0, -2])


def loud_clips(number: int, classes: int) -> tuple[dict[str, Features], np.ndarray]:
    """Return clips whose class is in their sound throughout; one in three has none."""
    rng = np.random.default_rng(0)
    targets = np.arange(number) % classes
    clips = {f"c{n}": some_clip(rng, 3 + n % 9) for n in range(number)}
    for (name, clip), target in zip(clips.items(), targets, strict=True):
        clip.streams["audio"][:] += LOUD * np.float16(target)
        clip.valid["audio"][:] = int(name[1:]) % 3 > 0
        clip.valid["video"][::4] = False
    return clips, targets


@pytest.mark.parametrize("classes", [2, 4])
def test_the_term_is_a_multiple_of_the_logistic_baseline(classes: int) -> None:
    features, targets = loud_clips(80, classes)
    features["short"] = some_clip(np.random.default_rng(1), 1)  # has no neighbours
    clips = Clips(features, list(features), list(SIZES), {})
    data = TrainingSet(clips, targets, classes, np.arange(80))
    term, train = LinearTerm(SIZES, classes), np.arange(60)
    fit_linear_term(term, data, SplitIndices(train, np.arange(60, 80)), 0.5, balanced=True)
    batch = clips.batch(np.arange(81))
    inside = {name: valid & batch.mask for name, valid in batch.valid.items()}
    with torch.no_grad():
        found = term(batch.streams, inside).numpy()
    regression = logistic(clips.averages(train, np.nan), targets[train], True)
    expected = regression.decision_function(clips.averages(np.arange(81), np.nan))
    if classes == 2:
        found, expected = found[:, 1:] - found[:, :1], expected[:, None]
    factor = found[0, 0] / expected[0, 0]
    assert 0.05 < factor <= 8
    assert found == pytest.approx(factor * expected, abs=1e-3)


def test_totals_of_pieces_are_those_of_the_whole() -> None:
    clip = some_clip(np.random.default_rng(0), 30)
    clip.valid["video"][[4, 9, 10]] = False
    batch = Clips({"c": clip}, ["c"], list(SIZES), {}).batch(np.array([0]))

    def of(first: int, last: int, before: int = 0) -> tuple[torch.Tensor, ...]:
        part = slice(first, last)
        rows = {name: x[:, part] for name, x in batch.streams.items()}
        return totals_of(rows, {name: x[:, part] for name, x in batch.valid.items()}, before)[
            "video"
        ]

    rows, valid = clip.streams["video"].astype(float), clip.valid["video"]
    both = valid[1:] & valid[:-1]
    expected = (
        rows[valid].sum(0),
        valid.sum(),
        np.abs(np.diff(rows, axis=0))[both].sum(0),
        both.sum(),
    )
    pieces = [of(0, 10), of(9, 11, 1), of(10, 30, 1)]
    for whole, value, *parts in zip(of(0, 30), expected, *pieces, strict=True):
        assert whole[0].numpy() == pytest.approx(value, rel=1e-5)
        assert sum(parts)[0].numpy() == pytest.approx(value, rel=1e-5)


def test_averages_that_tell_nothing_count_for_nothing() -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(60) % 3
    draws = rng.normal(size=(30, 60, 12)).astype(np.float32)
    found = [choose_factor(averages, targets, np.arange(60), 3, True) for averages in draws]
    assert np.count_nonzero(found) <= 4  # one in forty, were the errors normal


def test_what_only_tells_the_recording_counts_for_nothing() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 6)
    targets = (groups % 2).astype(int)
    averages = (rng.normal(size=(12, 20))[groups] + 0.1 * rng.normal(size=(72, 20))).astype("f4")
    assert choose_factor(averages, targets, groups, 2, True) == 0
    assert choose_factor(averages, targets, np.arange(72), 2, True) > 0


@pytest.mark.filterwarnings("error")
def test_a_value_that_no_clip_has_says_nothing() -> None:
    averages = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    targets = np.arange(20) % 2
    lacking = np.concatenate([averages, np.full((20, 1), np.nan, np.float32)], 1)
    model = logistic(lacking, targets, True)
    assert model[-1].coef_[0, 3] == 0
    other = np.nan_to_num(lacking, nan=7)
    assert (model.predict_proba(other) == model.predict_proba(lacking)).all()


@pytest.mark.parametrize("targets", [[0, 0, 0, 0, 0, 1], [0, 1, 2, 0, 1, 2], [0, 1] * 3])
def test_too_few_clips_to_know_count_for_nothing(targets: list[int]) -> None:
    averages = np.eye(6, dtype=np.float32)
    classes = max(targets) + 1
    groups = np.zeros(6, int) if classes == 2 else np.arange(6) // 5
    assert choose_factor(averages, np.array(targets), groups, classes, True) == 0


def test_only_recognition_of_whole_clips_has_the_term() -> None:
    def network(**settings: object) -> AVARNet:
        return AVARNet(SIZES, 2, Config(layers=2, channels=8, **settings))  # type: ignore[arg-type]

    assert network().linear_term is not None
    assert network(centred=False).receptive_field is None  # averages are of the whole clip
    for settings in ({"task": "detection"}, {"causal": True}, {"linear_term": False}):
        assert network(**settings).linear_term is None
