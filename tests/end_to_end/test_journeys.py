"""Three people's days with avarnet: by the command line alone, from fresh clones."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import pytest
import servers
from command import as_json, avarnet
from small_stores import RECIPE, SIZES

import extract
import manifests
from extract.synthetic import make_clip
from features import Features, Store, pack
from manifests import Clip, write

pytestmark = pytest.mark.slow

ROOT = Path(extract.__file__).parents[1]
CLASSES = ("Crash", "Explosion", "Normal")
RANDOM = "--weights random --video-model mobilevit_xxs"
KINDS = (".h5", ".json")  # of the files that make a store


def films(folder: Path, numbers: range) -> None:
    """Encode videos of a second: of each class those that are numbered so."""
    for kind, name in enumerate(CLASSES):
        for number in numbers:
            make_clip(folder / name / f"{number:02}.mp4", name, 100 * kind + number, seconds=1.0)


class User:
    """Types commands in a folder, with a clone of what is committed and nothing else of avarnet."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.folder, clone = home / "work", home / "clone"
        self.folder.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        own = {"PYTHONPATH": str(clone), "XDG_CACHE_HOME": str(home / "cache"), "COLUMNS": "200"}
        self.environment = os.environ | own | environment

    def begins(self, command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "avarnet", *command.split()],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def runs(self, command: str, code: int = 0) -> str:
        """Return what is printed: the error where the exit code says that there is one."""
        process = self.begins(command)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, out + err
        assert "Traceback" not in out + err
        return out + err if code else out

    def reads(self, command: str, code: int = 0) -> Any:
        """Return the JSON that is printed, and nothing else is."""
        process = self.begins(f"{command} --json")
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, out + err
        return json.loads(out)


def test_the_operator_of_a_cluster(tmp_path: Path, sound_model: str) -> None:
    """Videos become a store, although the machine dies in between, and the team has it."""
    user = User(tmp_path)
    films(user.folder / "videos", range(4))
    extract = f"extract videos.jsonl store --workers 2 {RANDOM} --audio-model {sound_model}"

    # will this machine do, and what is to be done?
    assert user.reads("doctor .")["fine"]
    assert user.reads("manifest folders videos -o videos.jsonl")["clips"] == 12
    plan = user.reads(f"{extract} --dry-run")
    assert (plan["clips"], plan["present"], sum(plan["batches"])) == (12, 0, 12.0)
    assert plan["unknown"] == 0
    assert not (user.folder / "store").exists()

    # it dies when some clips are finished
    job = user.begins(extract)
    while len(finished := list(user.folder.glob("store/.spool-*/*.safetensors"))) < 2:
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    family = psutil.Process(job.pid).children(recursive=True)
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()
    psutil.wait_procs(family, timeout=60)
    left = user.reads(f"{extract} --status")
    assert left["done"] + left["unsealed"] + left["left"] == 12
    assert left["left"] > 0

    # the same command once more does the rest, and a third time there is nothing to do
    summary = user.reads(extract)
    assert len(summary["already"]) >= len(finished)
    assert sorted(summary["already"] + summary["extracted"]) == [
        f"{name}/{number:02}" for name in CLASSES for number in range(4)
    ]
    assert user.reads(f"{extract} --dry-run")["clips"] == 0

    # each clip of a second has four snippets, and every byte is as it was written
    listed = user.reads("features list store")
    assert [row["snippets"] for row in listed] == [4] * 12
    assert user.reads("features verify store") == {"intact_clips": 12, "damaged_shards": []}

    # the team's server has the same files
    (tmp_path / "served" / "team").mkdir(parents=True)
    with servers.s3(tmp_path / "served") as port:
        user.environment |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": servers.KEY,
            "AWS_SECRET_ACCESS_KEY": servers.SECRET,
        }
        user.runs("features push store s3://team/vaar")
    ours, theirs = (
        {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in KINDS}
        for folder in (user.folder / "store", tmp_path / "served" / "team" / "vaar")
    )
    assert ours == theirs
    assert "recipe.json" in ours


def test_one_who_trains_all_day(
    tmp_path: Path, sound_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs are compared; then there are more videos, and a third run learns from all."""
    monkeypatch.chdir(tmp_path)
    extract = f"extract videos.jsonl store {RANDOM} --audio-model {sound_model}"
    split = "manifest split videos.jsonl --test 0.34 --val 0.17"

    # in this process: one that imports torch for each command would take most of the day
    def runs(command: str) -> str:
        return avarnet(*command.split())

    def reads(command: str) -> Any:
        return as_json(*command.split())

    def sides() -> dict[str, str]:
        return {clip.id: clip.split for clip in manifests.read("videos.jsonl")}

    films(Path("videos"), range(6))
    runs("manifest folders videos -o videos.jsonl")
    runs(split)
    morning = sides()
    runs(extract)

    # does the sound help?
    for run, options in (("both", ""), ("picture", "--streams video")):
        runs(f"train videos.jsonl store {run} --epochs 2 {options}")
        figures = reads(f"evaluate {run}")
        rows = list(csv.DictReader(Path(run, "predictions.csv").read_text().splitlines()))
        assert {row["clip"] for row in rows} == {i for i, side in morning.items() if side == "test"}
        right = [row["label"] == row["predicted"] for row in rows]
        assert figures["model"]["accuracy"]["value"] == pytest.approx(np.mean(right))
        assert Path(run, "report.html").is_file()
    runs("report both picture --compare -o compare.html")
    page = Path("compare.html").read_text()
    assert "both" in page
    assert "picture" in page

    # more videos: what had a side keeps it, and only they are extracted
    films(Path("videos"), range(6, 8))
    assert len(reads("manifest add videos.jsonl videos")["added"]) == 6
    runs(split)
    evening = sides()
    assert morning.items() <= evening.items()
    assert len(evening) == 24
    assert set(evening.values()) == {"train", "val", "test"}
    summary = reads(extract)
    assert {*summary["extracted"]} == evening.keys() - morning.keys()
    assert {*summary["already"]} == morning.keys()
    runs("train videos.jsonl store evening --epochs 2")

    # the model is used, and taken along: elsewhere it predicts the same of the same clip
    shutil.copy("videos/Crash/07.mp4", "new.mp4")
    (found,) = reads("predict evening new.mp4")
    runs("export evening evening.onnx")
    session = onnxruntime.InferenceSession("evening.onnx")
    known, inputs = Store("store")["Crash/07"], {}
    for name, rows in known.streams.items():
        inputs[name] = rows[None].astype(np.float32)
        inputs[f"{name}_valid"] = known.valid[name][None]
    (clip,) = session.run(["clip"], inputs)
    assert clip[0].tolist() == pytest.approx([*found["probabilities"].values()], abs=1e-4)


def test_a_teammate_who_is_sent_shards(tmp_path: Path) -> None:
    """Without a video: looked at, trained on, mended; and a clip is withdrawn."""
    user = User(tmp_path)
    store, team = user.folder / "store", tmp_path / "team"

    # what a colleague sends: a manifest, and two shards
    rng = np.random.default_rng(0)
    clips, rows = [], {}
    for number in range(24):
        kind = number % 3
        means = {name: 6 * (np.arange(size) == kind) for name, size in SIZES.items()}
        sent = {n: rng.normal(m, 1, (8, len(m))).astype(np.float16) for n, m in means.items()}
        side = ("train", "train", "val", "test")[number // 3 % 4]
        clips.append(Clip(f"{CLASSES[kind]}/{number:02}", "x.mp4", (CLASSES[kind],), split=side))
        rows[clips[-1].id] = Features(sent, {n: np.ones(8, bool) for n in sent}, 0.25, 2.0)
    write(user.folder / "videos.jsonl", clips)
    for half in (clips[:12], clips[12:]):
        pack(team, ((clip.id, rows[clip.id]) for clip in half), RECIPE)
    sent_shards = sorted(team.glob("*.h5"))
    assert len(sent_shards) == 2

    # one shard comes by mail, the other one from the team's disk
    store.mkdir()
    for file in (team / "recipe.json", sent_shards[0]):
        shutil.copy(file, store)
    assert "1 shard transferred, 1 already there" in user.runs(f"features pull {team} store")
    overview = user.reads("features info store")
    assert (overview["clips"], overview["shards"], overview["snippets"]) == (24, 2, 24 * 8)
    assert user.reads("features verify store") == {"intact_clips": 24, "damaged_shards": []}

    # classes this far apart are learned without a mistake
    user.runs("train videos.jsonl store run --epochs 20")
    figures = user.reads("evaluate run")
    assert figures["model"]["accuracy"]["value"] == 1
    assert sum(row["clips"] for row in figures["model"]["per_class"].values()) == 6

    # a disk loses a bit: the clip is named, and fetched again
    values = rows[clips[20].id].streams["video"].tobytes()
    (hurt,) = [shard for shard in store.glob("*.h5") if values in shard.read_bytes()]
    content = bytearray(hurt.read_bytes())
    content[content.index(values)] ^= 1
    hurt.write_bytes(content)
    complaint = user.runs("features verify store", code=1)
    assert hurt.name in complaint
    assert clips[20].id in complaint
    assert clips[0].id not in complaint
    # half of a shard is missing: nothing is trained on the rest of it in silence
    hurt.write_bytes(content[: len(content) // 2])
    assert hurt.name in user.runs("train videos.jsonl store again --epochs 1", code=1)
    user.runs(f"features pull {team} store --repair")
    assert user.reads("features verify store") == {"intact_clips": 24, "damaged_shards": []}

    # a person asks to be forgotten: no byte of the clip is left, here or there
    gone = clips[20].id
    (user.folder / "ids.txt").write_text(f"{gone}\n")
    user.runs(f"features drop store --ids ids.txt --from {team}")
    for folder in (store, team):
        kept = b"".join(file.read_bytes() for file in folder.iterdir())
        for clip_id, features in rows.items():
            present = [features.streams[name].tobytes() in kept for name in SIZES]
            assert present == [clip_id != gone] * 2
        assert gone.encode() not in kept
    assert len(user.reads(f"features list {team}")) == 23
