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
    model = logistic(clips.averages(known, np.nan), targets[known], config.class_weights)
    return np.asarray(model.predict_proba(clips.averages(held_out, np.nan)), np.float32)


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
    model = logistic(clips.averages(known, np.nan), targets[known], config.class_weights)
    tables = (clips.snippets(i, np.nan) for i in held_out)
    return [model.predict_proba(table)[:, 1].astype(np.float32) for table in tables]


def logistic(averages: NDArray[np.float32], targets: NDArray[np.int64], balanced: bool) -> Pipeline:
    """Return a scaler, an imputer and a logistic regression that are fitted to some clips.

    Args:
        averages: (clips, values), NaN where a clip lacks something; that is taken to be average.
        targets: (clips,) class of each.
        balanced: weigh classes by the inverse of how often they occur.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # a penalty that does not depend on how many values describe a clip: with the usual C of 1,
    # thousands of them and some hundred clips, it would learn the clips by heart
    regression = LogisticRegression(
        C=1 / averages.shape[1], max_iter=5000, class_weight="balanced" if balanced else None
    )
    imputer = SimpleImputer(strategy="constant", fill_value=0.0, keep_empty_features=True)
    with np.errstate(invalid="ignore"):  # what none of the clips has, has no mean
        return make_pipeline(StandardScaler(), imputer, regression).fit(averages, targets)
