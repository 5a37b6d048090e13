"""Two runs on the same held-out clips: is one better, or was it luck?"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.config import TrainError
from train.evaluation.bootstrap import (
    BOOTSTRAPS,
    drawn_anew,
    group_numbers,
    interval,
    sign_flips,
)
from train.evaluation.curves import AREAS, Ranking
from train.evaluation.frames import DEFAULT_FPS, frames
from train.run import Run
from train.run_files import PREDICTIONS_FILE, read_run_file

PERMUTATIONS = 1000
BY_RECORDING = "permutations of the runs, recording by recording"
MOST_PREDICTIONS = 2**30  # bytes of that file
FrameTruth, FrameScores = list[NDArray[np.uint8]], list[NDArray[np.float32]]


def compare_runs(one: str | Path, other: str | Path, seed: int = 0) -> dict[str, Any]:
    """Compare what two evaluated runs of one task predict of the clips that both were judged by.

    Detection is compared by the area under the curves of all frames, whose figures mean something
    for the whole test set alone; so both must have been judged by the same clips.

    Args:
        one, other: folders of runs.
        seed: of the bootstrap over recordings (interval of 95 %), and of the permutations.

    Returns:
        Plain data: ``task``; ``clips``, how many; and for each measure, ``accuracy``, or ``ap`` and
        ``roc_auc``: ``values`` of both, ``difference``, other minus one, as ``{"value", "low",
        "high"}`` from recordings drawn anew, the same for both; and ``p``, how likely a difference
        like theirs is between equals, two-sided, by the ``test`` that is named. For accuracy it is
        McNemar's exact test; where recordings have several clips, permutations: it is chance which
        run has a recording's difference. For the areas too: it is chance whose ranks of its frames
        are whose (Bandos et al., Statistics in Medicine 2005, with recordings for cases).
        Recognition: ``only_one`` and ``only_other``, how many clips only one of them has right;
        detection: ``frames``.

    Raises:
        TrainError: a run is not evaluated, they are of two tasks, no clip was held out in both, or
            for detection other clips or annotations.
    """
    one, other = Path(one), Path(other)
    runs = Run.load(one), Run.load(other)
    tasks = [run.config.task for run in runs]
    if tasks[0] != tasks[1]:
        raise TrainError(
            f"{one} is a run of {tasks[0]}, {other} of {tasks[1]}: they cannot be compared with "
            "each other"
        )
    compare = _detection if tasks[0] == "detection" else _recognition
    return {"task": tasks[0], **compare(*runs, np.random.default_rng(seed))}


def _recognition(one: Run, other: Run, rng: np.random.Generator) -> dict[str, Any]:
    from scipy.stats import binomtest

    ours, theirs = _right(one), _right(other)
    clips = sorted(ours.keys() & theirs.keys())
    if not clips:
        raise TrainError(
            f"{one.path} and {other.path} have no held-out clip in common: nothing to compare"
        )
    a, b = (np.array([right[clip] for clip in clips]) for right in (ours, theirs))
    groups = group_numbers(clips, {**other.groups, **one.groups})
    count = int(groups.max()) + 1
    better = b.astype(float) - a
    draws = np.array([n @ better / n.sum() for n in drawn_anew(groups, BOOTSTRAPS, rng)])
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    test = BY_RECORDING
    if count < len(clips):
        p = sign_flips(np.bincount(groups, better).astype(np.float64), PERMUTATIONS, rng)
    else:
        test = "McNemar's exact test"
        p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {
        "clips": len(clips),
        "test": test,
        "accuracy": _measure((a.mean(), b.mean()), draws, p, groups),
        "only_one": only_a,
        "only_other": only_b,
    }


def _detection(one: Run, other: Run, rng: np.random.Generator) -> dict[str, Any]:
    ids, truth, *scores = _frames(one, other)
    clips = len(truth)
    groups = group_numbers(ids, {**other.groups, **one.groups})
    count = int(groups.max()) + 1
    rankings = [Ranking(truth, own) for own in scores]
    values = np.array([ranking.areas(np.ones(clips, np.int64)) for ranking in rankings])
    if np.isnan(values).any():
        raise TrainError(f"{one.path} and {other.path}: every frame is anomalous, or none is")
    drawn = list(drawn_anew(groups, BOOTSTRAPS, rng))
    draws = rankings[1].all_areas(drawn) - rankings[0].all_areas(drawn)
    draws = draws[~np.isnan(draws[:, 0])]
    # ranks, for the scores of two runs are of two scales
    ranking = Ranking([*truth, *truth], [rank for own in scores for rank in _ranks(own)])
    swapped = rng.integers(0, 2, (PERMUTATIONS, count))[:, groups]
    one_way, other_way = (np.concatenate([x, 1 - x], axis=1) for x in (swapped, 1 - swapped))
    by_chance = np.abs(ranking.all_areas(one_way) - ranking.all_areas(other_way))
    as_large = by_chance >= np.abs(values[1] - values[0]) - 1e-12
    p = (1 + as_large.sum(0)) / (1 + PERMUTATIONS)
    return {
        "clips": clips,
        "test": BY_RECORDING,
        "frames": sum(map(len, truth)),
        **{
            name: _measure(values[:, k], draws[:, k], float(p[k]), groups)
            for k, name in enumerate(AREAS)
        },
    }


def _measure(
    values: Sequence[float] | NDArray[np.float64],
    draws: NDArray[np.float64],
    p: float,
    groups: NDArray[np.int64],
) -> dict[str, Any]:
    low, high = interval(float(values[1] - values[0]), draws, groups).clip(-1, 1)
    return {
        "values": [float(value) for value in values],
        "difference": {
            "value": float(values[1] - values[0]),
            "low": float(low),
            "high": float(high),
        },
        "p": p,
    }


def _frames(
    one: Run, other: Run
) -> tuple[
    list[str], list[NDArray[np.uint8]], list[NDArray[np.float32]], list[NDArray[np.float32]]
]:
    """Return each held-out clip's id, and truth and the scores of both runs of its frames.

    Raises:
        TrainError: they are not the same frames.
    """
    scores_one, scores_other = _scores(one), _scores(other)
    only_one = scores_one.keys() - scores_other.keys()
    only_other = scores_other.keys() - scores_one.keys()
    for run, alone in ((one, only_one), (other, only_other)):
        if alone:
            raise TrainError(
                f"{one.path} and {other.path} were not judged by the same clips: only {run.path} "
                f"has {len(alone)} ({', '.join(sorted(alone)[:3])}); train both on one manifest "
                "and store"
            )
    ids = sorted(scores_one)
    for name in ("intervals", "fps"):
        found = [i for i in ids if getattr(one.truth[i], name) != getattr(other.truth[i], name)]
        if found:
            raise TrainError(
                f"{one.path} and {other.path} were not judged by the same annotations: the {name} "
                f"of {len(found)} clips differ ({', '.join(found[:3])}); train both on one manifest"
            )
    steps = one.recipe.snippet_seconds, other.recipe.snippet_seconds
    (truth, ours), (same, theirs) = (
        frames([run.truth[i] for i in ids], [scores[i] for i in ids], step)
        for run, scores, step in zip((one, other), (scores_one, scores_other), steps, strict=True)
    )
    for k, clip_id in enumerate(ids):
        lengths = len(truth[k]), len(same[k])
        # where the manifest tells no duration, each grid of snippets ends where it may
        if abs(lengths[0] - lengths[1]) > max(steps) * (one.truth[clip_id].fps or DEFAULT_FPS) + 1:
            raise TrainError(
                f"{one.path} and {other.path} were not judged by the same frames: {clip_id} has "
                f"{lengths[0]} in one, {lengths[1]} in the other; extract the same videos for both"
            )
        shorter = slice(min(lengths))
        truth[k], ours[k], theirs[k] = truth[k][shorter], ours[k][shorter], theirs[k][shorter]
    return ids, truth, ours, theirs


def _ranks(scores: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    """Return each frame's rank among those of all clips; those of equal scores are averaged."""
    from scipy.stats import rankdata

    ends = np.cumsum([len(own) for own in scores])
    return np.split(rankdata(np.concatenate(list(scores))), ends[:-1])


def _right(run: Run) -> dict[str, bool]:
    """Return clip id -> whether the run has it right."""
    return {
        clip: predicted == label
        for clip, label, predicted in _rows(run, "clip", "label", "predicted")
    }


def _scores(run: Run) -> dict[str, NDArray[np.float32]]:
    """Return clip id -> the scores (T,) of its snippets."""
    found: dict[str, list[str]] = {}
    for clip, score in _rows(run, "clip", "score"):
        found.setdefault(clip, []).append(score)
    try:
        return {clip: np.array(scores, np.float32) for clip, scores in found.items()}
    except ValueError as error:
        raise _damaged(run, error) from error


def _rows(run: Run, *columns: str) -> list[list[str]]:
    """Return these columns of what `evaluate` has written of the held-out clips."""
    try:
        text = read_run_file(run.path / PREDICTIONS_FILE, MOST_PREDICTIONS).decode()
        rows = [[row[name] for name in columns] for row in csv.DictReader(StringIO(text))]
        if not rows:
            raise ValueError("it has no clips")
        held_out = {clip_id for split in run.splits for clip_id in split.test}
        if not all(row[0] in held_out and None not in row for row in rows):
            raise ValueError("a line that is not of its held-out clips")
    except OSError as error:
        raise TrainError(
            f"{run.path} has no {PREDICTIONS_FILE}; judge it first: avarnet evaluate {run.path}"
        ) from error
    except (ValueError, KeyError, csv.Error) as error:
        raise _damaged(run, error) from error
    return rows


def _damaged(run: Run, error: Exception) -> TrainError:
    return TrainError(
        f"{run.path / PREDICTIONS_FILE} is damaged ({error}); judge the run again: "
        f"avarnet evaluate {run.path}"
    )
