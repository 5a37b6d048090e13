"""Several models at once, runs that resume, searches, tables: on a little world."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.model_selection import cross_val_score

from features import Features, Recipe, Store, Writer
from manifests import Clip, Interval, assign_split, write
from train import (
    Config,
    MTCNClassifier,
    Predictor,
    Run,
    Search,
    TrainError,
    ablate,
    evaluate_run,
    export_run,
    sweep,
    train_run,
)
from train.evaluation.recognition import calibration
from train.experiments.ablate import variants

pytestmark = pytest.mark.slow

SIZES = {"video": 6, "audio": 4}
RECIPE = Recipe(0.25, "fp32", {name: {"features": size} for name, size in SIZES.items()})
SMALL = Config(channels=8, stages=2, epochs=4, patience=4, starts=1)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the attention pooling beside each run; what it learns is tested with the baselines."""
    monkeypatch.setattr("train.baselines.snippet_pooling.STEPS", 50)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Clip], Store]:
    path = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    clips = []
    with Writer(path, RECIPE) as writer:
        for n in range(60):
            length = int(rng.integers(6, 12))
            rows = {name: rng.normal(n % 3, 1.5, (length, d)) for name, d in SIZES.items()}
            writer.add(
                f"c{n}",
                Features(
                    {name: values.astype(np.float16) for name, values in rows.items()},
                    {name: np.ones(length, bool) for name in SIZES},
                    0.25,
                    length / 4,
                ),
            )
            clips.append(Clip(f"c{n}", "x.mp4", ("abc"[n % 3],)))
    return assign_split(clips, test=0.3, val=0.2), Store(path)


@pytest.fixture(scope="module")
def run(world: tuple[list[Clip], Store], tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = replace(SMALL, folds=3, seeds=2)
    return train_run(*world, tmp_path_factory.mktemp("runs") / "run", config)


def test_seeds_are_averaged_and_spread(
    world: tuple[list[Clip], Store], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run.models == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    read, load = [], Run.model
    monkeypatch.setattr(Run, "model", lambda self, n: read.append(n) or load(self, n))
    found = evaluate_run(run, world[1])
    assert list(found["without"]) == ["video", "audio"]
    assert read == list(range(6))  # once, also to see what each stream adds
    assert found["model"]["clips"] == 60  # each held out once, however many seeds
    each = found["models"]["each"]
    assert [(row["fold"], row["seed"]) for row in each] == [
        (f, s) for f in range(3) for s in (0, 1)
    ]
    values = [row["accuracy"] for row in each]
    assert found["models"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert found["models"]["accuracy"]["std"] == pytest.approx(np.std(values, ddof=1))
    assert found["seeds"]["accuracy"]["std"] is not None
    probabilities = Predictor(run)(world[1]["c0"]).probabilities
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_a_seed_gives_the_same_alone_and_among_others(
    world: tuple[list[Clip], Store], run: Run, tmp_path: Path
) -> None:
    alone = train_run(*world, tmp_path / "run", replace(SMALL, folds=3))
    for fold in range(3):
        name = f"model-{fold}.safetensors"
        assert (alone.path / name).read_bytes() == (run.path / name).read_bytes()


def test_processes_change_nothing(
    world: tuple[list[Clip], Store], run: Run, tmp_path: Path
) -> None:
    apart = train_run(*world, tmp_path / "run", run.config, processes=2)
    assert apart.epochs() == run.epochs()
    for number in range(len(run.models)):
        name = f"model-{number}.safetensors"
        assert (apart.path / name).read_bytes() == (run.path / name).read_bytes()


def test_a_killed_run_resumes_as_if_it_never_stopped(
    world: tuple[list[Clip], Store], tmp_path: Path
) -> None:
    """The training is killed after a checkpoint and resumed; then it is as one in a piece."""
    config = replace(SMALL, epochs=24, patience=24, folds=2)
    write(tmp_path / "m.jsonl", world[0])
    (tmp_path / "c.toml").write_text(config.to_toml())
    program = (
        "import sys; from pathlib import Path; import manifests, train, train.fitting.restarts\n"
        "from features import Store\n"
        "train.fitting.restarts.SAVE_SECONDS = 0.0\n"
        "path = Path(sys.argv[1])\n"
        "train.train_run(manifests.read(path / 'm.jsonl'), Store(Path(sys.argv[2])), path / 'run', "
        "train.Config.load(path / 'c.toml'))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path), str(world[1].path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[3])
    lines = tmp_path / "run" / "metrics.jsonl"
    while not lines.exists() or len(lines.read_text().splitlines()) < 12:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "run.json").exists()
    assert list((tmp_path / "run").glob("checkpoint-*"))
    with pytest.raises(TrainError, match="--resume continues it"):
        train_run(*world, tmp_path / "run", config)
    with pytest.raises(TrainError, match=r"begun otherwise \(config, channels differ\)"):
        train_run(*world, tmp_path / "run", replace(config, channels=4), resume=True)
    seen = []
    resumed = train_run(
        *world, tmp_path / "run", config, resume=True, on_epoch=lambda *epoch: seen.append(epoch)
    )
    whole = train_run(*world, tmp_path / "whole", config)
    assert resumed.epochs() == whole.epochs()
    for number in range(2):
        name = f"model-{number}.safetensors"
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert len(seen) == 2 * config.epochs
    assert not list(resumed.path.glob("checkpoint-*"))
    assert not (resumed.path / "unfinished.json").exists()


def test_a_store_that_was_extended_before_a_resume(
    world: tuple[list[Clip], Store], tmp_path: Path
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    clips, whole = world
    late = ["c3", "c5", "c8", "c10"]
    with Writer(tmp_path / "store", RECIPE) as writer:
        for clip in clips:
            if clip.id not in late:
                writer.add(clip.id, whole[clip.id])
    with pytest.raises(KeyboardInterrupt):
        train_run(clips, Store(tmp_path / "store"), tmp_path / "run", SMALL, on_epoch=stop)
    with Writer(tmp_path / "store", RECIPE) as writer:
        writer.add("no clip of the manifest", whole["c3"])  # changes nothing
    run = train_run(clips, Store(tmp_path / "store"), tmp_path / "run", SMALL, resume=True)
    assert sorted(run.left_out) == sorted(late)
    with pytest.raises(KeyboardInterrupt):
        train_run(clips, Store(tmp_path / "store"), tmp_path / "next", SMALL, on_epoch=stop)
    with Writer(tmp_path / "store", RECIPE) as writer:
        for clip_id in late:
            writer.add(clip_id, whole[clip_id])
    with pytest.raises(TrainError, match=r"other clips: 4 \(c10, c3, c5\) came into the manifest"):
        train_run(clips, Store(tmp_path / "store"), tmp_path / "next", SMALL, resume=True)


def test_a_damaged_checkpoint_is_named(world: tuple[list[Clip], Store], tmp_path: Path) -> None:
    path = tmp_path / "run"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(*world, path, SMALL, on_epoch=stop)
    (path / "checkpoint-0.safetensors").write_bytes(b"rubbish")
    with pytest.raises(
        TrainError, match=r"checkpoint-0.* a training cannot resume from it.*delete it"
    ):
        train_run(*world, path, SMALL, resume=True)


def test_sampling_by_class_and_augmentation_train(
    world: tuple[list[Clip], Store], tmp_path: Path
) -> None:
    config = replace(
        SMALL, epochs=12, patience=12, input_dropout=0.1, dropout=0.1, sampling="classes",
        class_weights=False, loss="focal", time_crop=0.7, time_mask=0.2, snippet_dropout=0.1,
        mixup=0.3,
    )  # fmt: skip
    run = train_run(*world, tmp_path / "run", config)
    assert evaluate_run(run, world[1])["model"]["accuracy"]["value"] > 0.6


def test_the_table_of_ablations(world: tuple[list[Clip], Store], tmp_path: Path) -> None:
    config = replace(SMALL, epochs=1, seeds=2)
    rows = ablate(*world, tmp_path, config)
    names = [*variants(["video", "audio"], config), "logistic baseline"]
    names.append("attention pooling")
    assert [row.name for row in rows] == names
    assert len(names) == 3 + 4 + 4 + 1 + 2
    assert all(row.parameters and row.flops and row.std is not None for row in rows[:-2])
    by_name = {row.name: row for row in rows}
    assert by_name["video"].parameters < by_name["video+audio"].parameters
    # a linear layer multiplies each value of each snippet once for each class, the linear term each
    # of the clip's averages
    length = np.median([len(clip.video) for clip in world[1].values()])
    products = length * (3 * 6 + 1 + 3 * 4 + 1) + 2 * (6 + 4) + 2
    assert by_name["snippet_linear"].flops == 2 * products * 3
    table = json.loads((tmp_path / "ablation.json").read_text())
    assert [row["name"] for row in table] == names
    for name in ("lstm", "video", "plain"):  # the baselines are those of each run alone
        evaluation = json.loads((tmp_path / name / "evaluation.json").read_text())
        alone = evaluate_run(Run.load(tmp_path / name), world[1])
        for kind in ("linear", "baselines"):
            assert json.loads(json.dumps(alone[kind])) == evaluation[kind]
    before = (tmp_path / "lstm" / "model-0.safetensors").stat().st_mtime_ns
    again = ablate(*world, tmp_path, config)  # nothing is trained again
    assert [row.mean for row in again] == [row.mean for row in rows]
    assert (tmp_path / "lstm" / "model-0.safetensors").stat().st_mtime_ns == before
    with pytest.raises(TrainError, match="other settings"):
        ablate(*world, tmp_path, replace(config, epochs=3))


def test_a_sweep_resumes_and_ranks(world: tuple[list[Clip], Store], tmp_path: Path) -> None:
    file = tmp_path / "search.toml"
    text = (
        "trials = {}\n[settings]\nepochs = 4\nstages = 1\n[search]\nchannels = [4, 8]\n"
        "learning_rate = {{ low = 1e-4, high = 1e-2, log = true }}\n"
    )
    file.write_text(text.format(3))
    first = sweep(*world, tmp_path / "sweep", Search.load(file))
    assert len(first) == 3
    file.write_text(text.format(6))
    trials = sweep(*world, tmp_path / "sweep", Search.load(file))
    assert sorted(t.number for t in trials) == list(range(6))
    assert len({t.drawn["learning_rate"] for t in trials}) == 6
    complete = [t for t in trials if t.state == "complete"]
    assert [t.value for t in complete] == sorted((t.value for t in complete), reverse=True)
    for trial in complete:
        run = Run.load(tmp_path / "sweep" / f"trial-{trial.number}")
        assert run.config.learning_rate == trial.drawn["learning_rate"]
        assert run.config.channels == trial.drawn["channels"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trials = 3", r"expected trials = 20, \[settings\] and \[search\]"),
        ("[search]\nepoch = [1]", "no setting"),
        ("[search]\nchannels = 8", "expected a list, or"),
        ("[search]\ndropout = {low = 0.5, high = 0.1}", "not below"),
        ("[search]\nchannels = ['many']", "channels = 'many'"),
        ("[search]\ndropout = [0.5, 2.0]", "out of range"),
    ],
)
def test_mistakes_in_a_search_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(TrainError, match=message):
        Search.load(tmp_path / "s.toml")


@pytest.mark.parametrize("task", ["recognition", "detection"])
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_an_exported_run_answers_as_the_run_does(
    world: tuple[list[Clip], Store], tmp_path: Path, ending: str, task: str
) -> None:
    kinds = {"a": ("Normal", ()), "b": ("Crash", (Interval(0, 1),)), "c": ("Crash", ())}
    clips = [replace(c, labels=(kinds[c.label][0],), intervals=kinds[c.label][1]) for c in world[0]]
    config = Config(task=task, channels=8, stages=2, epochs=2, starts=1, seeds=2)
    run = train_run(clips, world[1], tmp_path / "run", config)
    file = tmp_path / f"model.{ending}"
    assert export_run(run, file) < 1e-4
    for clip_id in ("c0", "c1", "c2"):
        clip = world[1][clip_id]
        rows = [clip.streams[name][None].astype(np.float32) for name in SIZES]
        valid = [clip.valid[name][None] for name in SIZES]
        if ending == "onnx":
            session = onnxruntime.InferenceSession(file)
            names = [i.name for i in session.get_inputs()]
            assert names == ["video", "audio", "video_valid", "audio_valid"]
            whole, snippets = session.run(None, dict(zip(names, [*rows, *valid], strict=True)))
            about = session.get_modelmeta().custom_metadata_map
        else:
            about = dict.fromkeys(("classes", "snippet_seconds", "fingerprint"), "")
            program = torch.export.load(file, extra_files=about).module()
            outputs = program(*(torch.tensor(x) for x in (*rows, *valid)))
            whole, snippets = (output.detach().numpy() for output in outputs)
        assert json.loads(about["classes"]) == run.classes
        assert float(about["snippet_seconds"]) == 0.25
        assert about["fingerprint"] == run.recipe.fingerprint
        expected = Predictor(run)(clip)
        assert whole[0] == pytest.approx(list(expected.probabilities.values()), abs=1e-4)
        assert snippets[0] == pytest.approx(expected.scores, abs=1e-4)


def test_only_known_endings_are_exported(run: Run, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"\.onnx or \.pt2"):
        export_run(run, tmp_path / "model.tflite")


def test_the_estimator_is_scikit_learns(world: tuple[list[Clip], Store]) -> None:
    clips, store = world
    model = MTCNClassifier(config=SMALL).fit(store, clips)
    assert list(model.classes_) == ["a", "b", "c"]
    assert model.predict_proba(clips[:5]).sum(1) == pytest.approx(np.ones(5), abs=1e-5)
    assert model.score(clips) == np.mean(model.predict(clips) == [c.label for c in clips])
    ids, labels = [clip.id for clip in clips], [clip.label for clip in clips]
    scores = cross_val_score(MTCNClassifier(store, replace(SMALL, epochs=6)), ids, labels, cv=3)
    assert scores.mean() > 0.5  # chance is a third
    assert (model.predict(ids[:4]) == model.predict(clips[:4])).all()
    with pytest.raises(TrainError, match="give the store"):
        MTCNClassifier().fit(clips)


def test_calibration_of_answers_that_are_too_sure() -> None:
    probabilities = np.array([[0.95, 0.05]] * 4 + [[0.35, 0.65]] * 4, np.float32)
    found = calibration(np.array([0, 0, 1, 1, 1, 1, 1, 0]), probabilities)
    assert found["ece"] == pytest.approx(0.5 * 0.45 + 0.5 * 0.10)
    assert [b["clips"] for b in found["bins"]] == [4, 4]
    assert found["bins"][1] == pytest.approx({"confidence": 0.95, "accuracy": 0.5, "clips": 4})


def test_the_plain_variant_is_the_file_of_settings() -> None:
    file = Path(__file__).parents[3] / "benchmarks" / "plain.toml"
    assert variants(["video", "audio"], Config())["plain"] == Config.load(
        file, streams=["video", "audio"]
    )
