"""The commands as a user runs them: exit codes, JSON, messages, and what each part imports."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import typer
from command import as_json, at_a_terminal, avarnet, drawn
from small_stores import clip, fill

import avarnet as cli
from avarnet.console import _Console
from extract.synthetic import make_clip
from features import Recipe, Shard, Store, Writer
from manifests import Clip, Interval, read, write

pytestmark = pytest.mark.slow

BACKBONES = ["--weights", "random", "--video-model", "mobilevit_xxs"]


@pytest.fixture(scope="module")
def project(
    clips: Path, sound_model: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Everything from videos to a trained and evaluated run, with what each command printed."""
    folder = tmp_path_factory.mktemp("project")
    manifest, store, run = folder / "m.jsonl", folder / "store", folder / "run"
    results: dict[str, Any] = {"folder": folder}
    results["manifest"] = as_json("manifest", "folders", clips, "-o", manifest)
    results["split"] = as_json("manifest", "split", manifest, "--test", 0.3, "--val", 0.3)
    results["check"] = as_json("manifest", "check", manifest)
    results["network"] = network = [*BACKBONES, "--audio-model", sound_model]
    results["extract"] = as_json("extract", manifest, store, *network)
    results["again"] = as_json("extract", manifest, store, *network)
    results["train"] = as_json("train", manifest, store, run, "--epochs", 3)
    results["evaluate"] = as_json("evaluate", run)
    return results


def test_from_videos_to_a_report(project: dict[str, Any]) -> None:
    assert project["manifest"]["clips"] == 12
    assert sum(sum(row.values()) for row in project["split"]["classes"].values()) == 12
    assert [f["kind"] for f in project["check"]["findings"]] == ["no-sound"]
    assert len(project["extract"]["extracted"]) == 12
    assert project["extract"]["failed"] == {}
    # each process loads its networks once, and seals once: so few clips fill no shard
    assert len(list((project["folder"] / "store").glob("*.h5"))) <= (os.cpu_count() or 1)
    assert project["again"]["extracted"] == []
    assert len(project["again"]["already"]) == 12
    assert project["train"]["classes"] == ["Brawling", "Explosion", "Normal", "Police siren"]
    assert {"model", "linear", "held_out"} <= project["evaluate"].keys()
    assert (project["folder"] / "run" / "report.html").stat().st_size > 5000


def test_features_commands(project: dict[str, Any]) -> None:
    store = project["folder"] / "store"
    info = as_json("features", "info", store)
    assert info["clips"] == 12
    assert info["random_weights"] == ["video", "audio"]
    assert info["lacking"] == {"video": 0, "audio": 1}
    assert info["recipe"]["fingerprint"] == project["extract"]["fingerprint"]
    output = avarnet("features", "info", store)
    assert "random weights" in output
    assert re.search(r"shards +│ \d, \d+\.\d kB", output)
    assert re.search(r"footage +│ 0:00:12 in steps", output)
    rows = as_json("features", "list", store)
    assert len(rows) == 12
    assert all(row["snippets"] == 4 for row in rows)
    assert "Explosion/0" in avarnet("features", "list", store)
    assert as_json("features", "verify", store) == {"intact_clips": 12, "damaged_shards": []}


def test_detection_from_labels_to_frames(project: dict[str, Any], tmp_path: Path) -> None:
    clips = [
        replace(c, intervals=() if c.label == "Normal" else (Interval(0.25, 0.75),), fps=25.0)
        for c in read(project["folder"] / "m.jsonl")
    ]
    manifest, run = tmp_path / "m.jsonl", tmp_path / "run"
    write(manifest, clips)
    store = project["folder"] / "store"
    avarnet("train", manifest, store, run, "--task", "detection", "--epochs", 2)
    metrics = as_json("evaluate", run)
    assert metrics["task"] == "detection"
    frames = metrics["model"]["all"]
    assert (frames["frames"], 0 < frames["anomalous"] < frames["frames"]) == (
        25 * metrics["model"]["clips"],
        True,
    )
    assert metrics["model"]["false_alarms"]["asked"] == 0.8
    output = avarnet("evaluate", run, "--recall", 0.5)
    assert "false alarms an hour, 50 % noticed" in output
    assert "abnormal" in output
    assert f"{frames['ap']:.4f}" in output
    page = (run / "report.html").read_text()
    assert "Segments and alarms" in page
    assert f"{frames['ap']:.4f}" in page
    avarnet("report", run)
    assert "notices 50 % of" in (run / "report.html").read_text().replace("\n", " ")
    output = avarnet("compare", run, run)
    assert output.count(f"{frames['ap']:.4f}") == 2
    assert "permutations" in output
    clip = project["folder"].parent / "unseen.mp4"
    make_clip(clip, "Explosion", 77, seconds=1.0)
    answer = as_json("predict", run, clip)[0]
    assert set(answer["scores"]) == {"normal", "anomaly"}


def test_other_networks_and_streams(project: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "videos" / "Crash"
    folder.mkdir(parents=True)
    make_clip(folder / "a.mp4", "Crash", 5, seconds=1.0)
    as_json("manifest", "folders", tmp_path / "videos", "-o", tmp_path / "m.jsonl")
    command = ["extract", tmp_path / "m.jsonl", tmp_path / "s", "--weights", "random"]
    command += ["--video-model", "test_vit", "--audio-model", project["network"][-1]]
    command += ["--layers", "1-2", "--stream", "flow", "--precision", "auto", "--clip-memory", 1]
    assert as_json(*command)["extracted"] == ["Crash/a"]
    recipe = as_json("features", "info", tmp_path / "s")["recipe"]
    assert list(recipe["streams"]) == ["video", "audio", "flow"]
    assert recipe["streams"]["audio"]["layer"] == "mean of 1, 2"
    assert as_json(*command)["already"] == ["Crash/a"]
    command[-7] = "2"  # the layers
    assert "streams.audio.layer: mean of 2, not mean of 1, 2" in avarnet(*command, code=1)


def test_damage_is_found_and_mended(project: dict[str, Any], tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(project["folder"] / "store", store)
    shard = next(store.glob("*.h5"))
    content = bytearray(shard.read_bytes())
    content[Shard(shard).table.extents["video"].rows_at] ^= 4  # the first clip's first value
    shard.write_bytes(content)
    (damage,) = as_json("features", "verify", store, code=1)["damaged_shards"]
    assert damage["shard"] == str(shard)
    (hurt,) = damage["clips"]
    output = avarnet("features", "verify", store, code=1)
    assert f"damaged clips: {hurt}" in output
    manifest, network = project["folder"] / "m.jsonl", project["network"]
    again = as_json("extract", manifest, store, *network)
    assert again["extracted"] == [hurt]
    assert again["damaged"] == [shard.name]
    assert len(again["already"]) == 11
    assert as_json("features", "verify", store) == {"intact_clips": 12, "damaged_shards": []}
    assert not any(as_json("features", "diff", project["folder"] / "store", store).values())


def test_predict_new_videos(project: dict[str, Any], tmp_path: Path) -> None:
    run = project["folder"] / "run"
    siren = make_clip(tmp_path / "siren.mp4", "Police siren", 77, seconds=1.0)
    mute = make_clip(tmp_path / "mute.mp4", "Normal", 78, seconds=1.0, sound=False)
    (tmp_path / "bad.mp4").write_bytes(b"nonsense" * 100)
    answers = as_json("predict", run, siren, mute, tmp_path / "bad.mp4", code=3)
    assert [Path(answer["video"]).name for answer in answers] == [
        "siren.mp4",
        "mute.mp4",
        "bad.mp4",
    ]
    for answer in answers[:2]:
        assert answer["label"] in answer["probabilities"]
        assert answer["confidence"] == max(answer["probabilities"].values())
        assert {len(scores) for scores in answer["scores"].values()} == {4}
    assert answers[1]["streams"] == {"video": 4, "audio": 0}
    assert "not a readable media file" in answers[2]["error"]
    output = avarnet("predict", run, mute)
    assert "no audio in this clip" in output
    lines = drawn(at_a_terminal("predict", run, siren, mute))
    assert [line for line in lines if "scoring" in line]  # the bar, which never shares a line
    assert not [line for line in lines if "scoring" in line and ".mp4" in line]
    for video in (siren, mute):
        assert any(line.startswith(f"{video}: ") for line in lines)
    avarnet("predict", run, tmp_path / "bad.mp4", code=1)


def test_predict_with_a_run_of_an_older_reading_code(
    project: dict[str, Any], clips: Path, tmp_path: Path
) -> None:
    """A run and a store as they were before versions of it were counted."""
    old = tmp_path / "run"
    shutil.copytree(project["folder"] / "run", old)
    whole = json.loads((old / "run.json").read_text())
    recipe = Recipe.from_json(json.dumps(whole["recipe"]))
    for settings in recipe.streams.values():
        assert settings.pop("reading") == 2
    whole["recipe"] = json.loads(recipe.to_json())
    (old / "run.json").write_text(json.dumps(whole))
    video = clips / "Explosion" / "0.mp4"
    err = StringIO()
    with patch("avarnet.inputs.err", _Console(file=err)):
        (then,) = as_json("predict", old, video)
        (now,) = as_json("predict", project["folder"] / "run", video)
    output = " ".join(err.getvalue().split())
    assert output.count("READ DIFFERENTLY") == 1  # the run of today says nothing
    assert "one before versions were counted, not version 2" in output
    assert "sound is placed by its time stamps" in output
    assert then["label"] == now["label"]
    # the store that it was trained on
    output = avarnet(
        "extract",
        project["folder"] / "m.jsonl",
        old_store(project, tmp_path, recipe),
        *project["network"],
        code=1,
    )
    assert "cannot be extended" in output
    assert "give the folder of a new store" in output


def old_store(project: dict[str, Any], tmp_path: Path, recipe: Recipe) -> Path:
    """The project's clips in a store of an older recipe."""
    with Writer(tmp_path / "old", recipe) as writer:
        for clip_id, features in Store(project["folder"] / "store").items():
            writer.add(clip_id, features)
    return tmp_path / "old"


def test_predict_lists_intervals_and_writes_pages(project: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(project["folder"] / "run", run)
    whole = json.loads((run / "run.json").read_text())
    assert 0 < whole["hysteresis"]["low"] <= whole["hysteresis"]["high"] <= 1
    videos = tmp_path / "videos"
    for name in ("one/a", "two/a", "b"):
        make_clip(videos / f"{name}.mp4", "Explosion", 5, seconds=1.0)
    (tmp_path / "list.txt").write_text("videos/b.mp4\n\nvideos/one/a.mp4\n")

    def with_threshold(high: float, shortest: float = 0.5) -> Path:
        """Make an anomaly of every score above it, whatever three epochs have taught."""
        whole["hysteresis"] = {"high": high, "low": high, "shortest": shortest}
        (run / "run.json").write_text(json.dumps(whole))
        return run

    answers = as_json("predict", with_threshold(0.001), videos)
    assert [Path(a["video"]).parent.name for a in answers] == ["videos", "one", "two"]
    for answer in answers:
        (found,) = answer["intervals"]
        assert (found["start"], found["end"]) == (0, pytest.approx(answer["duration"]))
        assert found["label"] in {"Brawling", "Explosion", "Police siren"}
    listed = avarnet("predict", run, tmp_path / "list.txt", "--csv", "--fail-on-anomaly", code=4)
    rows = list(csv.DictReader(listed.splitlines()))
    assert [Path(row["video"]).stem for row in rows] == ["b", "a"]
    assert all(float(row["end"]) > 0.5 and row["class"] for row in rows)
    output = avarnet("predict", run, videos, "--html", tmp_path / "pages")
    pages = tmp_path / "pages"
    assert {page.stem for page in pages.glob("*.html")} == {
        *("b.mp4", "one-a.mp4", "two-a.mp4", "index")
    }
    assert len([*pages.glob("plotly-*.min.js")]) == 1
    assert output.count("page: ") == 3
    assert f"all pages: {pages / 'index.html'}" in output
    assert sorted(re.findall('href="(.*[.]html)"', (pages / "index.html").read_text())) == [
        *("b.mp4.html", "one-a.mp4.html", "two-a.mp4.html")
    ]
    avarnet("predict", run, videos / "b.mp4", "--html", tmp_path / "single", "--single-file")
    assert sorted(page.name for page in (tmp_path / "single").iterdir()) == ["b.html", "index.html"]
    assert (tmp_path / "single" / "b.html").stat().st_size > 4e6
    assert "several" in avarnet("predict", run, videos, "--html", tmp_path / "x.html", code=1)
    avarnet("predict", run, videos / "b.mp4", "--html", tmp_path / "x.html")
    assert "../" not in (tmp_path / "x.html").read_text().split("<video")[1].split(">")[0]

    avarnet("predict", with_threshold(0.999), videos, "--fail-on-anomaly")
    quiet = list(csv.DictReader(avarnet("predict", run, videos, "--csv").splitlines()))
    assert [row["start"] for row in quiet] == ["", "", ""]
    assert "no anomaly" in avarnet("predict", run, videos / "b.mp4")
    brief = avarnet("predict", with_threshold(0.001, shortest=60), videos / "b.mp4")
    assert re.search(r"no anomaly; the highest score is [01][.]\d\d, for less than 60 s", brief)
    (tmp_path / "empty").mkdir()
    assert "no videos in this folder" in avarnet("predict", run, tmp_path / "empty", code=1)


def test_reports_show_the_videos_where_they_are(project: dict[str, Any], tmp_path: Path) -> None:
    run = project["folder"] / "run"
    page = tmp_path / "report.html"
    avarnet("report", run, "-o", page)
    wrong = as_json("evaluate", run)["model"]["accuracy"]["value"] < 1
    assert ('<img src="data:image/jpeg' in page.read_text()) == wrong
    avarnet("report", run, "-o", page, "--root", tmp_path / "no" / "where")
    assert '<img src="data:image/jpeg' not in page.read_text()
    assert ("cannot be read (--root)" in page.read_text()) == wrong
    avarnet("report", run, run, "--compare", "-o", tmp_path / "both.html")
    assert "McNemar" in (tmp_path / "both.html").read_text()
    assert "one file for 2 runs" in avarnet("report", run, run, "-o", page, code=1)


def test_one_failed_clip_is_exit_code_3(clips: Path, sound_model: str, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(clips / "Normal", folder / "Normal")
    (folder / "Normal" / "bad [x].mp4").write_bytes(b"nonsense" * 100)
    avarnet("manifest", "folders", folder, "-o", tmp_path / "m.jsonl")
    command = ["extract", tmp_path / "m.jsonl", tmp_path / "s", *BACKBONES]
    command += ["--audio-model", sound_model, "--workers", "1"]
    output = avarnet(*command, code=3)
    assert "Normal/bad [x]" in output
    assert "3 clips extracted, 0 already there, 1 failed" in " ".join(output.split())
    assert list(as_json(*command, code=3)["failed"]) == ["Normal/bad [x]"]
    # another recipe on the same store is refused with the fields that differ
    output = avarnet(*command, "--snippet-seconds", 0.5, code=1)
    assert "snippet_seconds: 0.5, not 0.25" in " ".join(output.split())


def test_check_finds_faults_and_fails(clips: Path, tmp_path: Path) -> None:
    shutil.copytree(clips / "Normal", tmp_path / "v" / "Normal")
    (tmp_path / "v" / "Normal" / "zero.mp4").touch()
    avarnet("manifest", "folders", tmp_path / "v", "-o", tmp_path / "m.jsonl")
    assert "empty-file" in avarnet("manifest", "check", tmp_path / "m.jsonl", code=1)


def test_a_manifest_moves_with_its_root(clips: Path, tmp_path: Path) -> None:
    root = tmp_path / "cluster"
    shutil.copytree(clips, root)
    avarnet("manifest", "folders", root, "-o", tmp_path / "m.jsonl", "--root", root)
    assert read(tmp_path / "m.jsonl")[0].path == "Brawling/0.mp4"
    root.rename(tmp_path / "laptop")
    avarnet("manifest", "check", tmp_path / "m.jsonl", code=1)
    avarnet("manifest", "check", tmp_path / "m.jsonl", "--root", tmp_path / "laptop")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "none.jsonl", "s", "r"], 1, "avarnet manifest folders"),
        (["evaluate", "nowhere"], 1, "no finished run"),
        (["predict", "nowhere", "x.mp4"], 1, "no finished run"),
        (["features", "info", "nowhere"], 1, "not a feature store"),
        (["manifest", "folders", "nowhere", "-o", "m.jsonl"], 1, "no such folder"),
        (["manifest", "xd-violence", "--lists", ".", "-o", "m"], 1, "official lists"),
        (["extract"], 2, "Missing argument"),
        (["extract", "m", "s", "--weights", "some"], 2, "'some' is not one of"),
        (["train", "m", "s"], 2, "Missing argument 'RUN'"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_mistakes(tmp_path: Path, words: list[str], code: int, message: str) -> None:
    assert message in " ".join(avarnet(*words, cwd=tmp_path, code=code).replace("│", "").split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("manifest folders rubbish -o m.jsonl", "rubbish: is a file; give the folder of videos"),
        ("manifest csv . -o m.jsonl", ".: Is a directory; give a CSV file"),
        ("manifest csv rubbish -o m.jsonl", "rubbish: it is not text in UTF-8; give a CSV file"),
        ("manifest split empty", "no clips in it; make a manifest with 'avarnet manifest folders"),
        ("manifest split half", "half, line 1: the field path is missing"),
        ("features drop s --ids rubbish", "not text in UTF-8; give a text file of clip ids"),
        ("features pull s t --ids none", "none: No such file or directory; give a text file"),
        ("extract good s --device tpu", "tpu: expected auto, cpu, cuda"),
        ("extract good s --device cuda:99", "--device cuda:99: torch cannot use it here"),
        (
            "extract good s --only video --video-weights none",
            "none: no such file; give the weights",
        ),
        ("extract good s --only flow --layers 4", "--layers is for the audio stream: add --only"),
        ("extract good store --only flow", "stream flow: present, not absent"),
        ("extract good store --only flow", "into a folder of its own ('avarnet extract --only')"),
        (
            "extract good s --only flow --scheduler slurm --interface x9",
            "'x9' is not a valid network",
        ),
        ("extract good s --only flow --scheduler pbs --cluster-config none", "none: No such file"),
        (
            "extract good store --only video --video-weights none",
            "To add to store, give the options it was made with. It has: video (",
        ),
        ("train good store empty", "empty is a file; give a folder for the run"),
        ("train good store .", "holds other files"),
        (
            "train good store r --config none",
            "none: No such file or directory; give a file of TOML",
        ),
        ("sweep good store d none", "none: No such file or directory; give a file of TOML"),
    ],
)
def test_what_a_stranger_reads(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: a new one takes seconds to begin."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "store", {"a": clip(4, 1)})
    write(tmp_path / "good", [Clip("a", "a.mp4", ("x",))])
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "half").write_text('{"id": "a", "labels": ["x"]}\n')
    (tmp_path / "rubbish").write_bytes(b"\xff\xfe\x00" * 100)
    monkeypatch.setattr(sys, "argv", ["avarnet", *words.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (1, 2)
    output = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert message in output
    assert "This is unexpected" not in output


def test_a_plan_of_nothing_does_not_deny_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "store", {"a": clip(4, 1)})
    write(tmp_path / "m.jsonl", [Clip("a", "a.mp4", ("x",))])
    (tmp_path / "store" / "timings.jsonl").write_text('{"footage": 1.0, "seconds": 2.0}\n')
    monkeypatch.setattr(sys, "argv", ["avarnet", "extract", "m.jsonl", "store", "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    output = capsys.readouterr().out
    assert "0 clips to extract" in output
    assert "estimate" not in output


def commands(command: Any, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the words of all commands below one."""
    below = getattr(command, "commands", {})
    found = (commands(one, (*words, word)) for word, one in below.items())
    return [each for some in found for each in some] if below else [words]


COMMANDS = commands(typer.main.get_command(cli.app))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: tuple[str, ...]) -> None:
    assert f"avarnet {' '.join(command)}" in avarnet(*command, "--help").split("Example:")[1]


def test_version() -> None:
    assert avarnet("--version").strip() == "0.1.0"


WITHOUT_STAGE_1 = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"av", "dask", "distributed", "timm", "transformers"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import importlib.util
real = importlib.util.find_spec
def find_spec(name, package=None):
    try:
        return real(name, package)
    except ModuleNotFoundError:
        return None
importlib.util.find_spec = find_spec
import avarnet
sys.argv[0] = "avarnet"
avarnet.main()
"""


def test_a_laptop_without_stage_1(project: dict[str, Any], clips: Path, tmp_path: Path) -> None:
    """With the packages of stage 1 out of reach, everything but reading videos works."""

    def base(*words: object, code: int = 0) -> str:
        command = [sys.executable, "-c", WITHOUT_STAGE_1, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    folder = project["folder"]
    base("manifest", "folders", clips, "-o", tmp_path / "m.jsonl")
    assert "not opened" in base("manifest", "check", tmp_path / "m.jsonl")
    base("features", "verify", folder / "store")
    base("train", folder / "m.jsonl", folder / "store", tmp_path / "run", "--epochs", 2)
    base("evaluate", tmp_path / "run")
    for command in (["extract", folder / "m.jsonl", tmp_path / "s"], ["demo", tmp_path / "d"]):
        assert "[extract]" in base(*command, code=1)
    assert "[extract]" in base("predict", tmp_path / "run", "x.mp4", code=1)
    assert "[extract]" in base("doctor", tmp_path)


IMPORTS = {
    "manifests": {"features", "extract", "train", "torch", "h5py"},
    "features": {"manifests", "extract", "train", "torch"},
    "train": {"extract", "torch"},
    "train.predict": {"extract", "timm", "transformers", "av", "dask", "sklearn", "scipy"},
    "train.run": {"extract", "timm", "transformers", "av", "dask", "sklearn", "scipy"},
    "extract": {"train", "torch"},
    "extract.decoding.child": {"train", "torch", "scipy"},
    "extract.job.client": {"train", "timm", "transformers", "scipy"},
    "avarnet": {"extract", "torch"},  # and of train its configuration alone
}


@pytest.mark.parametrize("part", IMPORTS)
def test_imports_run_one_way(part: str) -> None:
    code = f"import sys, {part}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & IMPORTS[part]
