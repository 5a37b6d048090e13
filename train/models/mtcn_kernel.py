"""The residual layers of the MTCN's stages in training: what `mtcn` says, in half the time.

It is where the time of training goes. Automatic gradients would pad and copy the three taps of each
layer; here each product reads, and adds to, the snippets alone that its tap sees. What a layer
passes on is written over instead of copied. What dropout keeps is drawn and held as bytes. Tests
hold results and gradients equal to those of the plain layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from train.models.random_numbers import dropout_mask

if TYPE_CHECKING:
    from train.models.mtcn import DilatedResidualLayer


def residual_layers(
    layers: Sequence[DilatedResidualLayer], x: Tensor, mask: Tensor, dropout: float
) -> Tensor:
    """Apply the layers of a stage, one after the other, as in training.

    Args:
        layers: of one stage.
        x: (batch, time, channels), zeros outside the clips.
        mask: (batch, time, 1), 1 where a layer may change x.
        dropout: rate, one that `dropout_mask` can draw.

    Returns:
        (batch, time, channels).
    """
    # time first: then the rows of all clips that one tap sees are one block
    x, mask = x.transpose(0, 1), mask.transpose(0, 1)
    time, batch, _ = x.shape
    offsets = [_taps(layer, batch) for layer in layers]
    weights = (
        tensor[None]
        for layer in layers
        for linear in (layer.dilated, layer.mix)
        for tensor in (linear.weight, linear.bias)
    )
    rows, inside = (tensor.flatten(0, 1)[None] for tensor in (x, mask))
    y, *_ = _ResidualLayers.apply(rows, inside, offsets, dropout, *weights)
    result: Tensor = y[0].view(time, batch, -1).transpose(0, 1)
    return result


def _taps(layer: DilatedResidualLayer, batch: int) -> range:
    """Return how many rows of (time x batch, channels) later the three taps of a layer see."""
    step = batch * layer.dilation
    return range(batch * layer.first, batch * layer.first + 3 * step, step)


class _ResidualLayers(torch.autograd.Function):
    """All residual layers of a stage with dropout, of several models, and their gradients."""

    @staticmethod
    def forward(
        x: Tensor, mask: Tensor, taps: list[range], rate: float, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """Map x (models, rows, channels); also return what the gradients need.

        Args:
            x: the snippets of all clips, the first of each, the second of each, and so on.
            mask: (models, rows, 1), 1 in clips.
            taps: of each layer, how many rows later its three taps see.
            rate: of dropout.
            weights: of each layer the weight and bias of `dilated` and of `mix`, of each model.
        """
        keep = dropout_mask(x.expand(len(taps), *x.shape), rate).mul_(mask.to(torch.uint8))
        inputs, hiddens = [], []
        for number, offsets in enumerate(taps):
            w1, b1, w2, b2 = weights[4 * number : 4 * number + 4]
            each = sorted(zip(offsets, w1.mT.chunk(3, 1), strict=True), key=lambda tap: abs(tap[0]))
            hidden = torch.baddbmm(b1[:, None], x, each[0][1])  # the tap that every row has
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
        outputs = _ResidualLayers.apply(*stacked)
        return tuple(output[:, None] for output in outputs), (0,) * len(outputs)


def _shifted(x: Tensor, offset: int) -> Tensor:
    """Return the rows of (models, rows, channels) that are `offset` later, or earlier."""
    return x[:, offset:] if offset >= 0 else x[:, :offset]
