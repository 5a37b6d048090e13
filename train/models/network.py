"""The whole network: streams, their fusion, and the model of their sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from train.config import Config
from train.models.fusion import FUSIONS
from train.models.mtcn import MTCN
from train.models.sequence_models import MODELS
from train.models.streams import Streams, Totals


class AVARNet(nn.Module):
    """Streams that are prepared, fused, and read by a sequence model.

    Args:
        sizes: stream name -> values per snippet.
        num_classes: number of classes.
        config: settings; ``layers`` must be settled (not 0).
    """

    def __init__(self, sizes: Mapping[str, int], num_classes: int, config: Config) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.streams = Streams(
            sizes,
            config.input_dropout,
            config.stream_dropout,
            config.centred,
            config.causal,
            config.scene_dropout,
            config.offset_noise,
            config.outlier_limit,
        )
        self.sequence_model = SequenceModel(self.streams.out_sizes, num_classes, config)

    @property
    def receptive_field(self) -> int | None:
        """How many snippets to each side decide on a prediction; None if the whole clip may."""
        return None if self.streams.centred else self.receptive_field_with_totals

    @property
    def receptive_field_with_totals(self) -> int | None:
        """As `receptive_field`, where the clip's totals are given."""
        # a change, which is a feature, is seen from the snippet before
        fused = self.sequence_model.receptive_field
        return None if fused is None else 1 + fused

    def forward(
        self,
        streams: Mapping[str, Tensor],
        valid: Mapping[str, Tensor],
        mask: Tensor,
        totals: Totals | None = None,
    ) -> Tensor:
        """Return logits (stages, batch, num_classes, time).

        Args:
            streams: name -> (batch, time, D).
            valid: name -> (batch, time), true where the stream has something to say.
            mask: (batch, time), true inside the clips.
            totals: see `Streams.forward`.
        """
        inside = {name: present & mask for name, present in valid.items()}
        logits: Tensor = self.sequence_model(self.streams(streams, inside, totals), mask)
        return logits


class SequenceModel(nn.Module):
    """What of an `AVARNet` is learned by gradients: fusion and sequence model.

    Late fusion is a sequence model for each stream, whose logits are averaged; every other fusion
    makes one sequence for one model.

    Args:
        sizes: values per snippet of each stream, as `Streams` gives them.
        num_classes: number of classes.
        config: settings; ``layers`` must be settled (not 0).
    """

    def __init__(self, sizes: Sequence[int], num_classes: int, config: Config) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.fusion = None
        inputs = self.sizes
        if config.fusion != "late":
            fuse = FUSIONS[config.fusion]
            self.fusion = fuse(inputs, config.channels, config.dropout, config.causal)
            inputs = [self.fusion.out_features]
        self.models = nn.ModuleList(_model(size, num_classes, config) for size in inputs)

    @property
    def receptive_field(self) -> int | None:
        """As `AVARNet.receptive_field`, of what `Streams` gives."""
        parts = [cast(int | None, model.receptive_field) for model in self.models]
        if self.fusion is not None:
            parts.append(self.fusion.receptive_field)
        known = [part for part in parts if part is not None]
        return max(known) if len(known) == len(parts) else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, time, sum of sizes) to logits (stages, batch, num_classes, time)."""
        parts = torch.split(x, self.sizes, dim=2) if self.fusion is None else [self.fusion(x, mask)]
        outputs = [
            model(part.transpose(1, 2), mask)
            for model, part in zip(self.models, parts, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)


def _model(in_features: int, num_classes: int, config: Config) -> nn.Module:
    if config.model in ("mtcn", "tcn"):
        return MTCN(
            in_features,
            num_classes,
            config.stages if config.model == "mtcn" else 1,
            config.layers,
            config.channels,
            config.causal,
            config.dropout,
            config.context_dropout,
        )
    return MODELS[config.model](
        in_features, num_classes, config.channels, config.causal, config.dropout
    )
