"""From the streams of a clip to one sequence: how sound and picture are brought together.

`Streams` readies each stream; a fusion then maps these to one sequence. Early fusion
is AVAR-Net's (arXiv 2510.13630); the others are what it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.config import ATTENTION_HEADS
from train.models.random_numbers import drawable, kept, normal, uniform

Totals = Mapping[str, tuple[Tensor, Tensor]]  # stream -> sum (batch, D) and count (batch,) of rows
BOTTLENECKS = 4  # tokens through which the streams of a clip talk, as in the paper
ATTENTION_LAYERS = 2


class Streams(nn.Module):
    """Standardises each stream, adds how it changes and stands out, and says where it is absent.

    What a frozen network says of a scene differs more between two places than between two events
    in one place; how much it changes from one snippet to the next says more of the event. So every
    stream x_t is accompanied by its change abs(x_t - x_(t-1)), as speech recognisers do with their
    delta features, and by x_t less the mean of the clip: of all its valid rows, or, if causal, of
    those that came so far.

    In training the values themselves are often hidden throughout a clip, and the centred ones are
    moved by a random constant: few clips are soon told apart by their scenes, and where one event
    raises a clip's mean, all other rows are lowered by it. What must be learned is what happens.

    A snippet for which a stream has nothing valid is zeros and a last value of one: the weights by
    which the network reads that value are its learned "absent" vector, so a missing sound is not
    silence. In training, whole streams are hidden at random, so that a clip without sound is
    nothing unusual.

    Args:
        sizes: stream name -> values per snippet; their order is kept.
        dropout: of features, in training: how often one is zero throughout a clip.
        stream_dropout: how often a stream of a clip is hidden, in training; never all of them.
        centred: add the values less their clip's mean.
        causal: let no row see the future.
        scene_dropout: how often the values of a clip are hidden, in training.
        offset_noise: deviation of what is added to the centred values of a clip, in training.

    Attributes:
        out_sizes: values per snippet of each stream when it is ready: 2 D + 1, or 3 D + 1.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        dropout: float = 0.0,
        stream_dropout: float = 0.0,
        centred: bool = False,
        causal: bool = False,
        scene_dropout: float = 0.0,
        offset_noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.parts = ("value", "change", *(("centred",) if centred else ()))
        self.out_sizes = [len(self.parts) * size + 1 for size in sizes.values()]
        self.dropout = drawable(dropout)
        self.stream_dropout = stream_dropout
        self.centred, self.causal = centred, causal
        self.scene_dropout = scene_dropout if centred else 0.0
        self.offset_noise = offset_noise
        for name, size in sizes.items():
            for part in self.parts:
                self.register_buffer(f"{name}_{part}_mean", torch.zeros(size))
                self.register_buffer(f"{name}_{part}_scale", torch.ones(size))

    def standardise(self, name: str, moments: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Take mean and scale of a stream from the training clips.

        Args:
            name: the stream.
            moments: mean and standard deviation, (D,) each, of its ``value``, its ``change`` and
                its ``centred`` value.
        """
        for part in self.parts:
            if part not in moments:
                continue
            mean, scale = moments[part]
            # a value that hardly ever varies carries noise only: do not blow it up
            floor = 1e-2 * scale.median() + 1e-6
            self.get_buffer(f"{name}_{part}_mean").copy_(mean)
            self.get_buffer(f"{name}_{part}_scale").copy_(scale.clamp(min=floor))

    @torch.no_grad()
    def forward(
        self,
        streams: Mapping[str, Tensor],
        valid: Mapping[str, Tensor],
        totals: Totals | None = None,
    ) -> Tensor:
        """Ready the streams.

        Args:
            streams: name -> (batch, time, D).
            valid: name -> (batch, time), true where the stream has something to say.
            totals: where the rows are a stretch of a clip: sum and count of all its valid rows;
                if causal, of those before the stretch. See `totals_of`.

        Returns:
            (batch, time, sum of `out_sizes`), the streams side by side.
        """
        first = next(iter(streams.values()))
        hidden = self._hidden(first)
        ready = first.new_empty(*first.shape[:2], sum(self.out_sizes), dtype=torch.float32)
        parts = torch.split(ready, self.out_sizes, dim=2)
        scene = None
        if self.training and self.scene_dropout:
            scene = (uniform(len(first)) >= self.scene_dropout).to(first.device)[:, None, None]
        # every pass over values of this size is felt: they are written where they will be read
        for number, (name, size) in enumerate(self.sizes.items()):
            rows, there = streams[name].float(), valid[name]
            if hidden is not None:
                there = there & ~hidden[:, number, None]
            value, change, *more, absent = torch.split(
                parts[number], [*[size] * len(self.parts), 1], dim=2
            )
            self._scale(name, "value", rows, value)
            value[torch.where(~there)] = 0
            if scene is not None:
                value.mul_(scene)
            self._scale(name, "change", (rows[:, 1:] - rows[:, :-1]).abs_(), change[:, 1:])
            change[:, 1:][torch.where(~(there[:, 1:] & there[:, :-1]))] = 0
            # where there is no neighbour before, the change is what it is on average: zero
            change[:, 0] = 0
            if self.centred:
                centre = self._centre(rows, there, None if totals is None else totals[name])
                self._scale(name, "centred", rows - centre, more[0])
                more[0][torch.where(~there)] = 0
            absent.copy_(~there[..., None])
        return ready

    def _centre(self, rows: Tensor, there: Tensor, totals: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the mean of valid rows (batch, time, D): (batch, 1, D), if causal (.., time, D).

        A clip without a valid row has a mean of zero.
        """
        weight = there[..., None].float()
        known = torch.where(there[..., None], rows, 0.0)
        if self.causal:
            total, count = known.cumsum(1), weight.cumsum(1)
        else:
            total, count = known.sum(1, keepdim=True), weight.sum(1, keepdim=True)
        if totals is not None:
            others, number = totals[0][:, None], totals[1][:, None, None]
            total, count = (total + others, count + number) if self.causal else (others, number)
        return total / count.clamp(min=1)

    def _scale(self, name: str, part: str, rows: Tensor, out: Tensor) -> None:
        """Write (rows - mean) / scale of (batch, time, D), some features dropped in training."""
        scale = self.get_buffer(f"{name}_{part}_scale")
        rate = 1 / scale
        mean = self.get_buffer(f"{name}_{part}_mean")
        if self.training:
            if part == "centred" and self.offset_noise:
                drawn = normal(len(rows), 1, rows.shape[2]).to(rows.device)
                mean = mean + self.offset_noise * scale * drawn
            if self.dropout:
                rate = rate.expand(len(rows), 1, -1)
                rate = rate * kept(rate, self.dropout) / (1 - self.dropout)
        torch.addcmul(-mean * rate, rows, rate, out=out)

    def _hidden(self, like: Tensor) -> Tensor | None:
        """Return (batch, streams), true where a clip's stream is hidden; None outside training."""
        if not self.training or self.stream_dropout == 0 or len(self.sizes) == 1:
            return None
        draw = uniform(len(like), len(self.sizes)).to(like.device)
        hidden = draw < self.stream_dropout
        # hiding everything would teach nothing: the stream with the largest draw stays
        return hidden & (draw < draw.amax(1, keepdim=True))


def totals_of(streams: Mapping[str, Tensor], valid: Mapping[str, Tensor]) -> Totals:
    """Return sum (batch, D) and count (batch,) of the valid rows of each stream."""
    return {
        name: (
            torch.where(valid[name][..., None], rows.double(), 0.0).sum(1).float(),
            valid[name].sum(1).float(),
        )
        for name, rows in streams.items()
    }


class EarlyFusion(nn.Module):
    """Concatenation, snippet by snippet, which is how `Streams` gives them.

    Args:
        sizes: values per snippet of each stream, as `Streams` gives them.
        channels: width of what the other fusions give; not used.
        dropout: not used.
        causal: not used.

    Attributes:
        reach: how many snippets to each side decide on a row; None if all may.
    """

    reach = 0

    def __init__(
        self, sizes: Sequence[int], channels: int, dropout: float = 0.0, causal: bool = False
    ) -> None:
        super().__init__()
        self.out_features = sum(sizes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, time, sum of sizes) to (batch, time, out_features)."""
        return x


class GatedFusion(nn.Module):
    """A gate for each stream that all streams decide on: sum of sigmoid(V_i x) * tanh(W_i x_i).

    The gated multimodal unit of Arevalo et al. 2017 (arXiv 1702.01992). Args: as `EarlyFusion`'s.
    """

    reach = 0

    def __init__(
        self, sizes: Sequence[int], channels: int, dropout: float = 0.0, causal: bool = False
    ) -> None:
        super().__init__()
        self.sizes, self.out_features = list(sizes), channels
        self.values = nn.ModuleList(nn.Linear(size, channels) for size in sizes)
        self.gates = nn.Linear(sum(sizes), len(sizes) * channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, time, sum of sizes) to (batch, time, out_features)."""
        parts = torch.split(x, self.sizes, dim=2)
        values = torch.cat(
            [torch.tanh(layer(part)) for layer, part in zip(self.values, parts, strict=True)], 2
        )
        gated = torch.sigmoid(self.gates(x)) * values
        return gated.view(*mask.shape, len(parts), self.out_features).sum(2)


class CrossFusion(nn.Module):
    """Every stream asks the others: cross-attention over time, then concatenation.

    As in the cross-modal transformer of Tsai et al. 2019 (arXiv 1906.00295), one layer of it. With
    one stream alone, that attends to itself. Args: as `EarlyFusion`'s.
    """

    reach = None

    def __init__(
        self, sizes: Sequence[int], channels: int, dropout: float = 0.0, causal: bool = False
    ) -> None:
        super().__init__()
        self.sizes, self.out_features = list(sizes), channels * len(sizes)
        self.causal = causal
        self.enter = nn.ModuleList(nn.Linear(size, channels) for size in sizes)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in sizes)
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(channels, ATTENTION_HEADS, dropout, batch_first=True)
            for _ in sizes
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, time, sum of sizes) to (batch, time, out_features)."""
        parts = torch.split(x, self.sizes, dim=2)
        own = [layer(part) for layer, part in zip(self.enter, parts, strict=True)]
        time = mask.shape[1]
        ready = [
            norm(part) + positions(time, part) for norm, part in zip(self.norms, own, strict=True)
        ]
        ahead = future(time, mask) if self.causal else None
        result = []
        for number, attention in enumerate(self.attention):
            others = [part for other, part in enumerate(ready) if other != number] or ready
            heard = torch.cat(others, dim=1)
            outside = (~mask).repeat(1, len(others))
            unseen = ahead if ahead is None else ahead.repeat(1, len(others))
            answer, _ = attention(
                ready[number],
                heard,
                heard,
                key_padding_mask=outside,
                attn_mask=unseen,
                need_weights=False,
            )
            result.append(own[number] + answer)
        return torch.cat(result, dim=2)


class BottleneckFusion(nn.Module):
    """Streams that talk through a few tokens only: attention bottlenecks, then concatenation.

    Nagrani et al., NeurIPS 2021 (arXiv 2107.00135): in each layer every stream attends to itself
    and to the tokens, and the tokens that come out of the streams are averaged. The tokens see the
    whole clip, so there is no causal form. Args: as `EarlyFusion`'s.
    """

    reach = None

    def __init__(
        self, sizes: Sequence[int], channels: int, dropout: float = 0.0, causal: bool = False
    ) -> None:
        super().__init__()
        self.sizes, self.out_features = list(sizes), channels * len(sizes)
        self.enter = nn.ModuleList(nn.Linear(size, channels) for size in sizes)
        self.tokens = nn.Parameter(0.02 * torch.randn(BOTTLENECKS, channels))
        self.layers = nn.ModuleList(
            nn.ModuleList(encoder_layer(channels, dropout) for _ in sizes)
            for _ in range(ATTENTION_LAYERS)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, time, sum of sizes) to (batch, time, out_features)."""
        parts = torch.split(x, self.sizes, dim=2)
        time = mask.shape[1]
        rows = [layer(part) for layer, part in zip(self.enter, parts, strict=True)]
        rows = [part + positions(time, part) for part in rows]
        tokens = self.tokens.expand(len(mask), -1, -1)
        outside = F.pad(~mask, (0, BOTTLENECKS))
        for layers in self.layers:
            both = [
                layer(torch.cat([part, tokens], dim=1), src_key_padding_mask=outside)
                for layer, part in zip(cast(nn.ModuleList, layers), rows, strict=True)
            ]
            rows = [part[:, :time] for part in both]
            tokens = torch.stack([part[:, time:] for part in both]).mean(0)
        return torch.cat(rows, dim=2)


Fusion = EarlyFusion | GatedFusion | CrossFusion | BottleneckFusion
FUSIONS: dict[str, type[Fusion]] = {
    "early": EarlyFusion,
    "gated": GatedFusion,
    "cross": CrossFusion,
    "bottleneck": BottleneckFusion,
}


def positions(time: int, like: Tensor) -> Tensor:
    """Return (time, channels) sines and cosines (Vaswani et al. 2017, section 3.5)."""
    channels = like.shape[-1]
    rates = torch.exp(
        torch.arange(0, channels, 2, device=like.device) * (-math.log(10_000) / channels)
    )
    angles = torch.arange(time, device=like.device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :channels].to(like.dtype)


def future(time: int, like: Tensor) -> Tensor:
    """Return (time, time), true where a query may not look."""
    return torch.ones(time, time, dtype=torch.bool, device=like.device).triu(1)


def encoder_layer(channels: int, dropout: float) -> nn.TransformerEncoderLayer:
    """Return a layer of self-attention, normalised first, which small data train best."""
    return nn.TransformerEncoderLayer(
        channels, ATTENTION_HEADS, 2 * channels, dropout, batch_first=True, norm_first=True
    )
