"""The baseline beside every run: logistic regression on clips' averages, values and changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from train.config import Config
from train.data import Clips

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


def linear_probabilities(
    clips: Clips,
    targets: NDArray[np.int64],
    known: NDArray[np.int64],
    held_out: NDArray[np.int64],
    config: Config,
) -> NDArray[np.float32]:
    """Train on the clips `known`; return (clips, classes) probabilities of the clips `held_out`.

    Every class must be known.
    """
    model = _trained(clips, targets, known, config)
    return np.asarray(model.predict_proba(clips.averages(held_out)), np.float32)


def linear_scores(
    clips: Clips,
    targets: NDArray[np.int64],
    known: NDArray[np.int64],
    held_out: NDArray[np.int64],
    config: Config,
) -> list[NDArray[np.float32]]:
    """Train on the averages of the clips `known`; return (T,) probabilities of class 1.

    They are those of each snippet of the clips `held_out`, taken for a clip of its own.
    """
    model = _trained(clips, targets, known, config)
    return [model.predict_proba(clips.snippets(i))[:, 1].astype(np.float32) for i in held_out]


def _trained(
    clips: Clips, targets: NDArray[np.int64], known: NDArray[np.int64], config: Config
) -> Pipeline:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    balance = "balanced" if config.class_weights else None
    averages = clips.averages(known)
    # a penalty that does not depend on how many values describe a clip: with the usual C of 1,
    # thousands of them and some hundred clips, it would learn the clips by heart
    logistic = LogisticRegression(C=1 / averages.shape[1], max_iter=5000, class_weight=balance)
    return make_pipeline(StandardScaler(), logistic).fit(averages, targets[known])
