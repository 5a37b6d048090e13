"""What a run says of clips that it has not seen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from features import Features
from train.data import Clips
from train.fit import POOLING, score
from train.run import Run


class Prediction(NamedTuple):
    """What a run says of one clip.

    Attributes:
        label: the likeliest class.
        confidence: its probability.
        probabilities: class -> probability of the clip.
        scores: (T, classes) probabilities of every snippet.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]
    scores: NDArray[np.float32]


class Predictor:
    """Scores new clips with all models of a run; the answers of folds and seeds are averaged."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._models = [run.model(number) for number in range(len(run.models))]

    def __call__(self, features: Features) -> Prediction:
        """Return what the run says of a clip; a clip that lacks a stream gets an answer too."""
        run = self.run
        clips = Clips({"clip": features}, ["clip"], run.config.streams, run.recipe.crops)
        pooling = POOLING[run.config.task]
        answers = [
            score(model, clips, np.array([0]), torch.device("cpu"), pooling)
            for model in self._models
        ]
        whole = np.mean([np.exp(log_p[0]) for log_p, _ in answers], axis=0)
        scores = np.mean([snippets[0] for _, snippets in answers], axis=0)
        best = int(whole.argmax())
        return Prediction(
            self.run.classes[best],
            float(whole[best]),
            {name: float(p) for name, p in zip(self.run.classes, whole, strict=True)},
            scores,
        )
