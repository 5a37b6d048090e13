"""What the models of a run say of clips that none of them was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from train.data import Clips
from train.fitting.trainer import POOLING, score

if TYPE_CHECKING:
    from train.models.network import AVARNet
    from train.run import Run

CPU = torch.device("cpu")


class Judged(NamedTuple):
    """A held-out clip and what was said of it.

    Attributes:
        id: of the clip.
        label: its class.
        predicted: the class it is taken for.
        probabilities: (classes,) of the clip.
        snippets: (T, classes) of every snippet.
    """

    id: str
    label: str
    predicted: str
    probabilities: NDArray[np.float32]
    snippets: NDArray[np.float32]


class Answers(NamedTuple):
    """What all models of one part, each of another seed, say of its held-out clips.

    Attributes:
        held: (clips,) indices of the held-out clips.
        known: (...,) indices of those that the linear classifier may learn from.
        clips: (seeds, clips, classes) probabilities.
        snippets: for each clip (seeds, T, classes) probabilities.
    """

    held: NDArray[np.int64]
    known: NDArray[np.int64]
    clips: NDArray[np.float32]
    snippets: list[NDArray[np.float32]]

    def each(self, run: Run, data: Clips) -> list[Judged]:
        """Return the clips one by one, with the average of what the seeds say."""
        return [
            Judged(
                data.ids[index],
                run.labels[data.ids[index]],
                run.classes[whole.argmax()],
                whole,
                snippets.mean(0),
            )
            for index, whole, snippets in zip(
                self.held, self.clips.mean(0), self.snippets, strict=True
            )
        ]


def answers_of(run: Run, models: Sequence[AVARNet], data: Clips, tested: bool) -> Iterator[Answers]:
    """Yield, for each part, what its models say of its held-out or of its validation clips.

    Args:
        run: the run.
        models: all of them, from `Run.all_models`.
        data: the clips' features.
        tested: judge the held-out clips, else those of the validation.
    """
    where = {clip_id: index for index, clip_id in enumerate(data.ids)}
    for number, part in enumerate(run.parts):
        held = np.array([where[i] for i in (part.test if tested else part.val)], dtype=np.int64)
        known = np.array([where[i] for i in ([*part.train, *part.val] if tested else part.train)])
        said = [
            score(model, data, held, CPU, POOLING[run.config.pools_by])
            for model, (own, _) in zip(models, run.models, strict=True)
            if own == number
        ]
        clips = np.exp(np.stack([log_p for log_p, _ in said]))
        yield Answers(
            held, known, clips, [np.stack(s) for s in zip(*(s for _, s in said), strict=True)]
        )
