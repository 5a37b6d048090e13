"""The multi-stage temporal convolutional network (MTCN) and the early fusion in front of it.

Structure of MS-TCN: Abu Farha and Gall, "MS-TCN: Multi-Stage Temporal Convolutional Network for
Action Segmentation", CVPR 2019 (arXiv 1903.01945). Early fusion as in AVAR-Net, arXiv 2510.13630.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pooling = Callable[[Tensor, Tensor], Tensor]  # (batch, classes, time), mask -> (batch, classes)


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
        numbers = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
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


def mtcn_loss(
    logits: Tensor,
    mask: Tensor,
    targets: Tensor,
    smoothing_weight: float = 0.15,
    smoothing_limit: float = 4.0,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    pooling: Pooling | None = None,
) -> Tensor:
    """Return the sum over stages of cross-entropy and truncated smoothing (MS-TCN, eq. 8 to 12).

    The class of the clip is the target of its pooled logits, see `pool`.

    Args:
        logits: (stages, batch, classes, time).
        mask: (batch, time).
        targets: (batch,) class of each clip.
        smoothing_weight: the paper's lambda.
        smoothing_limit: the paper's tau, where the change of a log-probability is cut off.
        class_weights: (classes,) or None.
        label_smoothing: share of the target spread over all classes.
        pooling: from a stage's logits to a clip's; `pool` if None.
    """
    pairs = (mask[:, 1:] & mask[:, :-1])[:, None]  # neighbours that are both in the clip
    total = logits.new_zeros(())
    for stage in logits:
        total = total + F.cross_entropy(
            (pooling or pool)(stage, mask), targets, class_weights, label_smoothing=label_smoothing
        )
        log_p = F.log_softmax(stage, dim=1)
        change = (log_p[:, :, 1:] - log_p[:, :, :-1].detach()).abs().clamp(max=smoothing_limit)
        count = (pairs.sum() * stage.shape[1]).clamp(min=1)
        total = total + smoothing_weight * (change.square() * pairs).sum() / count
    return total


def pool(logits: Tensor, mask: Tensor) -> Tensor:
    """Average (batch, classes, time) over each clip's snippets to (batch, classes)."""
    inside = mask[:, None].to(logits.dtype)
    return (logits * inside).sum(2) / inside.sum(2)


class EarlyFusion(nn.Module):
    """Standardises each stream, adds how it changes, and concatenates all of it snippet by snippet.

    What a frozen network says of a scene differs more between two places than between two events
    in one place; how much it changes from one snippet to the next says more of the event. So every
    stream x_t is accompanied by its change abs(x_t - x_(t-1)), as speech recognisers do with their
    delta features.

    A snippet for which a stream has nothing valid gets that stream's learned "absent" vector: a
    missing sound is not silence. In training, whole streams are hidden at random, so that a clip
    without sound is nothing unusual.

    Args:
        sizes: stream name -> values per snippet; their order is that of the concatenation.
        dropout: of single values, in training.
        stream_dropout: how often a stream of a clip is hidden, in training; never all of them.
    """

    def __init__(
        self, sizes: Mapping[str, int], dropout: float = 0.0, stream_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.out_features = 2 * sum(sizes.values())
        self.dropout = Dropout(dropout)
        self.stream_dropout = stream_dropout
        self.absent = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(2 * size)) for name, size in sizes.items()}
        )
        for name, size in sizes.items():
            for part in ("value", "change"):
                self.register_buffer(f"{name}_{part}_mean", torch.zeros(size))
                self.register_buffer(f"{name}_{part}_scale", torch.ones(size))

    @torch.no_grad()
    def standardise(self, name: str, values: Tensor, changes: Tensor) -> None:
        """Take mean and scale of a stream from the training clips.

        Args:
            name: the stream.
            values: (N, D) its valid rows.
            changes: (M, D) absolute differences of its valid neighbours.
        """
        for part, rows in (("value", values), ("change", changes)):
            if len(rows):
                scale = rows.double().std(0, unbiased=False)
                # a value that hardly ever varies carries noise only: do not blow it up
                floor = 1e-2 * scale.median() + 1e-6
                self.get_buffer(f"{name}_{part}_mean").copy_(rows.double().mean(0))
                self.get_buffer(f"{name}_{part}_scale").copy_(scale.clamp(min=floor))

    def forward(self, streams: Mapping[str, Tensor], valid: Mapping[str, Tensor]) -> Tensor:
        """Fuse the streams.

        Args:
            streams: name -> (batch, time, D).
            valid: name -> (batch, time), true where the stream has something to say.

        Returns:
            (batch, out_features, time).
        """
        parts = []
        hidden = self._hidden(next(iter(valid.values())))
        for number, name in enumerate(self.sizes):
            rows, there = streams[name].float(), valid[name]
            change = (rows[:, 1:] - rows[:, :-1]).abs()
            pair = (there[:, 1:] & there[:, :-1])[..., None]
            # where there is no neighbour before, the change is what it is on average: zero
            change = F.pad(self._scaled(name, "change", change) * pair, (0, 0, 1, 0))
            both = torch.cat([self._scaled(name, "value", rows), change], dim=2)
            if hidden is not None:
                there = there & ~hidden[:, number, None]
            parts.append(torch.where(there[..., None], self.dropout(both), self.absent[name]))
        return torch.cat(parts, dim=2).transpose(1, 2)

    def _scaled(self, name: str, part: str, rows: Tensor) -> Tensor:
        mean = self.get_buffer(f"{name}_{part}_mean")
        return (rows - mean) / self.get_buffer(f"{name}_{part}_scale")

    def _hidden(self, like: Tensor) -> Tensor | None:
        """Return (batch, streams), true where a clip's stream is hidden; None outside training."""
        if not self.training or self.stream_dropout == 0 or len(self.sizes) == 1:
            return None
        draw = torch.rand(len(like), len(self.sizes), device=like.device)
        hidden = draw < self.stream_dropout
        # hiding everything would teach nothing: the stream with the largest draw stays
        return hidden & (draw < draw.amax(1, keepdim=True))


class AVARNet(nn.Module):
    """Early fusion in front of an MTCN.

    Args:
        sizes: stream name -> values per snippet.
        num_classes: number of classes.
        stages, layers, channels, dropout, causal: of the `MTCN`.
        input_dropout, stream_dropout: of the `EarlyFusion`.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        num_classes: int,
        *,
        stages: int,
        layers: int,
        channels: int,
        dropout: float,
        input_dropout: float,
        stream_dropout: float,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fusion = EarlyFusion(sizes, input_dropout, stream_dropout)
        self.mtcn = MTCN(
            self.fusion.out_features, num_classes, stages, layers, channels, causal, dropout
        )

    def forward(
        self, streams: Mapping[str, Tensor], valid: Mapping[str, Tensor], mask: Tensor
    ) -> Tensor:
        """Return (stages, batch, num_classes, time); see `EarlyFusion` and `MTCN`."""
        logits: Tensor = self.mtcn(self.fusion(streams, valid), mask)
        return logits
