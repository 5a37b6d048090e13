"""Several models of one architecture that are trained as one, and steps that use two cores.

Small models leave a core idle between operations. Five folds of them in one stack, whose weights
are tensors with an additional first dimension, take little longer than one (`torch.func.vmap`).
Long clips keep a core busy; there the batch of a single model is read in two parts, in a thread
each: PyTorch's own threads share every single operation, and wait for each other hundreds of times
in a step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from train.config import Config
from train.data import Batch
from train.fitting.memory import FEW_SNIPPETS
from train.models.network import AVARNet
from train.models.random_numbers import drawing_from, seeds
from train.models.streams import Streams

STACKABLE_MODELS = ("mtcn", "tcn", "snippet_linear")
STACKABLE_FUSIONS = ("early", "gated", "late")


@dataclass(frozen=True)
class ModelBatch:
    """The clips of a step for each of some models; models with fewer clips have empty ones more.

    Attributes:
        inputs: (models, clips, time, features), what `Streams` gives.
        mask: (models, clips, time), true inside the clips.
        targets: (models, clips, classes), soft targets.
    """

    inputs: Tensor
    mask: Tensor
    targets: Tensor

    @classmethod
    def empty(
        cls, models: int, clips: int, time: int, features: int, classes: int, device: torch.device
    ) -> ModelBatch:
        """Return a batch whose `inputs` hold anything yet, and whose clips have no snippets."""
        return cls(
            torch.empty(models, clips, time, features, device=device),
            torch.zeros(models, clips, time, dtype=torch.bool, device=device),
            torch.zeros(models, clips, classes, device=device),
        )

    def fill(self, number: int, batch: Batch, targets: Tensor, streams: Streams) -> None:
        """Prepare the clips of one model where they will be read: a copy would be felt.

        Args:
            number: of the model.
            batch: its clips, no more and no longer than there is room.
            targets: (clips, classes) of these.
            streams: prepares them.
        """
        clips, time = batch.mask.shape
        own = self.inputs[number]
        streams(batch.streams, batch.valid, out=own[:clips, :time])
        own[:clips, time:] = 0
        own[clips:] = 0
        self.mask[number, :clips, :time] = batch.mask
        self.targets[number, :clips] = targets


def stackable(config: Config) -> bool:
    """Return whether torch can stack such models, and they draw as `random_numbers` has it."""
    return config.model in STACKABLE_MODELS and config.fusion in STACKABLE_FUSIONS


def stack_size(config: Config, models: int, snippets: float) -> int:
    """Return how many of some models are best trained at once.

    It depends on nothing but data and settings: the same command draws the same numbers on any
    machine.

    Args:
        config: settings.
        models: how many there are.
        snippets: of a step of one model.
    """
    return int(np.clip(FEW_SNIPPETS // snippets, 1, models)) if stackable(config) else 1


class ModelStack:
    """Models whose learned weights lie in one tensor for each weight, (models, ...).

    Args:
        models: the models as they begin.
        config: their settings.
        snippets: of a step of one model.

    Attributes:
        params: name -> (models, ...), what is learned.
        streams: of each model, which prepares its inputs.
        snippets: of a step of all models.
    """

    def __init__(self, models: Sequence[AVARNet], config: Config, snippets: float) -> None:
        self.streams = [model.streams for model in models]
        self.snippets = len(models) * snippets
        self.params, _ = stack_module_state([model.sequence_model for model in models])
        device = next(iter(self.params.values())).device
        in_parts = (
            len(models) == 1
            and self.snippets >= FEW_SNIPPETS
            and stackable(config)
            and device.type == "cpu"
        )
        # `functional_call` is for one thread at a time
        self._modules = [copy.deepcopy(models[0].sequence_model) for _ in range(1 + in_parts)]
        cores = torch.get_num_threads()
        self.threads = None
        if in_parts and cores > 1:
            self.threads = ThreadPoolExecutor(2, "step", torch.set_num_threads, (cores // 2,))
        self._shown = copy.deepcopy(models[0])

    def __len__(self) -> int:
        return len(self.streams)

    def forward(self, batch: ModelBatch) -> Tensor:
        """Return logits (models, stages, clips, classes, time)."""
        if len(self._modules) == 1 or batch.mask.shape[1] == 1:
            run = self.each(lambda *args: _logits(self._modules[0], *args))
            return run(self.params, batch.inputs, batch.mask)
        parts = _halves(batch.inputs[0], batch.mask[0])
        names = list(self.params)
        weights = (value[0] for value in self.params.values())
        logits: Tensor = _InParts.apply(self._run_part, names, parts, self.threads, *weights)
        return logits[None]

    def _run_part(self, number: int, params: dict[str, Tensor], *part: Tensor) -> Tensor:
        return _logits(self._modules[number], params, *part)

    def each(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Make a function of one model's tensors one of all models'."""
        if len(self) > 1:
            return vmap(function, randomness="different")

        def of_one(*stacked: Any) -> Tensor:  # needs no vmap
            return function(*torch.utils._pytree.tree_map(lambda x: x.squeeze(0), stacked))[None]

        return of_one

    def model(self, values: Mapping[str, Tensor], number: int) -> AVARNet:
        """Return one model with these `params`, in a network that the next call reuses."""
        self._shown.streams.load_state_dict(self.streams[number].state_dict())
        own = {name: value[number] for name, value in values.items()}
        self._shown.sequence_model.load_state_dict(own)
        return self._shown


def _logits(module: nn.Module, params: dict[str, Tensor], x: Tensor, mask: Tensor) -> Tensor:
    return cast(Tensor, functional_call(module, params, (x, mask)))


def _halves(inputs: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Cut clips in order of length into two parts that take equally long, with little padding."""
    longest = mask.sum(1).cummax(0).values.numpy()
    count = np.arange(1, len(longest))
    cut = 1 + int(np.argmin(np.maximum(count * longest[:-1], count[::-1] * longest[-1])))
    first, rest = longest[cut - 1], longest[-1]
    return [(inputs[:cut, :first], mask[:cut, :first]), (inputs[cut:, :rest], mask[cut:, :rest])]


class _InParts(torch.autograd.Function):
    """A function of parts of a batch, each in a thread of its own, and so are its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensor],
        names: list[str],
        parts: list[tuple[Tensor, ...]],
        threads: ThreadPoolExecutor | None,
        *weights: Tensor,
    ) -> Tensor:
        """Return function(number, params, *part) of each part, put together over the clips.

        Args:
            ctx: torch's.
            function: gives logits (stages, clips, classes, time).
            names: of the weights.
            parts: what it reads.
            threads: None does one part after the other, and draws the same random numbers.
            weights: what is learned.
        """

        def run(number: int, part: tuple[Tensor, ...], seed: int) -> tuple[list[Tensor], Tensor]:
            with torch.enable_grad(), drawing_from(seed):
                own = [weight.detach().requires_grad_() for weight in weights]
                return own, function(number, dict(zip(names, own, strict=True)), *part)

        ctx.map = threads.map if threads else map
        ctx.parts = list(ctx.map(run, range(len(parts)), parts, seeds(len(parts))))
        longest = max(logits.shape[-1] for _, logits in ctx.parts)
        return torch.cat(
            [F.pad(logits.detach(), (0, longest - logits.shape[-1])) for _, logits in ctx.parts], 1
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        def run(part: tuple[list[Tensor], Tensor], grad: Tensor) -> tuple[Tensor, ...]:
            own, logits = part
            return torch.autograd.grad(logits, own, grad[..., : logits.shape[-1]])

        clips = [logits.shape[1] for _, logits in ctx.parts]
        gradients, *others = ctx.map(run, ctx.parts, torch.split(grad, clips, 1))
        for other in others:
            gradients = torch._foreach_add(gradients, other)
        return None, None, None, None, *gradients
