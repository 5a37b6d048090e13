"""From the streams of a clip to one sequence: how sound and picture are brought together.

Each fusion maps the streams that `Streams` has prepared to one sequence. Early fusion is AVAR-Net's
(arXiv 2510.13630); the others are what it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.config import ATTENTION_HEADS

BOTTLENECKS = 4  # tokens through which the streams of a clip talk, as its authors take
ATTENTION_LAYERS = 2


class EarlyFusion(nn.Module):
    """Concatenation, snippet by snippet, which is how `Streams` gives them.

    Args:
        sizes: values per snippet of each stream, as `Streams` gives them.
        channels: width of what the other fusions give; not used.
        dropout: not used.
        causal: not used.

    Attributes:
        receptive_field: how many snippets to each side decide on a row; None if all may.
    """

    receptive_field = 0

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

    The gated multimodal unit of Arevalo et al. 2017 (arXiv 1702.01992).

    Args:
        sizes: values per snippet of each stream, as `Streams` gives them.
        channels: values per snippet of the fused sequence.
        dropout: not used.
        causal: not used; each snippet is fused by itself.
    """

    receptive_field = 0

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
    one stream alone, that attends to itself.

    Args:
        sizes: values per snippet of each stream, as `Streams` gives them.
        channels: width of each stream's attention.
        dropout: of attention weights.
        causal: let no snippet attend to later ones.
    """

    receptive_field = None

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
            attended, _ = attention(
                ready[number],
                heard,
                heard,
                key_padding_mask=outside,
                attn_mask=unseen,
                need_weights=False,
            )
            result.append(own[number] + attended)
        return torch.cat(result, dim=2)


class BottleneckFusion(nn.Module):
    """Streams that talk through a few tokens only: attention bottlenecks, then concatenation.

    Nagrani et al., NeurIPS 2021 (arXiv 2107.00135): in each layer every stream attends to itself
    and to the tokens, and the tokens that come out of the streams are averaged. The tokens see the
    whole clip, so there is no causal form.

    Args:
        sizes: values per snippet of each stream, as `Streams` gives them.
        channels: width of each stream's attention.
        dropout: in the attention layers.
        causal: not used; see `Config`, which refuses it.
    """

    receptive_field = None

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
