"""What a run's training leaves in doubt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from train.fitting.history import Epoch, best_epoch
from train.fitting.restarts import near_chance
from train.labels import CLASSES

if TYPE_CHECKING:
    from train.run import Run

FEW_A_CLASS = 3  # validation clips of each class, below which there are too few


def kept_epochs(run: Run) -> list[dict[str, Any]]:
    """Return the row of the epoch whose weights a run has, of each model in turn."""
    models: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in run.epochs():
        models.setdefault((row["seed"], row["fold"]), []).append(row)
    found = []
    for rows in models.values():
        epochs = list(map(_epoch, rows))
        found.append(rows[epochs.index(best_epoch(epochs))])
    return found


def _epoch(row: dict[str, Any]) -> Epoch:
    return Epoch(**{name: v for name, v in row.items() if name not in ("fold", "seed")})


def doubts(run: Run) -> list[str]:
    """Return sentences on what a run's training leaves in doubt; [] if nothing."""
    found = []
    fewest, classes = min(len(split.val) for split in run.splits), len(run.classes)
    if fewest < FEW_A_CLASS * classes:
        clips = "1 validation clip" if fewest == 1 else f"{fewest} validation clips"
        found.append(
            f"Only {clips}, of {classes} classes: too few to choose an epoch, or to tell "
            "whether a model has learned at all."
        )
    rows = kept_epochs(run)
    again = {(r["seed"], r["fold"]) for r in run.epochs() if r.get("start", 0)}
    if again:
        still = sum(
            near_chance(_epoch(row), classes, len(run.splits[row["fold"]].val)) for row in rows
        )
        found.append(
            f"The validation of {len(again)} of {len(rows)} models stayed near chance: "
            "they were started again with other seeds, and the best start is kept"
            + (f"; {still} stayed there in every start." if still else ".")
        )
    calm = [i for i, c in run.truth.items() if run.labels[i] != CLASSES[0] and not c.intervals]
    if calm:
        found.append(
            f"The manifest has no anomaly in {len(calm)} held-out clips whose label is that of "
            f"one ({', '.join(calm[:3])}): every frame of them counts as normal. If nobody has "
            "looked when it happens, the figures are wrong: annotate these clips or take them "
            "out of the test split, and train again."
        )
    return found
