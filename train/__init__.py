"""Stage 2: fuse, MTCN, train, evaluate, predict, report; from a feature store alone."""

from train.compare import compare_runs
from train.config import Config, TrainError
from train.model import MTCN, AVARNet, mtcn_loss
from train.run import Prediction, Predictor, Run, evaluate_run, train_run

__all__ = [
    "MTCN",
    "AVARNet",
    "Config",
    "Prediction",
    "Predictor",
    "Run",
    "TrainError",
    "compare_runs",
    "evaluate_run",
    "mtcn_loss",
    "train_run",
]
