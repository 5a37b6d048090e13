"""The commands on whole stores, from push to import."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from command import as_json, avarnet
from small_stores import RECIPE, clip, fill, same

from features import Store, pack
from manifests import Clip, write

pytestmark = pytest.mark.slow

CLIPS = {f"{'ab'[n % 2]}/{n}": clip(6 + n, n + 1) for n in range(12)}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    pack(tmp_path / "store", CLIPS.items(), RECIPE, shard_bytes=300)
    return tmp_path / "store"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Every third clip is held out; the label is the first letter."""
    path = tmp_path / "m.jsonl"
    splits = ("train", "train", "val", "test")
    clips = [
        Clip(id, f"{id}.mp4", (id[0],), split=splits[n // 2 % 4]) for n, id in enumerate(CLIPS)
    ]
    write(path, clips)
    return path


def test_push_list_and_pull(store: Path, manifest: Path, tmp_path: Path) -> None:
    team = f"file://{tmp_path}/team"
    pushed = as_json("features", "push", store, team)
    assert len(pushed["shards"]) == len(Store(store).shards)
    again = avarnet("features", "push", store, team)
    assert "0 shards transferred, 4 already there: 0 bytes" in again
    assert {row["clip"] for row in as_json("features", "list", team)} == set(CLIPS)
    (tmp_path / "ids.txt").write_text("a/0\nb/5\nnowhere\n")
    part = tmp_path / "part"
    output = avarnet("features", "pull", team, part, "--ids", tmp_path / "ids.txt", "--trim")
    assert "not in that store: 1 clip (" in output
    assert set(Store(part)) == {"a/0", "b/5"}
    assert same(Store(part)["b/5"], CLIPS["b/5"])
    held_out = tmp_path / "test"
    choice = ["--manifest", manifest, "--split", "test", "--labels", "b", "--trim"]
    avarnet("features", "pull", team, held_out, *choice)
    assert set(Store(held_out)) == {"b/7"}
    assert "| b | 1 |" in (held_out / "CARD.md").read_text()
    avarnet("features", "pull", team, tmp_path / "all")
    assert not any(as_json("features", "diff", store, tmp_path / "all").values())


def test_repair_without_videos(store: Path, tmp_path: Path) -> None:
    """`verify` says how; what it says is run, with the address filled in."""
    team, mine = f"file://{tmp_path}/team", tmp_path / "my store"
    avarnet("features", "push", store, team)
    avarnet("features", "pull", team, mine)
    hurt = [sorted(tmp_path.joinpath(where).glob("*.h5"))[0] for where in ("team", "my store")]
    for shard in hurt:
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert "0 shards transferred" in avarnet("features", "pull", team, mine)
    output = avarnet("features", "verify", mine, code=1)
    (command,) = re.findall("avarnet (features pull URL .*)", output)
    words = [team if word == "URL" else word for word in shlex.split(command)]
    assert "features push STORE URL --repair" in avarnet(*words, code=1)
    assert "1 shard transferred" in avarnet("features", "push", store, team, "--repair")
    assert "1 shard transferred, 3 already there" in avarnet(*words)
    assert "12 clips intact, 0 damaged" in avarnet("features", "verify", mine)
    assert "give no choice" in avarnet(*words, "--trim", code=2)


def test_edit(store: Path, manifest: Path, tmp_path: Path) -> None:
    fill(tmp_path / "more", {"c/0": clip(5)})
    both = tmp_path / "both"
    assert "13 clips" in avarnet("features", "merge", store, tmp_path / "more", "-o", both)
    assert "1 now" in avarnet("features", "compact", both)
    (tmp_path / "ids.txt").write_text("c/0\n")
    assert "1 clip dropped" in avarnet("features", "drop", both, "--ids", tmp_path / "ids.txt")
    assert "the same clips with the same features" in avarnet("features", "diff", store, both)
    found = avarnet("features", "diff", store, tmp_path / "more", code=1)
    assert "c/0" in found
    avarnet("features", "card", both, "--manifest", manifest)
    assert "| a | 6 |" in (both / "CARD.md").read_text()


def test_export_and_import(store: Path, tmp_path: Path) -> None:
    for kind in ("npy", "webdataset", "safetensors"):
        output = avarnet("features", "export", store, tmp_path / kind, "--as", kind)
        assert "12 clips written" in output
    avarnet(
        *("features", "import", tmp_path / "back"),
        *("--stream", f"video={tmp_path}/npy/video/{{clip}}.npy"),
        *("--stream", f"audio={tmp_path}/npy/audio/{{clip}}.npy"),
        *("--snippet-seconds", 0.25, "--about", "a test"),
    )
    back = Store(tmp_path / "back")
    assert set(back) == set(CLIPS)
    for clip_id, clip_was in CLIPS.items():
        valid = clip_was.audio_valid
        assert (back[clip_id].audio_valid == valid).all()
        assert (back[clip_id].audio[valid] == clip_was.audio[valid]).all()


def test_public_features_become_a_run(manifest: Path, tmp_path: Path) -> None:
    """As XD-Violence's are published: RGB in five crops a clip, VGGish, a row for 16 frames."""
    rng = np.random.default_rng(0)
    for number, clip_id in enumerate(CLIPS):
        name = clip_id.replace("/", "_")
        for crop in range(5):
            rgb = rng.normal(number % 2, size=(8 + number, 16)).astype(np.float32)
            np.save(tmp_path / f"{name}__{crop}.npy", rgb)
        np.save(tmp_path / f"{name}__vggish.npy", rng.normal(size=(7 + number, 4)))
    clips = [json.loads(line) for line in manifest.read_text().splitlines()]
    renamed = [{**row, "id": row["id"].replace("/", "_")} for row in clips]
    manifest.write_text("\n".join(map(json.dumps, renamed)))
    store, run = tmp_path / "xd", tmp_path / "run"
    summary = as_json(
        *("features", "import", store, "--stream", f"rgb={tmp_path}/{{clip}}__{{crop}}.npy"),
        *("--stream", f"vggish={tmp_path}/{{clip}}__vggish.npy"),
        *("--snippet-seconds", "16/24", "--about", "I3D and VGGish"),
    )
    assert len(summary["imported"]) == 12
    opened = Store(store)
    assert opened["a_0"].streams["rgb"].shape == (8, 5 * 16)
    assert opened.recipe.crops == {"rgb": 5}
    trained = as_json("train", manifest, store, run, "--epochs", 30)
    assert trained["config"]["streams"] == ["rgb", "vggish"]
    assert (
        as_json("evaluate", run)["model"]["accuracy"]["value"] == 1.0
    )  # the classes' means differ


def test_train_on_a_joined_store(store: Path, manifest: Path, tmp_path: Path) -> None:
    for clip_id, features in CLIPS.items():
        path = tmp_path / "flow" / f"{clip_id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((len(features), 4), float(clip_id[0] == "a")))
    flow = tmp_path / "flow-store"
    avarnet(
        *("features", "import", flow, "--stream", f"flow={tmp_path}/flow/{{clip}}.npy"),
        *("--snippet-seconds", 0.25, "--about", "a flow"),
    )
    run = tmp_path / "run"
    trained = as_json("train", manifest, store, run, "--join", flow, "--epochs", 30)
    assert trained["config"]["streams"] == ["video", "audio", "flow"]
    assert (
        as_json("evaluate", run)["model"]["accuracy"]["value"] == 1.0
    )  # flow tells the classes apart
    moved = [tmp_path / "elsewhere", tmp_path / "flow-elsewhere"]
    for old, new in zip([store, flow], moved, strict=True):
        old.rename(new)
    output = avarnet("evaluate", run, code=1)
    assert str(store) in output
    avarnet("evaluate", run, "--store", moved[0], "--store", moved[1])


def test_many_models_and_what_becomes_of_them(store: Path, manifest: Path, tmp_path: Path) -> None:
    run, little = tmp_path / "run", tmp_path / "little.toml"
    little.write_text("epochs = 2\nstarts = 1\nchannels = 8\nstages = 1\nvalidation = 0.3\n")
    options = ["--config", little, "--seeds", 2, "--fusion", "gated"]
    output = avarnet("train", manifest, store, run, *options, "--causal", "--tensorboard")
    _, header, *rows = output.split("the best epoch of each model:")[1].splitlines()
    assert header.split()[:3] == ["fold", "seed", "epoch"]
    assert [row.split()[:2] for row in rows[:2]] == [["0", "0"], ["0", "1"]]
    assert list((run / "tensorboard").glob("events.*"))
    assert "holds a run already" in avarnet("train", manifest, store, run, *options, code=1)
    assert "±" in avarnet("evaluate", run)
    assert "within" in avarnet("export", run, tmp_path / "model.onnx")
    assert ".onnx or .pt2" in avarnet("export", run, tmp_path / "model.bin", code=1)
    table = as_json("ablate", manifest, store, tmp_path / "all", "--config", little)
    assert [row["model"] for row in table[-7:]] == [
        "tcn", "lstm", "transformer", "snippet_linear", "mtcn", "logistic baseline",
        "attention pooling",
    ]  # fmt: skip
    search = tmp_path / "search.toml"
    search.write_text("trials = 2\n[settings]\nepochs = 1\n[search]\nchannels = [4, 8]\n")
    output = avarnet("sweep", manifest, store, tmp_path / "sweep", search)
    assert "the best is a run" in output


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["push", "nowhere", "s3://x"], 1, "not a feature store"),
        (["pull", "file:///nowhere/at/all", "s"], 1, "nowhere/at/all"),
        (["pull", "gopher://x", "s"], 1, "gopher"),
        (["pull", "file:///x", "s", "--split", "test"], 2, "give their --manifest"),
        (["pull", "file:///x", "s", "--trim"], 2, "--trim needs a choice of clips"),
        (["merge", "nowhere", "-o", "out"], 1, "not a feature store"),
        (["export", "nowhere", "out", "--as", "zip"], 2, "'zip' is not one of"),
        (["import", "s", "--stream", "x", "--snippet-seconds", "1", "--about", "-"], 2, "PATTERN"),
        (
            ["import", "s", "--stream", "a={clip}.npy", "--snippet-seconds", "1/0", "--about", "-"],
            2,
            "--snippet-seconds 1/0",
        ),
        (
            ["import", "s", "--stream", "a={clip}.npy", "--snippet-seconds", "1", "--about", "-"],
            1,
            "no file fits",
        ),
    ],
)
def test_mistakes(tmp_path: Path, words: list[str], code: int, message: str) -> None:
    output = avarnet("features", *words, cwd=tmp_path, code=code)
    assert message in " ".join(output.replace("│", "").split())
    assert list(tmp_path.iterdir()) == []
