"""Plain networks beside every run: attention pooling, and in detection a ranker of snippets.

A layer for each snippet, and then a clip is the mean of its snippets, weighed by learned attention
(Ilse et al., ICML 2018), or of its most anomalous sixteenth (multiple-instance ranking: Sultani et
al., CVPR 2018). Both see no order in time, and are trained in seconds. A sequence model that they
beat has learned too little.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from train.data import Clips
from train.fitting.memory import threads_for
from train.losses import top_pool

Pooling = Literal["attention", "top"]
WIDTH = 64
STEPS = 1000
BATCH = 16  # clips
MOST_VALUES = 4e9  # that all steps read together: of large sets fewer steps are taken
MOST_KEPT = 1e8  # values of all clips that are kept in memory, 400 MB; else made anew each time
STARTS = 2  # of which the one with the lower training loss is kept: some find nothing
RATE = 2e-3


class ClipDropout(nn.Module):
    """Dropout of values throughout a clip: torch's own, of each snippet, takes most of the time."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (clips, time, size) to the same shape."""
        if not self.training:
            return x
        return x * ((torch.rand(len(x), 1, x.shape[2]) >= self.rate) / (1 - self.rate))


class SnippetPooling(nn.Module):
    """Predicts a class for each snippet, and for their clip.

    Args:
        size: values per snippet.
        num_classes: number of classes.
        pooling: what of the snippets speaks for the clip.
    """

    def __init__(self, size: int, num_classes: int, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling
        self.embed = nn.Sequential(ClipDropout(0.3), nn.Linear(size, WIDTH), nn.ReLU())
        self.dropout = ClipDropout(0.5)
        self.attention = nn.Linear(WIDTH, 1)
        self.leave = nn.Linear(WIDTH, num_classes)

    def forward(self, rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of clips (clips, classes) and of their snippets (clips, classes, time).

        Args:
            rows: (clips, time, size).
            mask: (clips, time), true inside the clips.
        """
        hidden = self.dropout(self.embed(rows))
        snippets = self.leave(hidden).transpose(1, 2)
        if self.pooling == "top":
            return top_pool(snippets, mask), snippets
        attention = self.attention(hidden).masked_fill(~mask[..., None], -float("inf"))
        return self.leave((attention.softmax(1) * hidden).sum(1)), snippets


class PoolingBaseline:
    """Such a network, trained on some clips.

    The values of a snippet are those of its streams and how they change; for ranking less their
    mean over the clip, as places differ more than what happens in them.

    Args:
        clips: features of all clips.
        targets: (clips,) class of each.
        known: indices of those to learn from.
        num_classes: number of classes.
        pooling: what of the snippets speaks for the clip.
        seed: of everything random.
    """

    def __init__(
        self,
        clips: Clips,
        targets: NDArray[np.int64],
        known: NDArray[np.int64],
        num_classes: int,
        pooling: Pooling,
        seed: int,
    ) -> None:
        self.clips, self.centred = clips, pooling == "top"
        self.mean, self.scale = self._moments(known)
        values = int(clips.lengths.sum()) * len(self.mean)
        self._table = cache(self._make_table) if values < MOST_KEPT else self._make_table
        found = []
        with threads_for(BATCH * float(np.median(clips.lengths[known]))):
            for start in range(seed, seed + STARTS):
                torch.manual_seed(start)
                model = SnippetPooling(len(self.mean), num_classes, pooling)
                found.append((self._train(model, targets, known, start), model))
        _, self.model = min(found, key=lambda pair: pair[0])

    @torch.no_grad()
    def predict(
        self, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """Return probabilities (clips, classes), and of each clip's snippets (T, classes)."""
        self.model.eval()
        found = [self.model(*self._batch(indices[n : n + 1])) for n in range(len(indices))]
        whole: NDArray[np.float32] = torch.cat([clip for clip, _ in found]).softmax(1).numpy()
        return whole, [snippets[0].softmax(0).T.numpy() for _, snippets in found]

    def _train(
        self,
        model: SnippetPooling,
        targets: NDArray[np.int64],
        known: NDArray[np.int64],
        seed: int,
    ) -> float:
        """Train a network; return its mean loss over the last tenth of all steps."""
        rng = np.random.default_rng(seed)
        size = min(BATCH, len(known))
        values = size * float(np.median(self.clips.lengths[known])) * len(self.mean)
        steps = int(np.clip(MOST_VALUES / values, STEPS / 10, STEPS))
        optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, RATE, total_steps=steps, pct_start=0.1
        )
        labels = torch.from_numpy(targets)
        losses = []
        for _ in range(steps):
            chosen = rng.choice(known, size, replace=False)
            logits, _ = model(*self._batch(chosen))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        return float(np.mean(losses[-(steps // 10) :]))

    def _batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return rows (clips, time, size) and mask (clips, time) of some clips."""
        tables = [self._table(int(index)) for index in indices]
        rows = nn.utils.rnn.pad_sequence(tables, batch_first=True)
        lengths = torch.tensor([len(table) for table in tables])
        return rows, torch.arange(rows.shape[1])[None] < lengths[:, None]

    def _make_table(self, index: int) -> Tensor:
        """Return the standardised values of a clip's snippets, (T, size)."""
        table = self.clips.snippets(index)
        mean = table.mean(0) if self.centred else self.mean
        return torch.from_numpy((table - mean) / self.scale)

    def _moments(self, known: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and deviation of the snippets' values, (size,) each."""
        mean = self.clips.averages(known).mean(0)
        square = np.mean(
            [((self.clips.snippets(int(i)) - mean) ** 2).mean(0) for i in known], axis=0
        )
        return mean, np.maximum(np.sqrt(square), 1e-6).astype(np.float32)
