"""What a run says of clips that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from features import Features
from train.data import Clips
from train.evaluation.intervals import Anomaly, anomaly_scores
from train.fitting.trainer import POOLING, score
from train.run import Run

PIECE = 4096  # snippets of a long clip that are scored at once, and what they see beyond
MOST_BEYOND = 512  # where a model may look at the whole clip
LEAST = 1e-30  # probability; its logarithm is finite


class Prediction(NamedTuple):
    """What a run says of one clip.

    Attributes:
        label: the likeliest class.
        confidence: its probability.
        probabilities: class -> probability of the clip.
        scores: (T, classes) probabilities of every snippet.
        anomaly: (T,) how likely each is an anomaly; None if the run knows no normal class.
        intervals: the anomalous ones; none if the run knows no normal class.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]
    scores: NDArray[np.float32]
    anomaly: NDArray[np.float32] | None
    intervals: list[Anomaly]


class Predictor:
    """Scores new clips with all models of a run; the answers of folds and seeds are averaged.

    A long clip is scored piece by piece, in memory that does not grow with it. A piece sees what
    lies before and behind it as far as its models reach, so that the answer is that of the whole;
    models and fusions that look at a whole clip see only `MOST_BEYOND` snippets beyond it.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._models = run.all_models()
        reach = self._models[0].reach  # all are alike
        self._beyond = MOST_BEYOND if reach is None else reach

    def __call__(self, features: Features, without: Sequence[str] = ()) -> Prediction:
        """Return what the run says of a clip; a clip that lacks a stream gets an answer too.

        Args:
            features: of the clip, by the recipe of the run.
            without: streams that are taken from it, to see what they contribute.
        """
        run = self.run
        hidden = {name: np.zeros(len(features), bool) for name in without}
        features = replace(features, valid={**features.valid, **hidden})
        pieces = [self._piece(features, first) for first in range(0, len(features), PIECE)]
        # (models, T, classes)
        steps = torch.from_numpy(np.concatenate(pieces, axis=1))
        # a snippet's logits and the logarithms of its probabilities differ by a constant, which
        # neither pooling nor the classes' shares notice
        logits = steps.clamp(min=LEAST).log().transpose(1, 2)
        mask = torch.ones(len(logits), logits.shape[2], dtype=torch.bool)
        whole = F.softmax(POOLING[run.config.task](logits, mask), dim=1).mean(0).numpy()
        scores: NDArray[np.float32] = steps.mean(0).numpy()
        best = int(whole.argmax())
        normal = run.normal
        found = []
        if normal is not None:
            found = run.hysteresis.find(scores, run.classes, normal, features.snippet_seconds)
        return Prediction(
            run.classes[best],
            float(whole[best]),
            {name: float(p) for name, p in zip(run.classes, whole, strict=True)},
            scores,
            None if normal is None else anomaly_scores(scores, run.classes, normal),
            # the last snippet ends behind the clip
            [a._replace(end=min(a.end, features.duration)) for a in found],
        )

    def _piece(self, features: Features, first: int) -> NDArray[np.float32]:
        """Return (models, up to PIECE, classes) probabilities of the snippets from `first` on."""
        low = max(0, first - self._beyond)
        seen = slice(low, first + PIECE + self._beyond)
        part = Features(
            {name: rows[seen] for name, rows in features.streams.items()},
            {name: there[seen] for name, there in features.valid.items()},
            features.snippet_seconds,
            features.duration,
        )
        clips = Clips({"clip": part}, ["clip"], self.run.config.streams, self.run.recipe.crops)
        cpu = torch.device("cpu")
        said = [score(model, clips, np.array([0]), cpu)[1][0] for model in self._models]
        return np.stack(said)[:, first - low : first - low + PIECE]
