"""Stage 2: fuse, MTCN, train, evaluate, predict, report; from a feature store alone.

scikit-learn is imported where it is used: it takes half as long as torch does, and `predict` and
`watch` do without.
"""

from typing import TYPE_CHECKING, Any

from train.config import Config, TrainError
from train.evaluation.compare import compare_runs
from train.evaluation.evaluate import evaluate_run, judge_run
from train.experiments.ablate import ablate
from train.experiments.sweep import Search, sweep
from train.export import export_run
from train.losses import mtcn_loss
from train.models.mtcn import MTCN
from train.models.network import AVARNet
from train.predict import Prediction, Predictor
from train.run import Run, train_run
from train.streaming import LiveScorer

if TYPE_CHECKING:
    from train.sklearn_estimator import MTCNClassifier

__all__ = [
    "MTCN",
    "AVARNet",
    "Config",
    "LiveScorer",
    "MTCNClassifier",
    "Prediction",
    "Predictor",
    "Run",
    "Search",
    "TrainError",
    "ablate",
    "compare_runs",
    "evaluate_run",
    "export_run",
    "judge_run",
    "mtcn_loss",
    "sweep",
    "train_run",
]


def __getattr__(name: str) -> Any:
    if name == "MTCNClassifier":  # is a class of scikit-learn's
        from train.sklearn_estimator import MTCNClassifier

        return MTCNClassifier
    raise AttributeError(f"module 'train' has no attribute {name!r}")
