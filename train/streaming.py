"""What a causal run predicts of a live stream, snippet by snippet."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.config import TrainError
from train.models.mtcn import MTCN
from train.models.mtcn_streaming import Memory, empty_memory, step
from train.models.network import AVARNet
from train.models.streams import StreamTotals, Totals
from train.run import Run

WINDOW = 240  # snippets that networks without a memory are shown again and again


class LiveScorer:
    """Scores one snippet after the other with all models of a causal run, averaged.

    Each prediction is the one that `Predictor` makes for the last snippet of all since the start.
    The layers of an MTCN or TCN remember what they need: a snippet costs the same however
    far they look back. An LSTM, a transformer or cross fusion looks back without end; it is shown
    the last `WINDOW` snippets, as if the stream had begun there.

    Args:
        run: trained with ``causal``.

    Raises:
        TrainError: the run is not causal, or its features cannot be extracted from a stream.
    """

    def __init__(self, run: Run) -> None:
        if not run.config.causal:
            raise TrainError(
                f"{run.path} is not causal: its predictions need what comes later, which a stream "
                "does not have yet; train one with 'avarnet train MANIFEST STORE RUN --causal'"
            )
        weights = {name: origin.get("weights") for name, origin in run.recipe.source.items()}
        imported = [name for name in run.config.streams if weights.get(name) == "imported"]
        if imported:
            raise TrainError(
                f"{run.path} reads features that were imported ({', '.join(imported)}), which "
                "cannot be extracted from a stream; train on a store that 'avarnet extract' made"
            )
        self.run = run
        self._models = run.all_models()
        # all are alike
        self._receptive_field = self._models[0].receptive_field_with_totals
        whole = self._models[0].sequence_model
        # each snippet is fused by itself, and read by layers that have a memory
        self._steps = all(isinstance(part, MTCN) for part in whole.models) and (
            whole.fusion is None or whole.fusion.receptive_field == 0
        )
        self.restart()

    def restart(self) -> None:
        """Forget what came so far: the next snippet is the first one after a gap."""
        # the change from one row to the next is a feature: stepping needs the row before
        before = 1 if self._steps else self._receptive_field
        self._past: deque[_Row] = deque(maxlen=WINDOW if before is None else 1 + before)
        # of the rows that are forgotten, which the mean so far goes on counting
        self._totals = {
            name: (np.zeros(size, np.float64), 0.0) for name, size in self.run.sizes.items()
        }
        self._memories = [
            [empty_memory(m) for m in model.sequence_model.models if isinstance(m, MTCN)]
            for model in self._models
        ]

    @torch.inference_mode()
    def __call__(
        self, rows: Mapping[str, NDArray[np.floating]], valid: Mapping[str, bool]
    ) -> NDArray[np.float32]:
        """Return the probabilities of the next snippet, (classes,).

        Args:
            rows: stream -> (D,); those that the run does not read are passed over.
            valid: stream -> whether it has something to say.
        """
        names = self.run.config.streams
        if len(self._past) == self._past.maxlen:
            gone = self._past[0]
            for name in names:
                if gone.valid[name]:
                    total, count = self._totals[name]
                    self._totals[name] = total + gone.values[name], count + 1
        self._past.append(
            _Row({name: rows[name] for name in names}, {name: valid[name] for name in names})
        )
        streams = {
            name: torch.from_numpy(np.stack([row.values[name] for row in self._past])[None]).float()
            for name in names
        }
        present = {name: torch.tensor([[row.valid[name] for row in self._past]]) for name in names}
        totals = {
            name: StreamTotals.of_values(torch.from_numpy(total)[None].float(), count)
            for name, (total, count) in self._totals.items()
        }
        logits = [
            _step(model, streams, present, totals, memories)
            if self._steps
            else _again(model, streams, present, totals)
            for model, memories in zip(self._models, self._memories, strict=True)
        ]
        average: NDArray[np.float32] = torch.stack(logits).softmax(1).mean(0).numpy()
        return average


class _Row(NamedTuple):
    values: dict[str, NDArray[np.floating]]
    valid: dict[str, bool]


def _step(
    model: AVARNet,
    streams: dict[str, Tensor],
    valid: dict[str, Tensor],
    totals: Totals,
    memories: list[Memory],
) -> Tensor:
    """Return the logits (classes,) of the last snippet alone."""
    sequence_model = model.sequence_model
    x = model.streams(streams, valid, totals)[:, -1:]
    now = torch.ones(1, 1, dtype=torch.bool)
    parts = (
        torch.split(x, sequence_model.sizes, dim=2)
        if sequence_model.fusion is None
        else [sequence_model.fusion(x, now)]
    )
    logits = [
        step(part, x[:, 0], memory)
        for part, x, memory in zip(sequence_model.models, parts, memories, strict=True)
        if isinstance(part, MTCN)
    ]
    return torch.stack(logits).mean(0)[0] / model.temperature


def _again(
    model: AVARNet, streams: dict[str, Tensor], valid: dict[str, Tensor], totals: Totals
) -> Tensor:
    """Return the logits (classes,) of the last snippet, after all before it once more."""
    logits: Tensor = model(streams, valid, torch.ones_like(next(iter(valid.values()))), totals)
    return logits[-1, 0, :, -1]
