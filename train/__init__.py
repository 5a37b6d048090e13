"""Stage 2: fuse, MTCN, train, evaluate, predict, report; from a feature store alone."""

from train.ablate import ablate
from train.compare import compare_runs
from train.config import Config, TrainError
from train.evaluate import evaluate_run
from train.loss import mtcn_loss
from train.mtcn import MTCN
from train.network import AVARNet
from train.predict import Prediction, Predictor
from train.run import Run, train_run

__all__ = [
    "MTCN",
    "AVARNet",
    "Config",
    "Prediction",
    "Predictor",
    "Run",
    "TrainError",
    "ablate",
    "compare_runs",
    "evaluate_run",
    "mtcn_loss",
    "train_run",
]
