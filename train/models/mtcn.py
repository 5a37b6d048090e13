"""The multi-stage temporal convolutional network (MTCN).

Structure of MS-TCN: Abu Farha and Gall, "MS-TCN: Multi-Stage Temporal Convolutional Network for
Action Segmentation", CVPR 2019 (arXiv 1903.01945).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.models.mtcn_kernel import residual_layers
from train.models.random_numbers import drawable, dropout_mask


class DilatedResidualLayer(nn.Module):
    """H + W2 * ReLU(W1 * H), W1 of kernel 3 and dilation `dilation` (MS-TCN, eq. 1 and 2).

    The convolutions are matrix products over the channels, which come last: on a CPU twice as fast
    as torch's convolutions at these sizes.

    Args:
        channels: width.
        dilation: snippets between the three taps.
        causal: let the taps see the snippet and what came before, else both sides of it.
        dropout: rate, in training.

    Attributes:
        first: how many snippets later the earliest tap sees.
    """

    def __init__(self, channels: int, dilation: int, causal: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.dilation, self.dropout = dilation, dropout
        self.first = -2 * dilation if causal else -dilation
        self.dilated = nn.Linear(3 * channels, channels)  # the three taps, the earliest first
        self.mix = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, time, channels) to the same shape.

        Args:
            x: zeros outside the clips, as a clip alone would see; and so is what is returned.
            mask: (batch, time, 1), 1 inside the clips.
        """
        padded = F.pad(x, (0, 0, -self.first, self.first + 2 * self.dilation))
        taps = [padded[:, tap * self.dilation :][:, : x.shape[1]] for tap in range(3)]
        y = self.mix(F.relu(self.dilated(torch.cat(taps, dim=2))))
        return x + F.dropout(y, self.dropout, self.training) * mask


class Stage(nn.Module):
    """One stage: in to `channels`, dilated residual layers of dilation 2^l, out to the classes.

    Args:
        in_features: values per snippet.
        num_classes: number of classes.
        layers: how many; the last one's dilation is 2^(layers-1).
        channels: width of every layer.
        causal: let no output see the future.
        dropout: in every layer.
        context_dropout: how often a clip skips the layers, in training.
        scaled_context: see `MTCN`.

    Attributes:
        context_weight: of what the layers add, in prediction.
        fast: train with `mtcn_kernel`, whose results are those of the plain layers.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        layers: int,
        channels: int,
        causal: bool,
        dropout: float,
        context_dropout: float = 0.0,
        scaled_context: bool = True,
    ) -> None:
        super().__init__()
        self.dropout, self.context_dropout = drawable(dropout), drawable(context_dropout)
        self.context_weight = 1 - self.context_dropout if scaled_context else 1.0
        self.fast = True
        self.enter = nn.Linear(in_features, channels)
        self.layers = nn.ModuleList(
            DilatedResidualLayer(channels, 2**level, causal, self.dropout)
            for level in range(layers)
        )
        self.leave = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, time, in_features) to logits (batch, time, num_classes)."""
        entered = x = self.enter(x) * mask
        if self.training and self.context_dropout:
            mask = mask * dropout_mask(mask[:, :1], self.context_dropout)
        if self.training and self.fast:
            layers = cast(list[DilatedResidualLayer], list(self.layers))
            x = residual_layers(layers, x, mask, self.dropout)
        else:
            for layer in self.layers:
                x = layer(x, mask)
        return self.classify(entered, x)

    def classify(self, entered: Tensor, x: Tensor) -> Tensor:
        """Return the logits (..., num_classes).

        Args:
            entered: (..., channels), what the layers read.
            x: (..., channels), what they made of it.
        """
        if not self.training and self.context_weight != 1:
            x = torch.lerp(entered, x, self.context_weight)
        return cast(Tensor, self.leave(x))


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
        context_dropout: how often a clip skips the residual layers of a stage, in training: what is
            predicted of a snippet then rests on its own features alone.
        scaled_context: let what these layers add count in prediction as often as training has it,
            as in stochastic depth (Huang et al., ECCV 2016); in full if false.
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
        scaled_context: bool = True,
    ) -> None:
        super().__init__()
        rest = (num_classes, layers, channels, causal, dropout, context_dropout, scaled_context)
        sizes = [in_features] + [num_classes] * (stages - 1)
        self.stages = nn.ModuleList(Stage(size, *rest) for size in sizes)

    @property
    def receptive_field(self) -> int:
        """How many snippets to each side decide on a prediction; if causal, before it alone."""
        layers = (m for m in self.modules() if isinstance(m, DilatedResidualLayer))
        return sum(-layer.first for layer in layers)  # the latest tap sees no farther

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return every stage's logits.

        Args:
            x: (batch, in_features, time).
            mask: (batch, time), true where the clip is, false in its padding.

        Returns:
            (stages, batch, num_classes, time); what stands in the padding means nothing, and the
            padding has no influence on the rest.
        """
        x = x.transpose(1, 2)
        inside = mask[..., None].to(x.dtype)
        outputs = []
        for stage in self.stages:
            logits = stage(x, inside)
            outputs.append(logits)
            x = F.softmax(logits, dim=2)
        return torch.stack(outputs).transpose(2, 3)
