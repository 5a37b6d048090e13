"""The networks that pool snippets, trained side by side, against plain ones trained one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_avarnet import some_clip
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from train.baselines import snippet_pooling
from train.baselines.snippet_pooling import BATCH, RATE, STARTS, PoolingBaselines
from train.data import Clips

STEPS = 40
CLASSES = 2


class Plain:
    """One network of torch's layers, without dropout, trained as the baselines are."""

    def __init__(
        self,
        tables: list[Tensor],
        targets: NDArray[np.int64],
        known: NDArray[np.int64],
        top: bool,
        seed: int,
    ) -> None:
        self.top = top
        size = tables[0].shape[1]
        torch.manual_seed(seed)
        self.embed, self.attention = nn.Linear(size, 64), nn.Linear(64, 1)
        self.leave = nn.Linear(64, CLASSES)
        weights = [p for m in (self.embed, self.attention, self.leave) for p in m.parameters()]
        optimiser = torch.optim.AdamW(weights, RATE, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, RATE, total_steps=STEPS, pct_start=0.1
        )
        rng = np.random.default_rng(seed)
        loss = nn.CrossEntropyLoss(label_smoothing=0.1)
        losses = []
        for _ in range(STEPS):
            chosen = rng.choice(known, BATCH, replace=False)
            found = loss(self.clips([tables[i] for i in chosen]), torch.from_numpy(targets[chosen]))
            optimiser.zero_grad()
            found.backward()
            optimiser.step()
            schedule.step()
            losses.append(found.item())
        self.loss = float(np.mean(losses[-STEPS // 10 :]))

    def clips(self, tables: list[Tensor]) -> Tensor:
        """Return logits (clips, classes)."""
        hidden = self.embed(pad_sequence(tables, batch_first=True)).relu()
        found = []
        for own, table in zip(hidden, tables, strict=True):
            inside = own[: len(table)]
            if self.top:
                logits = self.leave(inside)
                most = (logits[:, 1] - logits[:, 0]).topk(len(table) // 16 + 1).indices
                found.append(logits[most].mean(0))
            else:
                found.append(self.leave(self.attention(inside).softmax(0).T @ inside)[0])
        return torch.stack(found)


@pytest.mark.parametrize("pooling", ["attention", "top"])
@pytest.mark.parametrize("at_once", [1e7, 1])
def test_networks_side_by_side_learn_what_each_learns_alone(
    pooling: Any, at_once: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snippet_pooling, "STEPS", STEPS)
    monkeypatch.setattr(snippet_pooling, "MOST_AT_ONCE", at_once)
    monkeypatch.setattr(snippet_pooling, "dropout", lambda shape, rate: torch.ones(*shape))
    rng = np.random.default_rng(0)
    targets = np.arange(40) % CLASSES
    features = {str(i): some_clip(rng, int(rng.integers(3, 40))) for i in range(40)}
    for number, (clip, label) in enumerate(zip(features.values(), targets, strict=True)):
        clip.streams["video"][:3] += 8 * label
        clip.valid["audio"][:] = number % 3 > 0
    clips = Clips(features, list(features), ["video", "audio"], {})
    folds = [np.arange(0, 30), np.arange(8, 40)]
    baselines = PoolingBaselines(clips, targets, folds, CLASSES, pooling, 5)
    for fold, known in enumerate(folds):
        mean = clips.averages(known).mean(0)
        tables = [clips.snippets(i) for i in range(40)]
        squares = [((tables[i] - mean) ** 2).mean(0) for i in known]
        scale = np.maximum(np.sqrt(np.mean(squares, 0)), 1e-6)
        less = [table.mean(0) if pooling == "top" else mean for table in tables]
        inputs = [torch.from_numpy((t - m) / scale) for t, m in zip(tables, less, strict=True)]
        plain = min(
            (Plain(inputs, targets, known, pooling == "top", 5 + n) for n in range(STARTS)),
            key=lambda one: one.loss,
        )
        held_out = np.setdiff1d(np.arange(40), known)
        whole, snippets = baselines.predict(fold, held_out)
        with torch.no_grad():
            expected = plain.clips([inputs[i] for i in held_out]).softmax(1)
            each = [plain.leave(plain.embed(inputs[i]).relu()).softmax(1) for i in held_out]
        assert np.ptp(expected[:, 0].numpy()) > 0.1  # it has learned something to be compared
        np.testing.assert_allclose(whole, expected, atol=1e-4)
        for found, own in zip(snippets, each, strict=True):
            np.testing.assert_allclose(found, own, atol=1e-4)


def test_dropout_keeps_the_mean_and_drops_throughout_a_clip() -> None:
    torch.manual_seed(0)
    factors = snippet_pooling.dropout((200, 1, 500), 0.3)
    assert factors.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert factors.mean().item() == pytest.approx(1, abs=0.01)
