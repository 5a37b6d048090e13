"""What models predict of clips that none of them was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from train.config import TrainError
from train.fitting.memory import threads_for
from train.losses import POOLING, Pooling

if TYPE_CHECKING:
    from train.data import Clips
    from train.models.network import AVARNet
    from train.run import Run

BATCH = 16  # clips
CPU = torch.device("cpu")


class Scores(NamedTuple):
    """What one model predicts of some clips.

    Attributes:
        log_probabilities: (clips, classes).
        snippets: of each clip (T, classes) probabilities.
    """

    log_probabilities: NDArray[np.float32]
    snippets: list[NDArray[np.float32]]


class ClipPrediction(NamedTuple):
    """A held-out clip and what was predicted of it.

    Attributes:
        id: of the clip.
        label: its class.
        predicted: the likeliest class.
        probabilities: (classes,) of the clip.
        snippets: (T, classes) of every snippet.
    """

    id: str
    label: str
    predicted: str
    probabilities: NDArray[np.float32]
    snippets: NDArray[np.float32]


class SplitPredictions(NamedTuple):
    """What all models of one split, each of another seed, predict of its held-out clips.

    Attributes:
        held_out: (clips,) indices of the held-out clips.
        known: (...,) indices of those that a baseline may learn from.
        clips: (seeds, clips, classes) probabilities.
        snippets: for each clip (seeds, T, classes) probabilities.
    """

    held_out: NDArray[np.int64]
    known: NDArray[np.int64]
    clips: NDArray[np.float32]
    snippets: list[NDArray[np.float32]]

    def each(self, run: Run, data: Clips) -> list[ClipPrediction]:
        """Return the clips one by one, the predictions averaged over the seeds.

        Args:
            run: whose models they are.
            data: the clips.
        """
        return [
            ClipPrediction(
                data.ids[index],
                run.labels[data.ids[index]],
                run.classes[whole.argmax()],
                whole,
                snippets.mean(0),
            )
            for index, whole, snippets in zip(
                self.held_out, self.clips.mean(0), self.snippets, strict=True
            )
        ]


@torch.no_grad()
def score(
    model: AVARNet,
    clips: Clips,
    indices: NDArray[np.int64],
    device: torch.device,
    pooling: Pooling,
) -> Scores:
    """Return the last stage's predictions of some clips, in the order of `indices`.

    Args:
        model: on the device.
        clips: their features.
        indices: which.
        device: where to compute.
        pooling: from snippets to clips.
    """
    model.eval()
    whole = np.zeros((len(indices), model.num_classes), np.float32)
    snippets: list[NDArray[np.float32]] = [np.zeros((0, 0), np.float32)] * len(indices)
    place = {int(index): k for k, index in enumerate(indices)}
    for chosen, on_cpu in clips.batches(indices, BATCH):
        batch = on_cpu.to(device)
        with threads_for(batch.mask.numel()):
            logits = model(batch.streams, batch.valid, batch.mask)
        log_p = F.log_softmax(pooling(logits[-1], batch.mask), dim=1).cpu().numpy()
        rows = F.softmax(logits[-1], dim=1).transpose(1, 2).cpu().numpy()
        for row, index in enumerate(chosen):
            whole[place[int(index)]] = log_p[row]
            snippets[place[int(index)]] = rows[row, : clips.lengths[index]]
    return Scores(whole, snippets)


def has_test_clips(run: Run) -> bool:
    """Tell whether a run has held-out clips; one that has none is judged by its validation clips.

    Raises:
        TrainError: a run of detection has none: others are not annotated in time.
    """
    if any(split.test for split in run.splits):
        return True
    if run.config.task == "detection":
        raise TrainError(
            f"{run.path} has no held-out clips, whose annotation in time detection is judged by; "
            "mark some of the manifest's clips as test and train again"
        )
    return False


def predict_splits(
    run: Run, models: Sequence[AVARNet], data: Clips, tested: bool
) -> Iterator[SplitPredictions]:
    """Yield, for each split, what its models predict of its held-out or its validation clips.

    Args:
        run: the run.
        models: all of them, from `Run.all_models`.
        data: the clips' features.
        tested: take the held-out clips, else those of the validation.
    """
    where = {clip_id: index for index, clip_id in enumerate(data.ids)}
    for number, split in enumerate(run.splits):
        ids = split.test if tested else split.val
        others = [*split.train, *split.val] if tested else split.train
        held_out = np.array([where[i] for i in ids], dtype=np.int64)
        scores = [
            score(model, data, held_out, CPU, POOLING[run.config.pooling])
            for model, (own, _) in zip(models, run.models, strict=True)
            if own == number
        ]
        yield SplitPredictions(
            held_out,
            np.array([where[i] for i in others]),
            np.exp(np.stack([each.log_probabilities for each in scores])),
            [np.stack(same) for same in zip(*(each.snippets for each in scores), strict=True)],
        )
