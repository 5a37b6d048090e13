"""The example of a foreign sequence model and fusion: installed, trained, and absent again."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import avarnet, in_a_process
from example_packages import install_example
from small_stores import RECIPE

from features import Features, Store, pack
from manifests import Clip, read, write
from train import Config, LiveScorer, Predictor, Run, TrainError, train_run
from train.evaluation.evaluate import evaluate_run

ROOT = Path(__file__).parents[2]
SETTINGS = {"model": "gru", "fusion": "sum", "channels": 8, "epochs": 8}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_example("own_model", tmp_path_factory)


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))  # for processes
    yield
    sys.modules.pop("avarnet_own_model", None)


def rising(kind: int, seed: int) -> Features:
    """A clip whose class is whether a value of the picture rises or falls."""
    rng = np.random.default_rng(seed)
    length = int(rng.integers(8, 16))
    video, audio = rng.normal(0, 0.2, (length, 3)), rng.normal(0, 1, (length, 2))
    video[:, 0] += np.linspace(-1, 1, length) * (1 if kind else -1)
    streams = {"video": video.astype(np.float16), "audio": audio.astype(np.float16)}
    return Features(streams, {n: np.ones(length, bool) for n in streams}, 0.25, length / 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips")
    clips = [
        Clip(f"c{n}", "x.mp4", ("fall", "rise")[n % 2 :][:1], split=("train", "val", "test")[n % 3])
        for n in range(96)
    ]
    pack(path / "store", ((c.id, rising(n % 2, n)) for n, c in enumerate(clips)), RECIPE)
    write(path / "m.jsonl", clips)
    return path


@pytest.mark.slow
def test_the_commands_train_it_and_say_what_lacks(
    folder: Path, site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text("channels = 8\nepochs = 8\n")
    words = ["train", folder / "m.jsonl", folder / "store", tmp_path / "run"]
    options = ["--model", "gru", "--fusion", "sum", "--config", tmp_path / "c.toml", "--json"]
    options += ["--folds", 2, "--processes", 2]  # models in processes of their own
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))
        trained = json.loads(in_a_process(*words, *options))
    assert (trained["config"]["model"], trained["config"]["fusion"]) == ("gru", "sum")
    # where the package is absent
    output = avarnet("predict", tmp_path / "run", "--store", folder / "store", code=1)
    assert output.count("\n") == 1
    assert "its model gru comes with another package, avarnet-own-model 1, which is not" in output
    assert "'gru' is not one of" in avarnet(*words, *options, code=2)


@pytest.mark.usefixtures("installed")
def test_it_learns_and_predicts(folder: Path, tmp_path: Path) -> None:
    store, clips = Store(folder / "store"), read(folder / "m.jsonl")
    run = train_run(clips, store, tmp_path / "run", Config.load(None, **SETTINGS, causal=True))
    assert run.packages == {"model": "avarnet-own-model 1", "fusion": "avarnet-own-model 1"}
    metrics = evaluate_run(run, store)
    assert metrics["model"]["accuracy"]["value"] > 0.9
    loaded = Run.load(tmp_path / "run")
    clip = store["c2"]
    whole = Predictor(loaded)(clip)
    live = LiveScorer(loaded)
    one_by_one = [
        live({n: rows[t] for n, rows in clip.streams.items()}, dict.fromkeys(clip.streams, True))
        for t in range(len(clip))
    ]
    np.testing.assert_allclose(one_by_one, whole.scores, atol=1e-5)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("causal", [False, True])
def test_the_example_is_torch_s_own_layer(causal: bool) -> None:
    """Clip by clip without padding, a GRU and a linear layer of torch compute the same."""
    module = importlib.import_module("avarnet_own_model")
    torch.manual_seed(0)
    model = module.GRU(5, 3, 4, causal, 0.5).eval()
    x, lengths = torch.randn(2, 5, 9), (9, 4)
    mask = torch.arange(9)[None] < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        logits = model(x, mask)
        for k, length in enumerate(lengths):
            alone = model.leave(model.read(x[k : k + 1, :, :length].transpose(1, 2))[0])
            assert torch.allclose(logits[0, k, :, :length].T, alone[0], atol=1e-6)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("return self.leave(x.transpose(1, 2))", r"gives logits of \(1, 12, 2\), expected"),
        ("return self.logits(x - x.mean(2, keepdim=True))", "where padding follows a clip"),
        ("return self.logits(x.flip(2) * mask.all())", "where padding follows a clip"),
        (
            "x = x * mask[:, None]; return self.logits(x + F.pad(x[:, :, 1:], (0, 1)))",
            "sees the future",
        ),
        ("return self.logits(x + x.cumsum(2))", "sees more than 0 snippets to a side"),
        ("return self.logits(x[:, :2])", r"fails on a clip of 12 snippets \(RuntimeError: mat1"),
    ],
)
def test_what_breaks_the_contract_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    module = importlib.import_module("avarnet_own_model")

    class Broken(torch.nn.Module):
        receptive_field = 0

        def __init__(self, in_features: int, num_classes: int, *others: object) -> None:
            super().__init__()
            self.leave = torch.nn.Linear(in_features, num_classes)

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return self.leave(x.transpose(1, 2)).transpose(1, 2)[None]

    scope: dict[str, object] = {"F": torch.nn.functional}
    exec(f"def forward(self, x, mask):\n    {code}", scope)
    Broken.forward = scope["forward"]
    monkeypatch.setattr(module, "GRU", Broken)
    config = Config.load(None, **SETTINGS, causal=True)
    with pytest.raises(TrainError, match=f"the model 'gru' of avarnet-own-model 1.*{message}"):
        train_run(read(folder / "m.jsonl"), Store(folder / "store"), tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("installed")
def test_state_that_is_not_learned_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("avarnet_own_model")
    before = module.Sum.__init__

    def with_norm(self: torch.nn.Module, *words: object) -> None:
        before(self, *words)
        self.norm = torch.nn.BatchNorm1d(3)

    monkeypatch.setattr(module.Sum, "__init__", with_norm)
    with pytest.raises(TrainError, match=r"state that is not learned.*norm.*take LayerNorm"):
        train_run(
            read(folder / "m.jsonl"),
            Store(folder / "store"),
            tmp_path / "run",
            Config.load(None, **SETTINGS),
        )


@pytest.mark.usefixtures("installed")
def test_a_package_that_cannot_be_imported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "avarnet_own_model", None)
    config = replace(Config.load(None, **SETTINGS), fusion="early")
    with pytest.raises(TrainError, match="the model 'gru' of avarnet-own-model 1 cannot be import"):
        train_run(read(folder / "m.jsonl"), Store(folder / "store"), tmp_path / "run", config)
