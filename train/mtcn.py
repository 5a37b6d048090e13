"""The multi-stage temporal convolutional network (MTCN).

Structure of MS-TCN: Abu Farha and Gall, "MS-TCN: Multi-Stage Temporal Convolutional Network for
Action Segmentation", CVPR 2019 (arXiv 1903.01945).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """Sets values to zero with probability `rate`, rounded to 1/256, and scales up the others.

    torch's own draws one float for each value, on a CPU a quarter of all the time of training.
    Here one 64-bit number serves eight values, a byte for each.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = round(rate * 256) / 256

    def forward(self, x: Tensor) -> Tensor:
        """Return x with a new choice of values dropped; x itself outside training."""
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu":  # where torch's own is fast
            return F.dropout(x, self.rate)
        # x.new_empty and not torch.empty: under vmap, every model of a stack gets its own
        numbers = x.new_empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = numbers.view(torch.uint8)[: x.numel()].view(x.shape) >= self.rate * 256
        return x * kept / (1 - self.rate)


class DilatedResidualLayer(nn.Module):
    """H + W2 * ReLU(W1 * H), W1 of kernel 3 and dilation `dilation` (MS-TCN, eq. 1 and 2).

    The convolutions are matrix products over the channels, which come last: on a CPU twice as fast
    as torch's convolutions at these sizes.
    """

    def __init__(self, channels: int, dilation: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.dilation = dilation
        self.causal = causal
        self.dilated = nn.Linear(3 * channels, channels)  # the three taps, the earliest first
        self.mix = nn.Linear(channels, channels)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, time, channels) to the same shape; `mask` (batch, time, 1) is 1 in clips."""
        step, time = self.dilation, x.shape[1]
        before = 2 * step if self.causal else step
        # what lies outside the clip must be the zeros that a clip alone would see
        padded = F.pad(x * mask, (0, 0, before, 2 * step - before))
        taps = torch.cat([padded[:, tap * step :][:, :time] for tap in range(3)], dim=2)
        change: Tensor = self.dropout(self.mix(F.relu(self.dilated(taps))))
        return x + change


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
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(in_features, channels)
        self.layers = nn.ModuleList(
            DilatedResidualLayer(channels, 2**level, dropout, causal) for level in range(layers)
        )
        self.leave = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, time, in_features) to logits (batch, time, num_classes)."""
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x, mask)
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
            )
            for number in range(stages)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return every stage's logits.

        Args:
            x: (batch, in_features, time).
            mask: (batch, time), true where the clip is, false in its padding.

        Returns:
            (stages, batch, num_classes, time); what stands in the padding means nothing, and the
            padding has no influence on the rest.
        """
        inside = mask[..., None].to(x.dtype)
        logits = self.stages[0](x.transpose(1, 2), inside)
        outputs = [logits]
        for stage in self.stages[1:]:
            logits = stage(F.softmax(logits, dim=2), inside)
            outputs.append(logits)
        return torch.stack(outputs).transpose(2, 3)
