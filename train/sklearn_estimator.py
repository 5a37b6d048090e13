"""The model as a scikit-learn estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted

from features import Features
from manifests import Clip
from train.config import Config, TrainError
from train.data import Clips, streams_to_learn
from train.evaluation.bootstrap import group_numbers
from train.fitting.automatic import with_layers
from train.fitting.restarts import fit
from train.fitting.trainer import SplitIndices, TrainingSet
from train.inference import score
from train.losses import POOLING
from train.splits import make_splits


class MTCNClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Recognises clips of a store; what scikit-learn calls X are the clips or their ids.

    >>> model = MTCNClassifier().fit(store, clips)                            # doctest: +SKIP
    >>> model.predict_proba(others)                                           # doctest: +SKIP
    >>> cross_val_score(MTCNClassifier(store), clips, labels, cv=5)           # doctest: +SKIP

    Args:
        store: clip id -> features; needed where `fit` is not given it.
        config: settings of the training; `folds` and `seeds` have no use here.
        device: where to train.

    Attributes:
        classes_: (classes,) names, in the order of `predict_proba`.
        streams_: names of those that are learned; one that no training clip has is left out.
        model_: the trained `AVARNet`.
        history_: its epochs.
    """

    def __init__(
        self,
        store: Mapping[str, Features] | None = None,
        config: Config | None = None,
        device: str = "cpu",
    ) -> None:
        self.store = store
        self.config = config
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train.

        Args:
            X: a store, or the clips (or ids) to learn from.
            y: with a store, its clips to learn from, which have labels; else the labels of X, or
                None where those are clips that have them.

        Raises:
            TrainError: as `train_run` does.
        """
        store, clips = (X, y) if isinstance(X, Mapping) else (self.store, X)
        if store is None or clips is None:
            raise TrainError("give the store: MTCNClassifier(store), or fit(store, clips)")
        self.store_: Mapping[str, Features] = store
        labels = (
            [c.label for c in clips] if y is None or clips is y else [str(label) for label in y]
        )
        known = [
            Clip(
                i, i, (label,), split="train", group=clip.group if isinstance(clip, Clip) else None
            )
            for i, clip, label in zip(_ids(clips), clips, labels, strict=True)
        ]
        config = self.config or Config()
        if config.task != "recognition":
            raise TrainError("MTCNClassifier recognises; for detection, use train_run")
        (split,) = make_splits(known, replace(config, folds=0))
        self.classes_ = np.array(sorted({clip.label for clip in known}))
        self.streams_ = streams_to_learn(
            store, list(store[known[0].id].streams), [split], config.streams
        )
        data = self._clips([clip.id for clip in known])
        where = {clip.id: number for number, clip in enumerate(known)}
        config = with_layers(config, data.lengths)
        indices = SplitIndices(
            np.array([where[i] for i in split.train]), np.array([where[i] for i in split.val])
        )
        targets = np.searchsorted(self.classes_, [clip.label for clip in known])
        recordings = group_numbers(
            data.ids, {clip.id: clip.group for clip in known if clip.group is not None}
        )
        training_set = TrainingSet(data, targets, len(self.classes_), recordings)
        trained = fit(training_set, [indices], config.seed, config, torch.device(self.device))
        self.model_, self.history_ = trained[0]
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Return (clips, classes) probabilities of clips or ids."""
        check_is_fitted(self)
        data = self._clips(_ids(X))
        everyone = np.arange(len(data.ids))
        pooling = POOLING[(self.config or Config()).pooling]
        scores = score(self.model_, data, everyone, torch.device(self.device), pooling)
        return np.exp(scores.log_probabilities)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return (clips,) names of the likeliest classes."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy; y is not needed where X are clips that have labels."""
        truth = [clip.label for clip in X] if y is None else y
        return float(accuracy_score(truth, self.predict(X), sample_weight=sample_weight))

    def _clips(self, ids: Sequence[str]) -> Clips:
        recipe = getattr(self.store_, "recipe", None)
        return Clips(self.store_, ids, self.streams_, recipe.crops if recipe else {})


def _ids(clips: Sequence[Clip | str]) -> list[str]:
    return [clip.id if isinstance(clip, Clip) else str(clip) for clip in clips]
