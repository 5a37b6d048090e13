"""What a run's models reach on held-out clips that were read again with bad pictures or sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypedDict

import numpy as np

from features import Features, json_text
from train.config import TrainError
from train.evaluation.figures import Robustness
from train.evaluation.robustness import robustness
from train.inference import ClipPrediction, has_test_clips
from train.predict import Predictor
from train.run import Run
from train.run_files import STRESS_FILE, read_run_file, write_run_file
from train.run_json import parse_json

CLEAN = "as they are"


class Stress(TypedDict):
    """The figures of a stress test, as ``stress.json`` has them.

    `conditions` has `CLEAN` and each impairment; `left_out` has clip id -> why it is in none.
    """

    held_out: Literal["test", "validation"]
    measure: Literal["accuracy", "AP"]
    clips: int
    seed: int
    conditions: dict[str, Robustness]
    left_out: dict[str, str]


class HeldOutClip(NamedTuple):
    """A held-out clip, and what predicts it: the models of its split, which have not seen it."""

    id: str
    predictor: Predictor


def held_out_clips(run: Run) -> Iterator[HeldOutClip]:
    """Yield a run's held-out clips; those of its validation where it has no others."""
    tested = has_test_clips(run)
    models = list(zip(run.all_models(), run.models, strict=True))
    for number, split in enumerate(run.splits):
        predictor = Predictor(run, [model for model, (own, _) in models if own == number])
        for clip_id in split.test if tested else split.val:
            yield HeldOutClip(clip_id, predictor)


def predict_held_out(clip: HeldOutClip, features: Features) -> ClipPrediction:
    """Return what the models predict of a held-out clip.

    Args:
        clip: which.
        features: of it, however they were read.
    """
    run, found = clip.predictor.run, clip.predictor(features)
    scores = found.scores if run.config.task == "detection" else found.scores[:0]
    probabilities = np.array([*found.probabilities.values()], np.float32)
    return ClipPrediction(clip.id, run.labels[clip.id], found.label, probabilities, scores)


def judge_stress(
    run: Run, conditions: Mapping[str, Sequence[ClipPrediction]], left_out: Mapping[str, str]
) -> Stress:
    """Return how much is lost by each impairment, and write it to ``stress.json``.

    Args:
        run: the run.
        conditions: `CLEAN`, and the name of each impairment -> predictions of the same clips.
        left_out: clip id -> why it is not among them.

    Raises:
        TrainError: there are no predictions.
    """
    clean = conditions[CLEAN]
    if not clean:
        clip_id, why = next(iter(left_out.items()))
        raise TrainError(
            f"none of the {len(left_out)} held-out clips can be read again; {clip_id}: {why}"
        )
    found: Stress = {
        "held_out": "test" if has_test_clips(run) else "validation",
        "measure": "AP" if run.config.task == "detection" else "accuracy",
        "clips": len(clean),
        "seed": run.config.seed,
        "conditions": robustness(run, clean, conditions),
        "left_out": dict(left_out),
    }
    write_run_file(run.path / STRESS_FILE, json_text(found, indent=1) + "\n")
    return found


def read_stress(run: Run) -> Stress | None:
    """Return what `judge_stress` has written of a run; None if there is nothing.

    Raises:
        TrainError: the file is damaged.
    """
    file = run.path / STRESS_FILE
    try:
        found: Stress = parse_json(read_run_file(file), Stress, str(file))
    except FileNotFoundError:
        return None
    except TrainError as error:
        raise TrainError(f"{error}; or delete it, and run 'avarnet stress' again") from error
    return found
