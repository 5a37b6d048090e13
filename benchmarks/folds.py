"""Is the default behind plain models on clips of one's own, over several draws of the folds?

With few recordings, which of them are held out together moves every model's accuracy by more than
models differ. Each draw is a cross-validation of its own, of one seed; a model's figure is the mean
over the draws, and the interval of a difference is drawn by recording, over the same draws.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("store", type=Path, nargs="+", help="several are joined")
    parser.add_argument("--streams", nargs="*", default=[], help="all, if none is given")
    parser.add_argument("--fusion", default="early")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=10)
    options = parser.parse_args()
    if options.draws < 2:
        parser.error("--draws: at least 2")
    clips, store = manifests.read(options.manifest), join(*map(Store, options.store))
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    console = Console()
    for seed in range(options.draws):
        config = Config(
            streams=tuple(options.streams), fusion=options.fusion, folds=options.folds, seed=seed
        )
        with tempfile.TemporaryDirectory() as folder:
            run = train_run(clips, store, Path(folder) / "run", config)
            judged = judge_run(run, store)
        for place, clip in enumerate(judged.clips):
            for name, probabilities in (
                ("default", clip.probabilities),
                ("logistic", judged.plain.linear[place]),
                ("attention pooling", judged.plain.pooled[place]),
            ):
                right[name][clip.id].append(run.classes[probabilities.argmax()] == clip.label)
        found = {name: np.mean([own[seed] for own in of.values()]) for name, of in right.items()}
        console.print(f"draw {seed}", *(f"{name} {value:.3f}" for name, value in found.items()))
    ids = list(right["default"])
    groups = group_numbers(ids, run.groups)
    rng = np.random.default_rng(0)
    weights = np.array(list(drawn_anew(groups, BOOTSTRAPS, rng)))
    shares = {name: np.array([np.mean(of[i]) for i in ids]) for name, of in right.items()}
    table = Table("", "accuracy", "std", "default less it", "95 % interval")
    for name, share in shares.items():
        by_draw = np.array([right[name][i] for i in ids]).mean(0)
        less = shares["default"] - share
        low, high = interval(less.mean(), weights @ less / weights.sum(1), groups)
        difference = (
            ("", "") if name == "default" else (f"{less.mean():+.3f}", f"{low:+.3f} to {high:+.3f}")
        )
        table.add_row(name, f"{share.mean():.3f}", f"{by_draw.std(ddof=1):.3f}", *difference)
    console.print(table)


if __name__ == "__main__":
    main()
