"""Clips that only their sequence tells apart: by the order of two events, or their coincidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features import Features, Recipe, Store, Writer
from manifests import Clip
from train import Config, evaluate_run, train_run

pytestmark = pytest.mark.slow

SIZES = {"video": 12, "audio": 8}
RECIPE = Recipe(0.25, "fp32", {name: {"features": size} for name, size in SIZES.items()})
CLIPS, HELD_OUT = 400, 200
EVENT = 3  # snippets


def clip(kind: int, puzzle: str, rng: np.random.Generator) -> Features:
    """One event is seen and one is heard, in every clip; when, is the class."""
    length = int(rng.integers(36, 48))
    # so near to each other that where an event is in the clip hardly tells whether it is the first
    apart = int(rng.integers(EVENT, 2 * EVENT))
    first = int(rng.integers(0, length - apart - EVENT + 1))
    times = [first, first + apart]
    if puzzle == "order":
        seen, heard = times if kind else times[::-1]
    else:
        seen = int(rng.choice(times))
        heard = seen if kind else times[0] + times[1] - seen
    rows = {name: rng.normal(0, 0.5, (length, size)) for name, size in SIZES.items()}
    rows["video"][seen : seen + EVENT, :4] += 2
    rows["audio"][heard : heard + EVENT, 2:6] += 2
    return Features(
        {name: values.astype(np.float16) for name, values in rows.items()},
        {name: np.ones(length, bool) for name in SIZES},
        0.25,
        length / 4,
    )


@pytest.fixture(scope="module", params=["order", "coincidence"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Clip], Store]:
    path = tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(0)
    clips = []
    with Writer(path, RECIPE) as writer:
        for n in range(CLIPS + HELD_OUT):
            writer.add(f"c{n}", clip(n % 2, request.param, rng))
            split = "train" if n < CLIPS else "test"
            clips.append(Clip(f"c{n}", "x.mp4", (("apart", "together")[n % 2],), split=split))
    return clips, Store(path)


def accuracies(world: tuple[list[Clip], Store], path: Path, **settings: object) -> list[float]:
    run = train_run(*world, path, Config(**{"epochs": 8, "channels": 32, **settings}))  # type: ignore[arg-type]
    found = evaluate_run(run, world[1])
    return [found[who]["accuracy"]["value"] for who in ("model", "linear")]


def test_only_the_fused_sequence_is_informative(
    world: tuple[list[Clip], Store], tmp_path: Path
) -> None:
    fused, linear = accuracies(world, tmp_path / "fused")
    assert fused >= 0.95
    assert linear < 0.65  # chance is 0.5 with a standard deviation of 0.035
    for stream in SIZES:
        alone, _ = accuracies(world, tmp_path / stream, streams=(stream,), epochs=4)
        assert alone < 0.65
