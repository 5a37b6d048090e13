"""Plain networks beside every run: attention pooling, and in detection a ranker of snippets.

A layer for each snippet, and then a clip is the mean of its snippets, weighed by learned attention
(Ilse et al., ICML 2018), or of its most anomalous sixteenth (multiple-instance ranking: Sultani et
al., CVPR 2018). Both see no order in time, and are trained in seconds. A sequence model that they
beat has learned too little.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from train.data import Clips
from train.fitting.memory import keep_memory, threads_for
from train.fitting.optimiser import AdamW
from train.losses import top_pool

Pooling = Literal["attention", "top"]
WIDTH = 64
STEPS = 1000
BATCH = 16  # clips
MOST_VALUES = 4e9  # that all steps of a network read: of large sets fewer steps are taken
MOST_AT_ONCE = 1e7  # values that a step reads, 40 MB: so many networks are trained side by side
MOST_KEPT = 1e8  # values of all clips that are kept in memory, 400 MB; else made anew each time
STARTS = 2  # of which the one with the lower training loss is kept: some find nothing
RATE = 2e-3


def dropout(shape: Sequence[int], rate: float) -> Tensor:
    """Return factors that drop values throughout a clip: one for each snippet takes far longer."""
    return (torch.rand(*shape) >= rate) / (1 - rate)


class Linears(nn.Module):
    """A linear layer for each of some networks side by side.

    Args:
        layers: these layers as they begin, all of one size.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        """Map (networks, ..., size) to (networks, ..., size of the outputs)."""
        result = torch.baddbmm(self.bias[:, None], x.flatten(1, -2), self.weight.mT)
        return result.view(*x.shape[:-1], -1)


class SnippetPooling(nn.Module):
    """Networks side by side, each of which predicts a class for each snippet, and for their clip.

    Args:
        size: values per snippet.
        num_classes: number of classes.
        pooling: what of the snippets speaks for the clip.
        seeds: of the weights that each network begins with.
    """

    def __init__(self, size: int, num_classes: int, pooling: Pooling, seeds: Sequence[int]) -> None:
        super().__init__()
        self.pooling = pooling
        layers = []
        for seed in seeds:
            torch.manual_seed(seed)
            sizes = ((size, WIDTH), (WIDTH, 1), (WIDTH, num_classes))
            layers.append([nn.Linear(*each) for each in sizes])
        self.embed, self.attention, self.leave = map(Linears, zip(*layers, strict=True))

    def forward(self, rows: Sequence[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of clips (networks, clips, classes) and snippets (..., classes, time).

        Args:
            rows: of each network (snippets, size), one clip after the other. They are what takes
                the time, and so they are not padded.
            mask: (networks, clips, time), true inside the clips.
        """
        layers = zip(rows, self.embed.weight, self.embed.bias, strict=True)
        embedded = torch.cat([F.linear(*own) for own in layers]).relu()
        hidden = torch.zeros(*mask.shape, WIDTH).index_put((mask,), embedded)
        if self.training:
            hidden = hidden * dropout((*mask.shape[:2], 1, WIDTH), 0.5)
        snippets = self.leave(hidden).mT
        if self.pooling == "top":
            top = top_pool(snippets.flatten(0, 1), mask.flatten(0, 1))
            return top.view(*mask.shape[:2], -1), snippets
        attention = self.attention(hidden).masked_fill(~mask[..., None], -float("inf"))
        return self.leave((attention.softmax(2).mT @ hidden).squeeze(2)), snippets


class PoolingBaselines:
    """Such networks, each trained on some of the clips.

    The values of a snippet are those of its streams and how they change; for ranking less their
    mean over the clip, as places differ more than what happens in them.

    Args:
        clips: features of all clips.
        targets: (clips,) class of each.
        known: of each network the indices of the clips to learn from.
        num_classes: number of classes.
        pooling: what of the snippets speaks for the clip.
        seed: of everything random.
    """

    def __init__(
        self,
        clips: Clips,
        targets: NDArray[np.int64],
        known: Sequence[NDArray[np.int64]],
        num_classes: int,
        pooling: Pooling,
        seed: int,
    ) -> None:
        keep_memory()
        self.clips, self.targets, self.known = clips, torch.from_numpy(targets), known
        self.centred = pooling == "top"
        self.mean, self.scale = self._moments()
        size = self.mean.shape[1]
        values = int(clips.lengths.sum()) * size
        self._table = cache(self._make_table) if values < MOST_KEPT else self._make_table
        self.batch = min(BATCH, *map(len, known))
        snippets = self.batch * float(np.median(clips.lengths[np.concatenate(known)]))
        self.steps = int(np.clip(MOST_VALUES / (snippets * size), STEPS / 10, STEPS))
        folds = np.repeat(np.arange(len(known)), STARTS)
        starts = np.tile(np.arange(seed, seed + STARTS), len(known))
        parts = max(1, round(len(folds) * snippets * size / MOST_AT_ONCE))
        losses, weights = [], []
        for some in np.array_split(np.arange(len(folds)), min(parts, len(folds))):
            self.network = SnippetPooling(size, num_classes, pooling, starts[some].tolist())
            with threads_for(len(some) * snippets):
                losses += self._train(folds[some], starts[some])
            state = self.network.state_dict()
            weights += [{n: w[[i]] for n, w in state.items()} for i in range(len(some))]
        best = np.reshape(losses, (-1, STARTS)).argmin(1)
        self.weights = [weights[STARTS * fold + start] for fold, start in enumerate(best)]

    @torch.no_grad()
    def predict(
        self, fold: int, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """Return probabilities (clips, classes), and of each clip's snippets (T, classes).

        Args:
            fold: number of the network.
            indices: the clips.
        """
        self.network.eval()
        found = [
            functional_call(
                self.network, self.weights[fold], self._batch([fold], indices[None, n : n + 1])
            )
            for n in range(len(indices))
        ]
        whole: NDArray[np.float32] = torch.cat([clip[0] for clip, _ in found]).softmax(1).numpy()
        return whole, [snippets[0, 0].softmax(0).T.numpy() for _, snippets in found]

    def _train(self, folds: NDArray[np.int64], seeds: NDArray[np.int64]) -> list[float]:
        """Train the networks; return the mean loss of each over the last tenth of all steps."""
        rngs = [np.random.default_rng(seed) for seed in seeds]
        optimiser = AdamW(self.network.parameters(), RATE, weight_decay=1e-2, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, RATE, total_steps=self.steps, pct_start=0.1
        )
        losses = []
        for _ in range(self.steps):
            chosen = np.stack(
                [
                    rng.choice(self.known[fold], self.batch, replace=False)
                    for rng, fold in zip(rngs, folds, strict=True)
                ]
            )
            logits, _ = self.network(*self._batch(folds, chosen))
            loss = F.cross_entropy(
                logits.mT, self.targets[chosen], label_smoothing=0.1, reduction="none"
            ).mean(1)
            optimiser.zero_grad()
            loss.sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            losses.append(loss.detach())
        found: list[float] = torch.stack(losses[-(self.steps // 10) :]).mean(0).tolist()
        return found

    def _batch(
        self, folds: Sequence[int] | NDArray[np.int64], chosen: NDArray[np.int64]
    ) -> tuple[list[Tensor], Tensor]:
        """Return the rows of each network's clips, and the mask (networks, clips, time).

        Values are standardised, and in training dropped out, where they are copied.

        Args:
            folds: of the networks.
            chosen: (networks, clips) indices of clips.
        """
        lengths = torch.from_numpy(self.clips.lengths[chosen])
        mask = torch.arange(int(lengths.max())) < lengths[..., None]
        factors = 1 / self.scale[folds][:, None].expand(-1, chosen.shape[1], -1)
        if self.network.training:
            factors = factors * dropout(factors.shape, 0.3)
        shifts = -self.mean[folds][:, None] * factors
        rows = []
        for indices, own, *moments in zip(chosen, lengths.tolist(), shifts, factors, strict=True):
            rows.append(torch.empty(sum(own), factors.shape[2]))
            places = torch.split(rows[-1], own)
            for index, place, shift, factor in zip(indices, places, *moments, strict=True):
                torch.addcmul(shift, self._table(index), factor, out=place)
        return rows, mask

    def _make_table(self, index: int) -> Tensor:
        """Return the values of a clip's snippets, (T, size)."""
        table = torch.from_numpy(self.clips.snippets(index))
        return table - table.mean(0) if self.centred else table

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Return what is taken from the snippets' values, and their deviation, (folds, size)."""
        found = {}
        for index in np.unique(np.concatenate(self.known)):
            variance, mean = torch.var_mean(
                torch.from_numpy(self.clips.snippets(int(index))), 0, correction=0
            )
            found[index] = mean, variance
        means, scales = [], []
        for known in self.known:
            mean = torch.from_numpy(self.clips.averages(known).mean(0))
            squares = [found[i][1] + (found[i][0] - mean) ** 2 for i in known]
            scales.append(torch.stack(squares).mean(0).sqrt().clamp(min=1e-6))
            means.append(torch.zeros_like(mean) if self.centred else mean)
        return torch.stack(means), torch.stack(scales)
