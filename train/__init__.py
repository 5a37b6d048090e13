"""Stage 2: fuse, MTCN, train, evaluate, predict, report; from a feature store alone.

What a name needs is imported when it is asked for: torch takes seconds, and scikit-learn half as
long again, which `predict` and `watch` do without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.calibration import calibrate
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
    from train.report.run_plots import run_plots
    from train.run import Run
    from train.sklearn_estimator import MTCNClassifier
    from train.streaming import LiveScorer
    from train.training import train_run

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
    "calibrate",
    "compare_runs",
    "evaluate_run",
    "export_run",
    "judge_run",
    "mtcn_loss",
    "run_plots",
    "sweep",
    "train_run",
]
_MODULES = {
    "MTCN": "models.mtcn",
    "AVARNet": "models.network",
    "Config": "config",
    "LiveScorer": "streaming",
    "MTCNClassifier": "sklearn_estimator",
    "Prediction": "predict",
    "Predictor": "predict",
    "Run": "run",
    "Search": "experiments.sweep",
    "TrainError": "config",
    "ablate": "experiments.ablate",
    "calibrate": "calibration",
    "compare_runs": "evaluation.compare",
    "evaluate_run": "evaluation.evaluate",
    "export_run": "export",
    "judge_run": "evaluation.evaluate",
    "mtcn_loss": "losses",
    "run_plots": "report.run_plots",
    "sweep": "experiments.sweep",
    "train_run": "training",
}


def __getattr__(name: str) -> Any:
    # so no file of this folder may be called like one of these names: it would be found instead
    if name in _MODULES:
        return getattr(import_module(f"train.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'train' has no attribute {name!r}")
