"""Stacks and steps in two parts train as single models in whole steps do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_avarnet import SIZES, some_clip

from train.config import Config
from train.data import Clips
from train.fitting.restarts import fit
from train.fitting.trainer import SplitIndices, Trainer, TrainingSet


@pytest.mark.parametrize("model", ["mtcn", "tcn", "snippet_linear"])
@pytest.mark.parametrize("fusion", ["early", "gated", "late"])
def test_a_stack_trains_each_model_as_if_alone(model: str, fusion: str) -> None:
    """Nothing random here: the stack and its members must agree step by step."""
    rng = np.random.default_rng(0)
    clips = {f"c{n}": some_clip(rng, 5 + n % 3) for n in range(24)}
    data = Clips(clips, list(clips), list(SIZES), {})
    config = Config(
        model=model, fusion=fusion, stages=2, layers=2, channels=8, dropout=0, input_dropout=0,
        stream_dropout=0, snippet_dropout=0, scene_dropout=0, offset_noise=0, time_warp=1,
        epochs=1, batch_size=24, starts=1,
    )  # fmt: skip
    targets = np.arange(24) % 3
    training_set = TrainingSet(data, targets, 3, np.arange(len(targets)))
    splits = [
        SplitIndices(np.arange(6, 24), np.arange(6)), SplitIndices(np.arange(18), np.arange(18, 24))
    ]  # fmt: skip
    together = fit(training_set, splits, 0, config, torch.device("cpu"))
    first = fit(training_set, splits[:1], 0, config, torch.device("cpu"))
    for (ours, history), (alone, expected) in zip(together[:1], first, strict=True):
        assert [e.train_loss for e in history] == pytest.approx(
            [e.train_loss for e in expected], rel=1e-4
        )
        for name, value in alone.state_dict().items():
            assert torch.allclose(ours.state_dict()[name], value, atol=1e-4), name
    assert together[0][1] != together[1][1]


@pytest.mark.parametrize("fusion", ["early", "gated", "late"])
def test_a_step_in_two_parts_is_the_whole_step(
    fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing random here: padding, the loss and its gradients must not show where it was cut."""
    config = Config(
        fusion=fusion, stages=2, layers=2, channels=8, dropout=0, input_dropout=0,
        stream_dropout=0, snippet_dropout=0, scene_dropout=0, offset_noise=0, time_warp=1,
        batch_size=9,
    )  # fmt: skip
    losses, weights = [], []
    for few in (10**9, 1):
        monkeypatch.setattr("train.fitting.model_stack.FEW_SNIPPETS", few)
        trainer = trainer_of(config)
        assert len(trainer.stack._modules) == (1 if few > 1 else 2)
        losses.append([float(trainer.step(indices)) for indices in np.arange(18).reshape(2, 1, 9)])
        weights.append(trainer.stack.params)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-5), name


def test_threads_do_not_change_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.fitting.model_stack.FEW_SNIPPETS", 1)
    config = Config(stages=2, layers=2, channels=8, stream_dropout=0.3, time_mask=0.3, batch_size=9)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            trainer = trainer_of(config)
            assert (trainer.stack.threads is None) == (threads == 1)
            found.append([trainer.step(indices) for indices in np.arange(18).reshape(2, 1, 9)])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def trainer_of(config: Config) -> Trainer:
    rng = np.random.default_rng(0)
    clips = {f"c{n}": some_clip(rng, 5 + n % 7) for n in range(24)}
    data = TrainingSet(
        Clips(clips, list(clips), list(SIZES), {}), np.arange(24) % 3, 3, np.arange(24)
    )
    splits = [SplitIndices(np.arange(6, 24), np.arange(6))]
    return Trainer(data, splits, 0, config, torch.device("cpu"))
