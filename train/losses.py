"""What training minimises, and how a clip's answer is made of its snippets'."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Pooling = Callable[[Tensor, Tensor], Tensor]  # (..., classes, time), mask -> (..., classes)
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
        targets: (batch, classes), the share of each class; or (batch,), the class of each clip.
        smoothing_weight: the paper's lambda.
        smoothing_limit: the paper's tau, where the change of a log-probability is cut off.
        class_weights: (classes,) or None.
        label_smoothing: share of the target spread over all classes.
        focus: gamma of the focal loss (Lin et al., ICCV 2017); 0 is cross-entropy.
        pooling: from a stage's logits to a clip's; `pool` if None.
    """
    classes = logits.shape[2]
    if targets.dim() == 1:
        targets = F.one_hot(targets, classes)
    there = mask.any(1)
    shares = targets * there[:, None]
    # cross-entropy with class weights is their weighted mean over the clips
    weights = shares if class_weights is None else shares * class_weights
    total = weights.sum()
    if label_smoothing:
        even = torch.ones_like(weights) if class_weights is None else class_weights
        spread = even * there[:, None] * (label_smoothing / classes)
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
