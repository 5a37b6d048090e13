"""What sequence models and fusions of other packages must keep to, tried before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from train.config import TrainError
from train.models.network import AVARNet, SequenceModel

if TYPE_CHECKING:
    from train.run import Run

SNIPPETS, PADDING = 12, 4  # of the clip that is tried
TOLERANCE = 1e-4  # between logits that should be the same


def check_contract(run: Run) -> None:
    """Try the network of a run, if a part of it comes with another package, on a made-up clip.

    Raises:
        TrainError: it cannot be made or read a clip, gives other shapes than it should, has state
            that is not learned, or a prediction depends on what it must not: on padding, on the
            future in a causal run, on snippets outside its receptive field.
    """
    if not run.packages:
        return
    named = ", ".join(
        f"the {kind} {getattr(run.config, kind)!r} of {package}"
        for kind, package in run.packages.items()
    )
    try:
        network = AVARNet(run.sizes, len(run.classes), run.config).eval()
        with torch.no_grad():
            fault = _fault(network.sequence_model, network.num_classes, run.config.causal)
    except TrainError:
        raise
    except Exception as error:  # whatever a stranger's code raises
        raise TrainError(
            f"{named}: fails on a clip of {SNIPPETS} snippets ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); 'avarnet --debug' shows where"
        ) from error
    if fault:
        raise TrainError(f"{named}: {fault}; see docs/own-models.md")


def _fault(network: SequenceModel, classes: int, causal: bool) -> str:
    """Return what is wrong with a network of fusion and sequence model; "" if nothing is."""
    learned = dict(network.named_parameters()).keys()
    if state := sorted(network.state_dict().keys() - learned):
        return (
            f"has state that is not learned by gradients ({state[0]}), as batch normalisation has, "
            "or shared weights; take LayerNorm, and register_buffer(..., persistent=False)"
        )
    draw = torch.Generator().manual_seed(0)
    clip = torch.randn(1, SNIPPETS, sum(network.sizes), generator=draw)
    inside = torch.ones(1, SNIPPETS, dtype=torch.bool)
    logits = network(clip, inside)
    if logits.dim() != 4 or logits.shape[1:] != (1, classes, SNIPPETS):
        return (
            f"gives logits of {tuple(logits.shape)}, expected (stages, 1, {classes}, {SNIPPETS}): "
            "stages, clips, classes, snippets"
        )

    def same(other: Tensor, snippets: slice) -> bool:
        close = torch.isclose(logits[..., snippets], other[..., snippets], atol=TOLERANCE)
        return bool(close.all())

    padded = torch.cat([clip, torch.randn(1, PADDING, clip.shape[2], generator=draw)], 1)
    if not same(network(padded, F.pad(inside, (0, PADDING))), slice(SNIPPETS)):
        return "predicts otherwise where padding follows a clip; go by the mask"
    half = SNIPPETS // 2
    if causal and not same(network(_changed(clip, slice(half, None)), inside), slice(half)):
        return "sees the future although the run is causal"
    field = network.receptive_field
    if field is not None and not same(
        network(_changed(clip, slice(1)), inside), slice(1 + field, None)
    ):
        return f"sees more than {field} snippets to a side, which is its receptive_field"
    return ""


def _changed(clip: Tensor, snippets: slice) -> Tensor:
    """Return a clip in which some snippets are others."""
    other = clip.clone()
    other[:, snippets] += 1
    return other
