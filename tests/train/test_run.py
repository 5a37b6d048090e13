"""Training, evaluating and using a run, on features whose classes are known to be separable."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from features import Features, Recipe, Store, Writer
from manifests import Clip, assign_split
from train import Config, MTCNClassifier, Predictor, Run, TrainError, evaluate_run, train_run
from train.config import MODEL_ALIASES, MODELS, installed_names
from train.evaluation.recognition import recognition
from train.run_files import write_run_file

RECIPE = Recipe(0.25, "fp32", {"video": {"features": 6}, "audio": {"features": 4}})
SMALL = Config(channels=16, stages=2, epochs=20)


def features(kind: int, seed: int, sound: bool = True) -> Features:
    """A clip whose class is in the rise or fall of a value, not in its average."""
    rng = np.random.default_rng(seed)
    length = int(rng.integers(8, 16))
    video = rng.normal(0, 0.3, (length, 6))
    ramp = np.linspace(-1, 1, length)
    video[:, kind] += ramp if kind != 2 else 1.0
    heard = np.full(length, sound)
    audio = rng.normal(kind, 1.0, (length, 4)) * heard[:, None]
    return Features(
        {"video": video.astype(np.float16), "audio": audio.astype(np.float16)},
        {"video": np.ones(length, bool), "audio": heard},
        0.25,
        length / 4,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Clip], Store]:
    path = tmp_path_factory.mktemp("store")
    clips = []
    with Writer(path, RECIPE) as writer:
        for n in range(90):
            kind = n % 3
            writer.add(f"c{n}", features(kind, n, sound=n % 5 != 0))
            clips.append(Clip(f"c{n}", "x.mp4", ("abc"[kind],)))
    return assign_split(clips, test=0.3, val=0.2), Store(path)


@pytest.fixture(scope="module")
def run(world: tuple[list[Clip], Store], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_run(*world, tmp_path_factory.mktemp("runs") / "run", SMALL)


def test_it_learns_what_can_be_learned(world: tuple[list[Clip], Store], run: Run) -> None:
    result = evaluate_run(run, world[1])
    assert result["held_out"] == "test"
    assert result["model"]["clips"] == sum(clip.split == "test" for clip in world[0])
    assert result["model"]["accuracy"]["value"] > 0.9
    low, high = (result["model"]["accuracy"][key] for key in ("low", "high"))
    assert low <= result["model"]["accuracy"]["value"] <= high
    assert result["missing_streams"]["audio"] > 0
    assert result["missing_streams"]["video"] == 0
    table = (run.path / "predictions.csv").read_text().splitlines()
    assert len(table) == 1 + result["model"]["clips"]
    assert json.loads((run.path / "evaluation.json").read_text()) == result


def test_the_same_seed_gives_the_same_weights(
    world: tuple[list[Clip], Store], run: Run, tmp_path: Path
) -> None:
    again = train_run(*world, tmp_path / "run", SMALL)
    name = "model-0.safetensors"
    assert (again.path / name).read_bytes() == (run.path / name).read_bytes()
    assert again.epochs() == run.epochs()


def test_figures_of_another_version_are_not_read(
    world: tuple[list[Clip], Store], run: Run, tmp_path: Path
) -> None:
    result = evaluate_run(run, world[1])
    assert run.evaluation() == result
    older = replace(run, path=tmp_path)
    (tmp_path / "evaluation.json").write_text(json.dumps({**result, "format": 0}))
    with pytest.raises(TrainError, match=r"judge it first: avarnet evaluate"):
        older.evaluation()


def test_a_run_is_loaded_as_it_was_saved(run: Run) -> None:
    assert Run.load(run.path) == run
    assert Config.load(run.path / "config.toml") == run.config


def test_a_clip_without_sound_gets_an_answer(run: Run) -> None:
    predictor = Predictor(run)
    right = sum(
        predictor(features(kind, 1000 + n, sound=False)).label == "abc"[kind]
        for n in range(30)
        for kind in range(3)
    )
    assert right > 48  # of 90; chance is 30 with a standard deviation of 4.5
    answer = predictor(features(2, 5))
    assert answer.scores.shape == (len(features(2, 5)), 3)
    assert sum(answer.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
    assert answer.confidence == max(answer.probabilities.values())


def test_a_clip_scores_the_same_alone_and_in_a_batch(
    world: tuple[list[Clip], Store], run: Run
) -> None:
    evaluate_run(run, world[1])
    rows = [line.split(",") for line in (run.path / "predictions.csv").read_text().splitlines()]
    predictor = Predictor(run)
    for row in rows[1:6]:
        alone = predictor(world[1][row[0]])
        assert list(alone.probabilities.values()) == pytest.approx(
            [float(value) for value in row[4:]], abs=1e-4
        )


def test_folds_hold_out_every_clip_once(world: tuple[list[Clip], Store], tmp_path: Path) -> None:
    clips = [Clip(c.id, c.path, c.labels, group=f"g{n // 3}") for n, c in enumerate(world[0])]
    run = train_run(clips, world[1], tmp_path / "run", Config(channels=8, epochs=2, folds=3))
    assert sorted(i for split in run.splits for i in split.test) == sorted(c.id for c in clips)
    group = {clip.id: clip.group for clip in clips}
    for part in run.splits:
        sides = [{group[i] for i in side} for side in (part.train, part.val, part.test)]
        assert sum(map(len, sides)) == len(set.union(*sides))
    result = evaluate_run(run, world[1])
    assert (result["parts"], result["model"]["clips"]) == (3, 90)
    assert sum(Predictor(run)(features(0, 1)).probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_one_stream_alone(world: tuple[list[Clip], Store], tmp_path: Path) -> None:
    run = train_run(*world, tmp_path / "run", Config(streams=("audio",), channels=8, epochs=2))
    assert run.sizes == {"audio": 4}
    assert evaluate_run(run, world[1])["model"]["clips"] == 27


def train_error(world: tuple[list[Clip], Store], path: Path, **changes: object) -> str:
    clips = changes.pop("clips", world[0])
    with pytest.raises(TrainError) as caught:
        train_run(clips, world[1], path / "run", Config(**changes))  # type: ignore[arg-type]
    assert not (path / "run").exists()
    return str(caught.value)


def test_a_stream_that_no_training_clip_has_is_left_out(
    world: tuple[list[Clip], Store], tmp_path: Path
) -> None:
    clips, heard = world
    with Writer(tmp_path / "silent", RECIPE) as silent, Writer(tmp_path / "empty", RECIPE) as empty:
        for clip in clips:
            found = heard[clip.id]
            audio = found.valid["audio"] & (clip.split != "train")
            silent.add(clip.id, replace(found, valid={**found.valid, "audio": audio}))
            nothing = {name: np.zeros_like(valid) for name, valid in found.valid.items()}
            empty.add(clip.id, replace(found, valid=nothing))
    short = replace(SMALL, epochs=1, starts=1)
    run = train_run(clips, Store(tmp_path / "silent"), tmp_path / "run", short)
    assert run.config.streams == ("video",)
    # a clip's sound, of which the models have learned nothing, decides on nothing
    own = heard["c1"]
    loud = replace(own, streams={**own.streams, "audio": own.streams["audio"] + np.float16(9)})
    predict = Predictor(run)
    assert predict(own).probabilities == predict(loud).probabilities
    with pytest.raises(TrainError, match="no training clip has any features"):
        train_run(clips, Store(tmp_path / "empty"), tmp_path / "none", short)
    # also where a user names it
    for streams in (("video", "audio"), ("audio",)):
        named = replace(short, streams=streams)
        with pytest.raises(TrainError, match=r"no training clip has audio .*--streams"):
            train_run(clips, Store(tmp_path / "silent"), tmp_path / "named", named)
    assert not (tmp_path / "named").exists()
    learned = MTCNClassifier(config=short).fit(Store(tmp_path / "silent"), clips_of(clips, "train"))
    assert learned.streams_ == ("video",)
    with pytest.raises(TrainError, match="no training clip has audio"):
        MTCNClassifier(config=named).fit(Store(tmp_path / "silent"), clips_of(clips, "train"))


def clips_of(clips: list[Clip], split: str) -> list[Clip]:
    return [clip for clip in clips if clip.split == split]


def test_a_stream_that_is_absent_in_one_fold_is_left_out(
    world: tuple[list[Clip], Store], tmp_path: Path
) -> None:
    """Its models would read the sound of the fold that has it all by what they never learned."""
    clips = [replace(clip, split=f"fold-{n % 3 == 0:d}") for n, clip in enumerate(world[0])]
    clips = [replace(clip, labels=("ab"[n % 2],)) for n, clip in enumerate(clips)]
    with Writer(tmp_path / "store", RECIPE) as writer:
        for clip in clips:
            found = world[1][clip.id]
            audio = found.valid["audio"] & (clip.split == "fold-0")
            writer.add(clip.id, replace(found, valid={**found.valid, "audio": audio}))
    short = replace(SMALL, epochs=1, starts=1)
    run = train_run(clips, Store(tmp_path / "store"), tmp_path / "run", short)
    assert run.config.streams == ("video",)
    named = replace(short, streams=("audio",))
    with pytest.raises(TrainError, match="no training clip of a fold has audio"):
        train_run(clips, Store(tmp_path / "store"), tmp_path / "named", named)


def test_mistakes_are_named_before_the_first_epoch(
    world: tuple[list[Clip], Store], tmp_path: Path
) -> None:
    clips = world[0]
    bare = [Clip(c.id, c.path, c.labels) for c in clips]
    assert "avarnet manifest split" in train_error(world, tmp_path, clips=bare)
    other = [Clip(f"x{c.id}", c.path, c.labels, split="train") for c in clips]
    assert "none of the manifest's 90 clips" in train_error(world, tmp_path, clips=other)
    assert "no stream flow" in train_error(world, tmp_path, streams=("flow",))
    one = [Clip(c.id, c.path, ("a",), split="train") for c in clips]
    assert "two classes" in train_error(world, tmp_path, clips=one)
    rare = [
        Clip(c.id, c.path, ("rare",) if n == 0 else c.labels, split="test" if n == 0 else "train")
        for n, c in enumerate(clips)
    ]
    assert "no training clip of rare" in train_error(world, tmp_path, clips=rare)


def test_features_that_are_not_numbers_are_named(tmp_path: Path) -> None:
    bad = features(0, 0)
    bad.streams["video"][2, 1] = np.nan
    bad_where_invalid = features(0, 3)
    bad_where_invalid.streams["video"][1, 0] = np.inf
    bad_where_invalid.valid["video"][1] = False  # such rows may hold anything: FORMAT.md
    with Writer(tmp_path / "store", RECIPE) as writer:
        for number in range(8):
            clip = bad_where_invalid if number == 3 else features(number % 2, number)
            if number == 5:  # earlier writers took it, and those of others may
                writer._spool.add("c5", bad, RECIPE.fingerprint)
            else:
                writer.add(f"c{number}", clip)
    clips = [Clip(f"c{n}", "x", ("ab"[n % 2],), split="train") for n in range(8)]
    with pytest.raises(TrainError, match="clip c5: its video features"):
        train_run(clips, Store(tmp_path / "store"), tmp_path / "run", Config(validation=0.25))


def test_clips_that_are_not_in_the_store_are_listed(
    world: tuple[list[Clip], Store], tmp_path: Path
) -> None:
    clips = [*world[0], Clip("gone", "x.mp4", ("a",), split="train")]
    run = train_run(clips, world[1], tmp_path / "run", Config(channels=8, epochs=1))
    assert run.left_out == ["gone"]


def test_a_finished_run_is_never_overwritten(world: tuple[list[Clip], Store], run: Run) -> None:
    with pytest.raises(TrainError, match="holds a run already"):
        train_run(*world, run.path, SMALL)


def test_a_folder_of_other_files_is_no_run(world: tuple[list[Clip], Store], tmp_path: Path) -> None:
    (tmp_path / "crash.mp4").write_bytes(b"a video")
    with pytest.raises(TrainError, match=r"holds other files \(crash.mp4\)"):
        train_run(*world, tmp_path, SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["crash.mp4"]


def test_features_of_another_recipe_are_refused(run: Run, tmp_path: Path) -> None:
    other = Recipe(0.25, "bf16", RECIPE.streams)
    with Writer(tmp_path, other) as writer:
        writer.add("c0", features(0, 0))
    with pytest.raises(TrainError, match="precision: bf16, not fp32"):
        evaluate_run(run, Store(tmp_path))


def with_temperature(path: Path, temperature: float | list[float]) -> None:
    """Give a run's model another temperature, and the run no hash of it."""
    weights = load_file(path / "model-0.safetensors")
    weights["temperature"] = torch.tensor(temperature)
    save_file(weights, path / "model-0.safetensors")
    whole = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**whole, "weights": []}))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p: (p / "run.json").unlink(), "no finished run.*avarnet train"),
        (lambda p: (p / "run.json").write_text("{"), "damaged"),
        (lambda p: (p / "run.json").write_text('{"version": 99}'), "version 99"),
        (lambda p: (p / "model-0.safetensors").write_bytes(b"x" * 99), "not the weights"),
        (lambda p: (p / "model-0.safetensors").unlink(), "not the weights"),
        (lambda p: with_temperature(p, 0.0), "not the weights.*not above zero"),
        (lambda p: with_temperature(p, [2.0, 2.0]), "not the weights"),
    ],
)
def test_damaged_runs(run: Run, tmp_path: Path, break_it: object, message: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    break_it(copy)  # type: ignore[operator]
    with pytest.raises(TrainError, match=message):
        Predictor(Run.load(copy))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "no setting epoch; there are"),
        ("epochs = 'three'", "epochs = 'three'; expected one like"),
        ("epochs = 0", r"out of range: epochs = 0 \(expected: 1 to 100000\)$"),
        ("dropout = 1.5", r"out of range: dropout = 1.5 \(expected: from 0 to below 1\)$"),
        ("folds = 1", r"folds = 1 \(expected: 2 or more, or 0 for none\)"),
        ("loss = 'hinge'", r"loss = 'hinge' \(expected: cross_entropy, focal\)"),
        ("learning_rate = nan", r"learning_rate = nan \(expected: above 0\)"),
        ("class_weights = 1", "class_weights = 1"),
        ("streams = 'video'", "streams = 'video'"),
        ("epochs =", "t.toml"),
    ],
)
def test_settings_mistakes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(TrainError, match=message):
        Config.load(tmp_path / "t.toml")


def test_options_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text('epochs = 7\nseed = 3\nstreams = ["audio"]\ndropout = 0')
    config = Config.load(tmp_path / "t.toml", seed=5, epochs=None)
    assert (config.epochs, config.seed, config.streams, config.dropout) == (7, 5, ("audio",), 0.0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
@settings(max_examples=25, deadline=None)
def test_metrics_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(pairs).T
    ours = recognition(
        truth, np.eye(4, dtype=np.float32)[predicted], ["a", "b", "c", "d"], np.arange(len(truth))
    )
    theirs = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)
    assert ours["accuracy"]["value"] == pytest.approx(accuracy_score(truth, predicted))
    for name, value in zip(("precision", "recall", "f1"), theirs[:3], strict=True):
        assert ours[name]["value"] == pytest.approx(value)
    assert np.sum(ours["confusion"]) == len(pairs)


def test_linear_is_an_alias() -> None:
    assert Config(model="linear") == Config(model="snippet_linear")
    assert Config.load(None, model="linear").model == "snippet_linear"
    assert {*installed_names("model")} >= {*MODELS, *MODEL_ALIASES}


@pytest.mark.parametrize(("clips", "folds"), [(2, 2), (3, 2), (4, 0)])
def test_too_few_clips_for_folds_are_counted(
    world: tuple[list[Clip], Store], tmp_path: Path, clips: int, folds: int
) -> None:
    few = [replace(clip, split=None, group="one") for clip in world[0][:clips]]
    if folds:
        few = [replace(clip, group=None) for clip in few]
    else:
        few = [replace(clip, split="train") for clip in few]
    found = train_error(world, tmp_path, clips=few, folds=folds)
    left = clips if not folds else clips // 2
    assert f"too few clips to train and to choose the epoch: {left} beside the held-out" in found


def test_a_folder_is_not_taken_for_a_page(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="is a folder; give a file"):
        write_run_file(tmp_path, "page")
    assert not list(tmp_path.iterdir())
