"""The whole network: streams, their fusion, the model of their sequence, and a linear term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, cast

import torch
from torch import Tensor, nn

from train.config import GROUPS, Config, TrainError, package_of
from train.models.fusion import FUSIONS, Fusion
from train.models.linear_term import LinearTerm
from train.models.mtcn import MTCN
from train.models.mtcn_alternatives import MODELS
from train.models.streams import Streams, Totals


class AVARNet(nn.Module):
    """Streams that are prepared, fused, and read by a sequence model.

    Args:
        sizes: stream name -> values per snippet.
        num_classes: number of classes.
        config: settings; ``layers`` must be settled (not 0).

    Attributes:
        temperature: the sequence model's logits are divided by it (Guo et al., ICML 2017); one,
            until `train.fitting.temperature` has chosen it.
    """

    temperature: Tensor

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
        self.register_buffer("temperature", torch.ones(()))
        self.linear_term = LinearTerm(sizes, num_classes) if config.has_linear_term else None

    @property
    def receptive_field(self) -> int | None:
        """How many snippets to each side decide on a prediction; None if the whole clip may."""
        whole = self.streams.centred or self.linear_term is not None
        return None if whole else self.receptive_field_with_totals

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
        logits = logits / self.temperature
        if self.linear_term is not None:
            logits = logits + self.linear_term(streams, inside, totals)[..., None]
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
        self.fusion: Fusion | None = None
        inputs = self.sizes
        if config.fusion != "late":
            fuse = FUSIONS.get(config.fusion) or _from_package("fusion", config.fusion)
            self.fusion = fuse(inputs, config.channels, config.dropout, config.causal)
            inputs = [self.fusion.out_features]
        self.models = nn.ModuleList(_model(size, num_classes, config) for size in inputs)

    @property
    def receptive_field(self) -> int | None:
        """As `AVARNet.receptive_field`, of what `Streams` gives."""
        parts = [cast(int | None, model.receptive_field) for model in self.models]
        fused = 0 if self.fusion is None else self.fusion.receptive_field
        known = [part for part in parts if part is not None]
        return None if fused is None or len(known) < len(parts) else fused + max(known)

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
            config.scaled_context,
        )
    model = MODELS.get(config.model) or _from_package("model", config.model)
    return model(in_features, num_classes, config.channels, config.causal, config.dropout)


def _from_package(kind: str, name: str) -> Any:
    """Return the class of a model or a fusion that comes with another package."""
    for entry in entry_points(group=GROUPS[kind], name=name):
        try:
            return entry.load()
        except Exception as error:  # whatever a stranger's module raises
            raise TrainError(
                f"the {kind} {name!r} of {package_of(kind, name)} cannot be imported: {error}"
            ) from error
    raise TrainError(f"no {kind} {name!r}: no installed package has it in {GROUPS[kind]}")
