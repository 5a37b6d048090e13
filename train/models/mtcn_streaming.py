"""A causal MTCN snippet by snippet, in a time that does not grow with its receptive field."""

from __future__ import annotations

from collections import deque
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from train.models.mtcn import MTCN, DilatedResidualLayer, Stage

Memory = list[list[deque[Tensor]]]  # of each stage, of each layer: its inputs so far


def empty_memory(model: MTCN) -> Memory:
    """Return what `step` needs before a stream's first snippet: zeros, as `MTCN.forward` has."""
    return [
        [
            deque([torch.zeros(1, layer.mix.in_features)] * -layer.first, -layer.first)
            for layer in _layers(stage)
        ]
        for stage in model.stages
    ]


def step(model: MTCN, x: Tensor, memory: Memory) -> Tensor:
    """Return the last stage's logits (1, num_classes) for the next snippet.

    They are those of `MTCN.forward` over all snippets so far.

    Args:
        model: causal.
        x: (1, in_features), the snippet.
        memory: of the snippets before it; it is moved on by this one.
    """
    logits = x
    for number, (stage, inputs) in enumerate(zip(model.stages, memory, strict=True)):
        entered = hidden = cast(Stage, stage).enter(F.softmax(logits, dim=1) if number else x)
        for layer, past in zip(_layers(stage), inputs, strict=True):
            taps = [past[0], past[layer.dilation], hidden]
            past.append(hidden)
            hidden = hidden + layer.mix(F.relu(layer.dilated(torch.cat(taps, dim=1))))
        logits = cast(Stage, stage).classify(entered, hidden)
    return logits


def _layers(stage: torch.nn.Module) -> list[DilatedResidualLayer]:
    return cast(list[DilatedResidualLayer], list(cast(Stage, stage).layers))
