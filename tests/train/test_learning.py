"""The default settings learn what is there, and say where they could not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from features import Features, Recipe, Store, Writer
from manifests import Clip, Interval
from train import Config, Predictor, Run, TrainError, evaluate_run, train_run
from train.fitting import restarts
from train.fitting.history import Epoch, best_epoch
from train.losses import logsumexp_pool
from train.models.streams import Streams, totals_of
from train.run_json import FORMER, VERSION_3

SIZES = {"video": 12, "audio": 8}
RECIPE = Recipe(0.25, "fp32", {name: {"features": size} for name, size in SIZES.items()})
TINY = Config(channels=4, stages=1, layers=1, epochs=3)


def clip(kind: int, rng: np.random.Generator, strength: float = 6.0) -> Features:
    """A place of its own, noise, and somewhere a short event of one of four kinds."""
    length, place = int(rng.integers(30, 50)), int(rng.integers(0, 25))
    rows = {}
    for name, size in SIZES.items():
        looks = np.linalg.qr(np.random.default_rng(size).normal(size=(size, 4)))[0].T * strength
        rows[name] = rng.normal(size=size) + rng.normal(size=(length, size))
        rows[name][place : place + 4] += looks[kind]
    return Features(
        {name: values.astype(np.float16) for name, values in rows.items()},
        {name: np.ones(length, bool) for name in SIZES},
        0.25,
        length / 4,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Clip], Store]:
    path = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    clips = []
    with Writer(path, RECIPE) as writer:
        for n in range(160):
            writer.add(f"c{n}", clip(n % 4, rng))
            clips.append(Clip(f"c{n}", "x", ("abcd"[n % 4],), split="train" if n < 60 else "test"))
    return clips, Store(path)


def test_one_short_event_of_four_is_learned_from_sixty_clips(
    world: tuple[list[Clip], Store], tmp_path: Path
) -> None:
    """Where averages of logits over all snippets stay near chance, a quarter."""
    run = train_run(*world, tmp_path / "run", Config(channels=32, epochs=8))
    found = evaluate_run(run, world[1])
    assert found["model"]["accuracy"]["value"] > 0.9
    assert found["linear"]["accuracy"]["value"] < 0.9
    assert found["doubts"] == [run.doubts()[0]]  # eight clips choose the epoch
    assert "Only 8 validation clips, of 4 classes" in found["doubts"][0]


def test_a_start_that_learns_nothing_is_restarted_and_reported(
    world: tuple[list[Clip], Store], tmp_path: Path
) -> None:
    """Labels that mean nothing: all starts stay at chance, and the best of them is kept."""
    rng = np.random.default_rng(1)
    clips = [replace(one, labels=("ab"[rng.integers(2)],)) for one in world[0]]
    run = train_run(clips, world[1], tmp_path / "run", TINY)
    rows = run.epochs()
    assert [row["start"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len({row["val_loss"] for row in rows}) == 9  # each start drew other numbers
    (best,) = run.kept_epochs()
    assert best["val_loss"] <= min(rows[start]["val_loss"] for start in (2, 5, 8))
    assert "1 of 1 models stayed near chance" in run.doubts()[-1]
    single = train_run(clips, world[1], tmp_path / "single", replace(TINY, starts=1))
    assert single.epochs() == [row for row in rows if row["start"] == 0]
    if best["start"] == 0:  # then its weights are those of the first start
        weights = [(r.path / "model-0.safetensors").read_bytes() for r in (run, single)]
        assert weights[0] == weights[1]


def test_an_interrupted_second_start_resumes_as_if_it_never_stopped(
    world: tuple[list[Clip], Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.fitting.restarts.SAVE_SECONDS", -1.0)
    monkeypatch.setattr("train.fitting.restarts.near_chance", lambda *_: True)
    whole = train_run(*world, tmp_path / "whole", TINY)

    def stop(number: int, count: int, epoch: Epoch, best: bool) -> None:
        if (epoch.start, epoch.epoch) == (1, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(*world, tmp_path / "run", TINY, on_epoch=stop)
    resumed = train_run(*world, tmp_path / "run", TINY, resume=True)
    assert resumed.epochs() == whole.epochs()
    weights = [(run.path / "model-0.safetensors").read_bytes() for run in (resumed, whole)]
    assert weights[0] == weights[1]
    assert not list(resumed.path.glob("checkpoint-*"))


def test_a_training_that_diverges_is_reported(
    world: tuple[list[Clip], Store], tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match=r"diverged in epoch 1 .*lower learning_rate, .* 1e\+30"):
        train_run(*world, tmp_path / "run", replace(TINY, learning_rate=1e30))


def test_the_epoch_that_is_kept() -> None:
    def history(*losses: float, error: float = 0.0, start: int = 0) -> list[Epoch]:
        return [Epoch(n, 0.0, loss, 0.0, 0.0, error, start) for n, loss in enumerate(losses, 1)]

    assert best_epoch(history(3, 1, 2)).epoch == 2
    assert best_epoch(history(3, 1, 2, error=1.0)).epoch == 2
    # within half an error of the least, which is a clip more or less: the later one
    assert best_epoch(history(3, 1, 2, error=2.0)).epoch == 3
    assert best_epoch(history(1, 2, 3, 1.5, 9, error=1.0)).epoch == 4
    both = history(3, 2) + history(4, 1, start=1)
    assert (best_epoch(both).start, best_epoch(both).epoch) == (1, 2)


@pytest.mark.parametrize("causal", [False, True])
def test_centred_rows_are_those_less_their_mean(causal: bool) -> None:
    ready = Streams({"video": 2}, centred=True, causal=causal).eval()
    ready.standardise("video", {"centred": (torch.zeros(2), torch.tensor([2.0, 4.0]))})
    rows = torch.tensor([[[1.0, 8], [7, 7], [3, 0], [8, 4]]])
    valid = torch.tensor([[True, False, True, True]])  # what is not valid has no part in the mean
    (found,) = ready({"video": rows}, {"video": valid})[..., 4:6]
    means = [[1, 8], [0, 0], [2, 4], [4, 4]] if causal else [[4, 4]] * 4
    expected = (rows[0] - torch.tensor(means)) / torch.tensor([2.0, 4.0]) * valid[0][:, None]
    assert torch.allclose(found, expected)
    # a stretch is as it is in the whole, if it is told the totals: of all, or of what came before
    seen = slice(0, 2) if causal else slice(0, 4)
    totals = totals_of({"video": rows[:, seen]}, {"video": valid[:, seen]})
    (part,) = ready({"video": rows[:, 2:]}, {"video": valid[:, 2:]}, totals)[..., 4:6]
    assert torch.allclose(part, expected[2:])


def test_in_training_a_clips_scene_is_hidden_or_moved() -> None:
    torch.manual_seed(0)
    ready = Streams({"video": 3}, centred=True, scene_dropout=0.25, offset_noise=0.5).train()
    rows = torch.randn(2000, 5, 3)
    out = ready({"video": rows}, {"video": torch.ones(2000, 5, dtype=torch.bool)})
    values, _, centred, _ = out.split([3, 3, 3, 1], dim=2)
    hidden = (values == 0).all(2).all(1)
    assert torch.allclose(values[~hidden], rows[~hidden])
    assert 0.2 < hidden.float().mean() < 0.3
    moved = centred - (rows - rows.mean(1, keepdim=True))
    assert torch.allclose(moved, moved[:, :1].expand_as(moved), atol=1e-5)  # constant in a clip
    assert float(moved[:, 0].std()) == pytest.approx(0.5, abs=0.02)


def test_log_sum_exp_is_the_mean_of_probabilities_by_their_evidence() -> None:
    torch.manual_seed(0)
    logits, mask = torch.randn(3, 4, 7), torch.ones(3, 7, dtype=torch.bool)
    mask[1, 3:] = False
    mask[2] = False  # a clip that only fills up a batch: whatever it says, it is a number
    found = logsumexp_pool(logits, mask).softmax(1)
    for row, length in ((0, 7), (1, 3)):
        own = logits[row, :, :length]
        attention = own.logsumexp(0).softmax(0)
        assert torch.allclose(found[row], own.softmax(0) @ attention, atol=1e-6)
    assert found.isfinite().all()


def test_outliers_are_cut_off() -> None:
    """A value that is zero in all training clips but few, and large in another one."""
    rows = {"audio": torch.tensor([[[0.0, 1.0], [1000.0, -1.0], [0.0, 0.5]]])}
    valid = {"audio": torch.ones(1, 3, dtype=torch.bool)}
    moments = {
        part: (torch.zeros(2), torch.tensor([0.1, 1.0])) for part in ("value", "change", "centred")
    }

    def prepared(**settings: float) -> torch.Tensor:
        ready = Streams({"audio": 2}, centred=True, **settings).eval()
        ready.standardise("audio", moments)
        return ready(rows, valid)[0, :, :-1]

    whole = prepared()
    assert whole.abs().max() == 10_000
    assert torch.equal(prepared(outlier_limit=10.0), whole.clamp(-10, 10))
    # what training drops makes the rest larger, and the limit with it
    ready = Streams({"audio": 2}, dropout=0.5, outlier_limit=10.0).train()
    ready.standardise("audio", moments)
    drawn = {float(value) for _ in range(20) for value in ready(rows, valid)[0, 1, :-1].abs()}
    assert max(drawn) == 20


@pytest.mark.parametrize(("task", "pooling"), [("recognition", "mean"), ("detection", "top")])
def test_a_run_of_version_3_is_read_as_it_was(
    world: tuple[list[Clip], Store],
    tmp_path: Path,
    task: str,
    pooling: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restarts, "fit_temperature", lambda *_: 1.0)  # there was none
    clips = world[0]
    if task == "detection":
        kinds = {"a": "Normal", "b": "Normal", "c": "Crash", "d": "Crash"}
        clips = [replace(one, labels=(kinds[one.label],), intervals=()) for one in clips]
        clips[-1] = replace(clips[-1], intervals=(Interval(0.0, 1.0),))
    config = Config(
        task=task, pooling=pooling, channels=4, stages=2, layers=1, epochs=3, **VERSION_3
    )
    run = train_run(clips, world[1], tmp_path / "run", config)
    expected = Predictor(run)(world[1]["c0"])
    whole = json.loads((run.path / "run.json").read_text())
    whole["version"] = 3
    del whole["weights"]
    for name in (*VERSION_3, "pooling"):
        del whole["config"][name]
    (run.path / "run.json").write_text(json.dumps(whole))
    weights = safetensors.torch.load_file(run.path / "model-0.safetensors")
    assert weights.pop("temperature") == 1
    then = {name.replace("sequence_model.", "reader."): value for name, value in weights.items()}
    assert then.keys() != weights.keys()
    safetensors.torch.save_file(then, run.path / "model-0.safetensors")
    old = Run.load(run.path)
    assert old.config == run.config
    whole["config"] = {**VERSION_3, "pooling": pooling, **whole["config"]}
    for version, unknown in FORMER.items():
        known = {name: value for name, value in whole["config"].items() if name not in unknown}
        former = {**whole, "version": version, "config": known}
        (run.path / "run.json").write_text(json.dumps(former))
        assert Run.load(run.path).config == run.config
    assert np.array_equal(Predictor(old)(world[1]["c0"]).scores, expected.scores)
    if task == "recognition":  # then, a clip's answer was the mean of its snippets' logits
        logits = np.log(expected.scores).mean(0)
        probabilities = np.exp(logits) / np.exp(logits).sum()
        assert list(expected.probabilities.values()) == pytest.approx(probabilities, abs=1e-4)
