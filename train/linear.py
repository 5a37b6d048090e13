"""The baseline that every run is shown beside: a linear classifier on clip-averaged features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from train.config import Config
from train.data import Clips


def linear_predictions(
    clips: Clips,
    targets: NDArray[np.int64],
    known: NDArray[np.int64],
    held_out: NDArray[np.int64],
    config: Config,
) -> NDArray[np.int64]:
    """Train on the clips `known` and return the classes of the clips `held_out`."""
    balance = "balanced" if config.class_weights else None
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000, class_weight=balance))
    model.fit(clips.averages(known), targets[known])
    return np.asarray(model.predict(clips.averages(held_out)), np.int64)
