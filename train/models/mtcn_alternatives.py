"""Sequence models that the MTCN is compared with. All take and give what `MTCN` does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.models.fusion import ATTENTION_LAYERS, encoder_layer, future, positions


class Recurrent(nn.Module):
    """An LSTM between two projections, in both directions unless it is causal.

    Args:
        in_features: values per snippet.
        num_classes: number of classes.
        channels: width.
        causal: let no output see the future.
        dropout: before and after the LSTM.

    Attributes:
        receptive_field: how many snippets to each side decide on a prediction; None if all may.
    """

    receptive_field = None

    def __init__(
        self, in_features: int, num_classes: int, channels: int, causal: bool, dropout: float
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(in_features, channels)
        self.onward = nn.LSTM(channels, channels, batch_first=True)
        self.back = None if causal else nn.LSTM(channels, channels, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.leave = nn.Linear(channels if causal else 2 * channels, num_classes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, in_features, time) to logits (1, batch, num_classes, time)."""
        entered = self.dropout(self.enter(x.transpose(1, 2)))
        rows = self.onward(entered)[0]  # padding comes last and cannot change what is before it
        if self.back is not None:
            turned = self.back(_turned(entered, mask))[0]
            rows = torch.cat([rows, _turned(turned, mask)], dim=2)
        logits: Tensor = self.leave(self.dropout(rows))
        return logits.transpose(1, 2)[None]


def _turned(rows: Tensor, mask: Tensor) -> Tensor:
    """Return (batch, time, channels) with each clip backwards, its padding still after it."""
    last = mask.sum(1, keepdim=True) - 1
    index = (last - torch.arange(mask.shape[1], device=rows.device)).clamp(min=0)
    return rows.gather(1, index[..., None].expand_as(rows))


class Transformer(nn.Module):
    """Layers of self-attention between two projections.

    Args:
        in_features: values per snippet.
        num_classes: number of classes.
        channels: width.
        causal: let no output see the future.
        dropout: in the layers.
    """

    receptive_field = None

    def __init__(
        self, in_features: int, num_classes: int, channels: int, causal: bool, dropout: float
    ) -> None:
        super().__init__()
        self.causal = causal
        self.enter = nn.Linear(in_features, channels)
        self.layers = nn.ModuleList(
            encoder_layer(channels, dropout) for _ in range(ATTENTION_LAYERS)
        )
        self.norm = nn.LayerNorm(channels)
        self.leave = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, in_features, time) to logits (1, batch, num_classes, time)."""
        rows = self.enter(x.transpose(1, 2))
        rows = rows + positions(rows.shape[1], rows)
        ahead = future(rows.shape[1], mask) if self.causal else None
        for layer in self.layers:
            rows = layer(rows, src_mask=ahead, src_key_padding_mask=~mask)
        logits: Tensor = self.leave(self.norm(rows))
        return logits.transpose(1, 2)[None]


class SnippetLinear(nn.Module):
    """A linear layer for each snippet by itself.

    Args:
        in_features: values per snippet.
        num_classes: number of classes.
        channels: not used.
        causal: not used.
        dropout: not used.
    """

    receptive_field = 0

    def __init__(
        self, in_features: int, num_classes: int, channels: int, causal: bool, dropout: float
    ) -> None:
        super().__init__()
        self.leave = nn.Linear(in_features, num_classes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, in_features, time) to logits (1, batch, num_classes, time)."""
        logits: Tensor = self.leave(x.transpose(1, 2))
        return logits.transpose(1, 2)[None]


MODELS: dict[str, type[nn.Module]] = {
    "lstm": Recurrent,
    "transformer": Transformer,
    "snippet_linear": SnippetLinear,
}
