"""Is the default behind plain models on clips of one's own, over several draws of the folds?

For recognition. With few recordings, which of them are held out together moves every model's
accuracy by about as much as models differ. Each draw is a cross-validation of its own, of one seed;
a model's figure is the mean over the draws, and the interval of a difference is drawn by recording,
over the same draws.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

sys.path[0] = str(Path(__file__).parents[1])  # a script beside this one has the name of a package

import manifests  # noqa: E402
from features import Store, join  # noqa: E402
from train import Config, train_run  # noqa: E402
from train.evaluation.bootstrap import (  # noqa: E402
    BOOTSTRAPS,
    drawn_anew,
    group_numbers,
    interval,
)
from train.evaluation.evaluate import judge_run  # noqa: E402
from train.evaluation.recognition import calibration  # noqa: E402

MODELS = ("default", "logistic", "attention pooling")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("store", type=Path, nargs="+", help="several are joined")
    parser.add_argument("--streams", nargs="*", default=[], help="all, if none is given")
    parser.add_argument("--fusion", default="early")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed of the first draw")
    options = parser.parse_args()
    if options.draws < 2:
        parser.error("--draws: at least 2")
    clips, store = manifests.read(options.manifest), join(*map(Store, options.store))
    draws: dict[str, list[NDArray[np.float32]]] = {name: [] for name in MODELS}  # probabilities
    console = Console()
    for seed in range(options.first, options.first + options.draws):
        config = Config(
            streams=tuple(options.streams), fusion=options.fusion, folds=options.folds, seed=seed
        )
        with tempfile.TemporaryDirectory() as folder:
            run = train_run(clips, store, Path(folder) / "run", config)
            judged = judge_run(run, store)
        order = np.argsort([clip.id for clip in judged.clips])  # the same clips in every draw
        labels = np.array([run.classes.index(clip.label) for clip in judged.clips])[order]
        ours = [clip.probabilities for clip in judged.clips]
        for name, found in zip(
            MODELS, (ours, judged.plain.linear, judged.plain.pooled), strict=True
        ):
            draws[name].append(np.stack(found)[order])
        means = (
            f"{name} {(own[-1].argmax(1) == labels).mean():.3f}" for name, own in draws.items()
        )
        console.print(f"draw {seed}", *means)
    groups = group_numbers(sorted(clip.id for clip in judged.clips), run.groups)
    weights = np.array(list(drawn_anew(groups, BOOTSTRAPS, np.random.default_rng(0))))
    right = {name: np.stack(own).argmax(2) == labels for name, own in draws.items()}
    table = Table("", "accuracy", "std", "log loss", "ECE", "default less it", "95 % interval")
    for name, own in draws.items():
        less = right[MODELS[0]].mean(0) - right[name].mean(0)  # (clips,)
        low, high = interval(less.mean(), weights @ less / weights.sum(1), groups)
        difference = (f"{less.mean():+.3f}", f"{low:+.3f} to {high:+.3f}")
        figures = (
            right[name].mean(),
            right[name].mean(1).std(ddof=1),
            -np.log(np.stack(own)[:, np.arange(len(labels)), labels]).mean(),
            np.mean([calibration(labels, probabilities)["ece"] for probabilities in own]),
        )
        shown = (f"{figure:.3f}" for figure in figures)
        table.add_row(name, *shown, *(difference if name != MODELS[0] else ()))
    console.print(table)


if __name__ == "__main__":
    main()
