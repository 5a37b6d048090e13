"""What a run predicts of clips that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from features import Features
from train.config import TrainError
from train.data import Batch, Clips
from train.evaluation.anomaly_intervals import Anomaly, anomaly_scores
from train.losses import POOLING
from train.models.network import AVARNet
from train.models.streams import StreamTotals, Totals, totals_of
from train.novelty import load_known_clips

if TYPE_CHECKING:
    from train.run import Run

PIECE = 4096  # snippets of a long clip that are scored at once, and what they see beyond
MOST_BEYOND = 512  # where a model may look at the whole clip


class Prediction(NamedTuple):
    """What a run predicts of one clip.

    Attributes:
        label: the likeliest class.
        confidence: its probability.
        probabilities: class -> probability of the clip.
        scores: (T, classes) probabilities of every snippet.
        anomaly: (T,) how likely each is an anomaly; None if the run knows no normal class.
        intervals: the anomalous ones; none if the run knows no normal class.
        novelty: its distance to the nearest training clip, as a multiple of the largest that is
            usual; more than 1 is a clip unlike anything in training; see `KnownClips`. None if
            that is unknown.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]
    scores: NDArray[np.float32]
    anomaly: NDArray[np.float32] | None
    intervals: list[Anomaly]
    novelty: float | None = None


class Predictor:
    """Scores new clips with all models of a run; the predictions of folds and seeds are averaged.

    A long clip is scored piece by piece, in memory that does not grow with it. A piece sees what
    lies before and behind it as far as its models see, so that the prediction is that of the whole;
    models and fusions that look at a whole clip see only `MOST_BEYOND` snippets beyond it.

    Args:
        run: the run.
        models: of it, if not all of them.
    """

    def __init__(self, run: Run, models: Sequence[AVARNet] | None = None) -> None:
        self.run = run
        self._known_clips = load_known_clips(run)
        self._models = run.all_models() if models is None else models
        receptive_field = self._models[0].receptive_field_with_totals  # all are alike
        self._beyond = MOST_BEYOND if receptive_field is None else receptive_field

    def __call__(self, features: Features, without: Sequence[str] = ()) -> Prediction:
        """Return what the run predicts of a clip, also of one that lacks a stream.

        Args:
            features: of the clip, by the recipe of the run.
            without: streams that are taken from it, to see what they contribute.

        Raises:
            TrainError: the run has no such stream.
        """
        run = self.run
        unknown = [name for name in without if name not in run.config.streams]
        if unknown:
            raise TrainError(
                f"no stream {', '.join(unknown)} in the run; it has {', '.join(run.config.streams)}"
            )
        hidden = {name: np.zeros(len(features), bool) for name in without}
        features = replace(features, valid={**features.valid, **hidden})
        logits = torch.cat(list(self._pieces(features)), dim=2)  # (models, classes, T)
        mask = torch.ones(len(logits), logits.shape[2], dtype=torch.bool)
        pooling = POOLING[run.config.pooling]
        whole = F.softmax(pooling(logits, mask), dim=1).mean(0).numpy()
        scores: NDArray[np.float32] = F.softmax(logits, dim=1).mean(0).T.contiguous().numpy()
        best = int(whole.argmax())
        normal, known = run.normal, self._known_clips
        found = []
        if normal is not None:
            found = run.interval_settings.find(
                scores, run.classes, normal, features.snippet_seconds
            )
        return Prediction(
            run.classes[best],
            float(whole[best]),
            {name: float(p) for name, p in zip(run.classes, whole, strict=True)},
            scores,
            None if normal is None else anomaly_scores(scores, run.classes, normal),
            # the last snippet ends behind the clip
            [a._replace(end=min(a.end, features.duration)) for a in found],
            None if known is None else known.novelty(features, run.recipe.crops),
        )

    @torch.no_grad()
    def _pieces(self, features: Features) -> Iterator[Tensor]:
        """Yield the logits (models, classes, up to PIECE) of one piece after the other."""
        length = len(features)
        totals, low = None, 0
        if length > PIECE and not self.run.config.causal:
            totals = self._totals(features, 0, length)
        for first in range(0, length, PIECE):
            before, low = low, max(0, first - self._beyond)
            if low > before and self.run.config.causal:
                more = self._totals(features, before, low)
                totals = more if totals is None else _sum(totals, more)
            seen = self._batch(features, low, first + PIECE + self._beyond)
            logits = [
                model(seen.streams, seen.valid, seen.mask, totals)[-1] for model in self._models
            ]
            yield torch.cat(logits)[..., first - low : first - low + PIECE]

    def _totals(self, features: Features, first: int, last: int) -> Totals:
        """Return what the snippets of each stream add up to in a stretch of a clip."""
        totals = []
        for start in range(first, last, PIECE):
            before = min(start, 1)  # the change from one piece to the next counts too
            part = self._batch(features, start - before, min(last, start + PIECE))
            totals.append(totals_of(part.streams, part.valid, before))
        return reduce(_sum, totals)

    def _batch(self, features: Features, first: int, last: int) -> Batch:
        """Return a stretch of a clip as a batch."""
        seen = slice(first, last)
        part = Features(
            {name: rows[seen] for name, rows in features.streams.items()},
            {name: valid[seen] for name, valid in features.valid.items()},
            features.snippet_seconds,
            features.duration,
        )
        clips = Clips({"clip": part}, ["clip"], self.run.config.streams, self.run.recipe.crops)
        return clips.batch(np.array([0]))


def _sum(one: Totals, other: Totals) -> Totals:
    return {
        name: StreamTotals(*(a + b for a, b in zip(one[name], other[name], strict=True)))
        for name in one
    }
