"""Stage 2: fuse, MTCN, train, evaluate, predict, report; from a feature store alone.

scikit-learn is imported where it is used: it takes half as long as torch does, and `predict` and
`watch` do without.
"""

from typing import TYPE_CHECKING, Any

from train.ablate import ablate
from train.compare import compare_runs
from train.config import Config, TrainError
from train.evaluate import evaluate_run, judge_run
from train.export import export_run
from train.live import LiveScorer
from train.loss import mtcn_loss
from train.mtcn import MTCN
from train.network import AVARNet
from train.predict import Prediction, Predictor
from train.run import Run, train_run
from train.sweep import Search, sweep

if TYPE_CHECKING:
    from train.classifier import MTCNClassifier

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
        from train.classifier import MTCNClassifier

        return MTCNClassifier
    raise AttributeError(f"module 'train' has no attribute {name!r}")
