"""The multi-stage temporal convolutional network (MTCN).

Structure of MS-TCN: Abu Farha and Gall, "MS-TCN: Multi-Stage Temporal Convolutional Network for
Action Segmentation", CVPR 2019 (arXiv 1903.01945).
"""

from __future__ import annotations

from collections import deque
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.models.random_numbers import drawable, kept

Memory = list[list[deque[Tensor]]]  # of each stage, of each layer: its inputs so far


class DilatedResidualLayer(nn.Module):
    """H + W2 * ReLU(W1 * H), W1 of kernel 3 and dilation `dilation` (MS-TCN, eq. 1 and 2).

    The convolutions are matrix products over the channels, which come last: on a CPU twice as fast
    as torch's convolutions at these sizes. Time comes first, so that each tap is one block.
    """

    def __init__(self, channels: int, dilation: int, causal: bool) -> None:
        super().__init__()
        self.dilation = dilation
        self.first = -2 * dilation if causal else -dilation  # where the earliest tap looks
        self.dilated = nn.Linear(3 * channels, channels)  # the three taps, the earliest first
        self.mix = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (time, batch, channels) to the same shape; `mask` (time, batch, 1) is 1 in clips.

        What lies outside the clips must be zeros, as a clip alone would see, and is again. Dropout
        and training are `Stage`'s.
        """
        padded = F.pad(x, (0, 0, 0, 0, -self.first, self.first + 2 * self.dilation))
        taps = [padded[tap * self.dilation :][: x.shape[0]] for tap in range(3)]
        return cast(Tensor, x + self.mix(F.relu(self.dilated(torch.cat(taps, dim=2)))) * mask)

    def taps(self, batch: int) -> range:
        """Return how many rows of (time x batch, channels) later the three taps look."""
        step = batch * self.dilation
        return range(batch * self.first, batch * self.first + 3 * step, step)

    def step(self, x: Tensor, past: deque[Tensor]) -> Tensor:
        """Map the next snippet alone, (batch, channels), where the layer is causal.

        `past` are the inputs before it, as many as the earliest tap looks back; it is moved on.
        """
        taps = [past[0], past[self.dilation], x]
        past.append(x)
        return cast(Tensor, x + self.mix(F.relu(self.dilated(torch.cat(taps, dim=1)))))


class _Trained(torch.autograd.Function):
    """All `DilatedResidualLayer`s of a stage, with dropout, and their gradients by hand.

    It is where the time of training goes. Automatic gradients would pad and copy the three taps;
    here each product reads and adds to those snippets alone that its tap sees. And what a layer
    passes on is not copied, as nobody else has it.
    """

    @staticmethod
    def forward(
        x: Tensor, mask: Tensor, taps: list[range], rate: float, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """Map x (models, rows, channels); also return what the gradients need.

        Args:
            x: the snippets of all clips, the first of each, the second of each, and so on.
            mask: (models, rows, 1), 1 in clips.
            taps: of each layer, how many rows later its three taps look.
            rate: of dropout.
            weights: of each layer the weight and bias of `dilated` and of `mix`, of each model.
        """
        keep = kept(x.expand(len(taps), *x.shape), rate).mul_(mask.to(torch.uint8))
        inputs, hiddens = [], []
        for number, offsets in enumerate(taps):
            w1, b1, w2, b2 = weights[4 * number : 4 * number + 4]
            each = sorted(zip(offsets, w1.mT.chunk(3, 1), strict=True), key=lambda tap: abs(tap[0]))
            hidden = torch.baddbmm(b1[:, None], x, each[0][1])  # of the tap that looks at all
            for offset, weight in each[1:]:
                _shifted(hidden, -offset).baddbmm_(_shifted(x, offset), weight)
            hidden.relu_()
            y = torch.baddbmm(b2[:, None], hidden, w2.mT)
            inputs.append(x)
            hiddens.append(hidden)
            x = torch.addcmul(x, y, keep[number].to(x.dtype), value=1 / (1 - rate))
        return x, keep.movedim(0, 1), *inputs[1:], *hiddens

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, _, ctx.taps, ctx.rate, *weights = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # or zeros as large as these are filled in for them
        ctx.save_for_backward(output[1], x, *output[2:], *weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        keep, *saved = ctx.saved_tensors
        count = len(ctx.taps)
        inputs, hiddens, weights = saved[:count], saved[count : 2 * count], saved[2 * count :]
        of_x = grad.clone(memory_format=torch.contiguous_format)  # which then is written over
        of_weights: list[Tensor] = []
        for number in reversed(range(count)):
            x, hidden = inputs[number], hiddens[number]
            w1, _, w2, _ = weights[4 * number : 4 * number + 4]
            of_y = keep[:, number].to(x.dtype).mul_(of_x).div_(1 - ctx.rate)
            of_w2 = of_y.mT @ hidden
            of_hidden = of_y @ w2
            torch.ops.aten.threshold_backward.grad_input(of_hidden, hidden, 0, grad_input=of_hidden)
            of_w1 = torch.empty_like(w1)
            each = zip(ctx.taps[number], w1.chunk(3, 2), of_w1.chunk(3, 2), strict=True)
            for offset, weight, of_weight in each:
                seen, seeing = _shifted(x, offset), _shifted(of_hidden, -offset)
                of_weight.copy_(seeing.mT @ seen)
                _shifted(of_x, offset).baddbmm_(seeing, weight)
            of_weights = [of_w1, of_hidden.sum(1), of_w2, of_y.sum(1), *of_weights]
        return of_x, None, None, None, *of_weights

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        """Put the models of a `torch.vmap` into the first dimension."""
        stacked = [
            arg
            if not isinstance(arg, Tensor)
            else arg.repeat(info.batch_size, *[1] * (arg.dim() - 1))
            if dim is None
            else arg.movedim(dim, 0).flatten(0, 1)
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        outputs = _Trained.apply(*stacked)
        return tuple(output[:, None] for output in outputs), (0,) * len(outputs)


def _shifted(x: Tensor, offset: int) -> Tensor:
    """Return the rows of (models, rows, channels) that there are `offset` later, or earlier."""
    return x[:, offset:] if offset >= 0 else x[:, :offset]


class Stage(nn.Module):
    """One stage: in to `channels`, dilated residual layers of dilation 2^l, out to the classes."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        layers: int,
        channels: int,
        dropout: float,
        causal: bool,
        context_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(in_features, channels)
        self.layers = nn.ModuleList(
            DilatedResidualLayer(channels, 2**level, causal) for level in range(layers)
        )
        self.leave = nn.Linear(channels, num_classes)
        self.dropout, self.context_dropout = drawable(dropout), drawable(context_dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (time, batch, in_features) to logits (time, batch, num_classes)."""
        return self.refine(self.enter(x), mask)

    def refine(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (time, batch, channels) to logits (time, batch, num_classes)."""
        x = x * mask
        if self.training:
            layers = cast(list[DilatedResidualLayer], list(self.layers))
            taps = [layer.taps(x.shape[1]) for layer in layers]
            weights = (
                tensor[None]
                for layer in layers
                for linear in (layer.dilated, layer.mix)
                for tensor in (linear.weight, linear.bias)
            )
            if self.context_dropout:
                mask = mask * kept(mask[:1], self.context_dropout)
            flat = (tensor.flatten(0, 1)[None] for tensor in (x, mask))
            y, *_ = _Trained.apply(*flat, taps, self.dropout, *weights)
            x = y[0].view_as(x)
        else:
            for layer in self.layers:
                x = layer(x, mask)
        logits: Tensor = self.leave(x)
        return logits

    def step(self, x: Tensor, past: list[deque[Tensor]]) -> Tensor:
        """Map the next snippet alone, (batch, in_features), to its logits; see `MTCN.step`."""
        x = self.enter(x)
        for layer, before in zip(self.layers, past, strict=True):
            x = cast(DilatedResidualLayer, layer).step(x, before)
        logits: Tensor = self.leave(x)
        return logits


class MTCN(nn.Module):
    """Multi-stage temporal convolutional network.

    The first stage reads the features, each later one the class probabilities of the one before.

    Args:
        in_features: values per snippet.
        num_classes: number of classes.
        stages: number of stages.
        layers: dilated layers per stage; the last one's dilation is 2^(layers-1).
        channels: width of every layer.
        causal: let no output see the future.
        dropout: in every residual layer.
        context_dropout: how often a clip skips the residual layers of a stage, in training: a
            snippet's answer is then made of its own features.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        stages: int = 4,
        layers: int = 10,
        channels: int = 64,
        causal: bool = False,
        dropout: float = 0.5,
        context_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            Stage(
                in_features if number == 0 else num_classes,
                num_classes,
                layers,
                channels,
                dropout,
                causal,
                context_dropout,
            )
            for number in range(stages)
        )

    @property
    def reach(self) -> int:
        """How many snippets to each side decide on an answer; if causal, before it alone."""
        layers = (m for m in self.modules() if isinstance(m, DilatedResidualLayer))
        return sum(-layer.first for layer in layers)  # the earliest tap looks as far as the latest

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return every stage's logits.

        Args:
            x: (batch, in_features, time).
            mask: (batch, time), true where the clip is, false in its padding.

        Returns:
            (stages, batch, num_classes, time); what stands in the padding means nothing, and the
            padding has no influence on the rest.
        """
        inside = mask.T[..., None].to(x.dtype)
        first, *others = cast(list[Stage], list(self.stages))
        # the features are read as they lie in memory; only what comes of them is turned
        entered = first.enter(x.transpose(1, 2)).transpose(0, 1).contiguous()
        logits = first.refine(entered, inside)
        outputs = [logits]
        for stage in others:
            logits = stage(F.softmax(logits, dim=2), inside)
            outputs.append(logits)
        return torch.stack(outputs).permute(0, 2, 3, 1)

    def memory(self) -> Memory:
        """Return what `step` needs before a stream's first snippet: zeros, as `forward` has."""
        return [
            [
                deque([torch.zeros(1, layer.mix.in_features)] * -layer.first, -layer.first)
                for layer in cast(list[DilatedResidualLayer], list(stage.layers))
            ]
            for stage in cast(list[Stage], list(self.stages))
        ]

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        """Return the last stage's logits (1, num_classes) for the next snippet (1, in_features).

        They are those of `forward` over all snippets so far, if the network is causal, in a time
        that does not grow with how far it looks back. `memory` is moved on by one snippet.
        """
        first, *others = cast(list[Stage], list(self.stages))
        logits = first.step(x, memory[0])
        for stage, past in zip(others, memory[1:], strict=True):
            logits = stage.step(F.softmax(logits, dim=1), past)
        return logits
