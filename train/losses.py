"""What training minimises, and how a clip's prediction is pooled from those of its snippets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from train.config import Config

Pooling = Callable[[Tensor, Tensor], Tensor]  # (..., classes, time), mask -> (..., classes)
FOCUS = 2.0  # gamma of the focal loss, as its authors take it
SNIPPETS_PER_TOP = 16  # one snippet in 16, and one more, speaks for its clip in detection
SMOOTHING_WEIGHT = 0.15  # lambda of MS-TCN
SMOOTHING_LIMIT = 4.0  # tau of MS-TCN


def mtcn_loss(
    logits: Tensor,
    mask: Tensor,
    targets: Tensor,
    smoothing_weight: float = SMOOTHING_WEIGHT,
    smoothing_limit: float = SMOOTHING_LIMIT,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    focus: float = 0.0,
    pooling: Pooling | None = None,
) -> Tensor:
    """Return the sum over stages of classification and truncated smoothing (MS-TCN, eq. 8 to 12).

    The class of the clip is the target of its pooled logits, see `pool`. Clips without a snippet
    count for nothing: they fill up the batches of models that are trained together.

    Args:
        logits: (stages, batch, classes, time).
        mask: (batch, time).
        targets: (batch, classes), soft targets; or (batch,), the class of each clip.
        smoothing_weight: lambda of MS-TCN.
        smoothing_limit: tau of MS-TCN, where the change of a log-probability is cut off.
        class_weights: (classes,) or None.
        label_smoothing: share of the target spread over all classes.
        focus: gamma of the focal loss (Lin et al., ICCV 2017); 0 is cross-entropy.
        pooling: from a stage's logits to a clip's; `pool` if None.
    """
    classes = logits.shape[2]
    if targets.dim() == 1:
        targets = F.one_hot(targets, classes)
    present = mask.any(1)
    weights = targets * present[:, None]
    # cross-entropy with class weights is their weighted mean over the clips
    weights = weights if class_weights is None else weights * class_weights
    total = weights.sum()
    if label_smoothing:
        even = torch.ones_like(weights) if class_weights is None else class_weights
        spread = even * present[:, None] * (label_smoothing / classes)
        weights = (1 - label_smoothing) * weights + spread
    log_p = F.log_softmax((pooling or pool)(logits, mask), dim=2)
    if focus:
        weights = weights * (1 - log_p.exp()) ** focus
    loss = -(weights * log_p).sum() / total
    if smoothing_weight and logits.shape[3] > 1:
        pairs = (mask[:, 1:] & mask[:, :-1])[:, None]  # neighbours that are both in the clip
        log_p = F.log_softmax(logits, dim=2)
        change = log_p[..., 1:] - log_p[..., :-1].detach()
        change = (change * pairs).clamp(-smoothing_limit, smoothing_limit)
        count = (pairs.sum() * classes).clamp(min=1)
        loss = loss + smoothing_weight * change.square().sum() / count
    return loss


def pool(logits: Tensor, mask: Tensor) -> Tensor:
    """Average (..., batch, classes, time) over each clip's snippets to (..., batch, classes)."""
    return average(logits, mask)


def logsumexp_pool(logits: Tensor, mask: Tensor) -> Tensor:
    """Sum the likelihoods of (..., batch, classes, time) over each clip's snippets.

    log sum exp over time: a clip is what its surest snippets say. Its probabilities are the mean of
    the snippets' own, weighed by how much evidence each of them has (the softmax over time of
    their log sum exp over the classes): attention whose weights are learned with the logits.
    """
    outside = ~mask & mask.any(1, keepdim=True)  # a clip without snippets says nothing, not nan
    return logits.masked_fill(outside[:, None], -float("inf")).logsumexp(-1)


def average(logits: Tensor, chosen: Tensor) -> Tensor:
    """Average logits (..., batch, classes, time) where `chosen` (batch, time) is true."""
    weight = chosen[:, None].to(logits.dtype)
    return (logits * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def top_pool(logits: Tensor, mask: Tensor) -> Tensor:
    """Average each clip's most anomalous snippets to (batch, 2).

    Args:
        logits: (batch, 2, time), normal and anomalous.
        mask: (batch, time), true inside the clip.
    """
    return average(logits, top_snippets(logits, mask))


def top_snippets(logits: Tensor, mask: Tensor) -> Tensor:
    """Return (batch, time), true at the k = floor(T / 16) + 1 highest snippets of each clip.

    So many as XD-Violence's baseline takes.
    """
    margin = (logits[:, 1] - logits[:, 0]).masked_fill(~mask, -float("inf"))
    rank = margin.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return mask & (rank < (mask.sum(1) // SNIPPETS_PER_TOP + 1)[:, None])


def weak_loss(
    logits: Tensor,
    mask: Tensor,
    targets: Tensor,
    smoothing_weight: float = SMOOTHING_WEIGHT,
    smoothing_limit: float = SMOOTHING_LIMIT,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    focus: float = 0.0,
) -> Tensor:
    """Return the loss of all stages where only the clips' labels are known.

    Each stage has `mtcn_loss` with the snippets that the first stage finds the most anomalous for
    those of its clip. The later stages also learn the first one's prediction of every snippet: they
    see so far that the clip's label alone would teach them whether, but not when.

    Args:
        logits: (stages, batch, 2, time), normal and anomalous.
        mask: (batch, time).
        targets: (batch, 2), soft targets; or (batch,), the class of each clip.
        smoothing_weight, smoothing_limit: lambda and tau of MS-TCN's smoothing.
        class_weights: (2,) or None.
        label_smoothing: share of the target spread over both classes.
        focus: gamma of the focal loss; 0 is cross-entropy.
    """
    top = top_snippets(logits[0].detach(), mask)
    total = mtcn_loss(
        logits,
        mask,
        targets,
        smoothing_weight,
        smoothing_limit,
        class_weights,
        label_smoothing,
        focus,
        lambda stages, _: average(stages, top),
    )
    first = F.softmax(logits[0].detach(), dim=1)
    apart = -(first * F.log_softmax(logits[1:], dim=2)).sum(2)
    return total + (apart * mask).sum() / mask.sum().clamp(min=1)


POOLING: dict[str, Pooling] = {"mean": pool, "logsumexp": logsumexp_pool, "top": top_pool}


def loss_of(config: Config) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the loss of some settings, a function of logits, mask, targets and class weights."""
    loss: Callable[..., Tensor] = weak_loss
    if config.pooling != "top":
        loss = partial(mtcn_loss, pooling=POOLING[config.pooling])

    def of_batch(logits: Tensor, mask: Tensor, targets: Tensor, class_weights: Tensor) -> Tensor:
        return loss(
            logits,
            mask,
            targets,
            config.smoothing_weight,
            config.smoothing_limit,
            class_weights if config.class_weights else None,
            config.label_smoothing,
            FOCUS if config.loss == "focal" else 0.0,
        )

    return of_batch
