"""The epochs of a training, and which of them a model keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

AS_GOOD = 0.5  # standard errors above the least loss: what is within them is as good as the best


@dataclass(frozen=True)
class Epoch:
    """One row of the table of epochs.

    Attributes:
        epoch: its number, from 1 on in each start.
        train_loss: mean over its steps.
        val_loss, val_accuracy: mean over the validation clips.
        val_recall: mean over the classes: no reward for always predicting the commonest.
        val_error: standard error of `val_loss` over the clips.
        start: number of the start, where a model was started again.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    val_recall: float
    val_error: float = 0.0
    start: int = 0


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """Return the epoch whose weights a model keeps: that of the best start.

    Of each start it is the last one whose validation loss is within half a standard error of the
    least. A handful of clips cannot tell good epochs from each other, and of equals the later one
    has learned longer, at a lower rate. Of several starts it is the one with the least loss.
    """
    starts: dict[int, list[Epoch]] = {}
    for epoch in history:
        starts.setdefault(epoch.start, []).append(epoch)
    chosen = []
    for own in starts.values():
        least = keep = own[0]
        for epoch in own[1:]:
            least = min(least, epoch, key=lambda e: e.val_loss)
            if epoch.val_loss <= least.val_loss + AS_GOOD * least.val_error:
                keep = epoch
        chosen.append(keep)
    return min(chosen, key=lambda e: e.val_loss)
