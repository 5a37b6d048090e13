"""Stores and manifests that are legal and unusual, through the commands of stage 2."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import as_json, avarnet
from small_stores import clip, fill

from features import Features, Store
from manifests import Clip, Interval, write

SMALL = "epochs = 1\nstarts = 1\nchannels = 8\nstages = 1\n"


def lengths(*numbers: int) -> dict[str, Features]:
    """Clips of so many snippets, all of whose rows are real."""
    found = {}
    for number, length in enumerate(numbers):
        made = clip(length, number + 1)
        valid = {name: np.ones(length, bool) for name in made.streams}
        found[f"c{number}"] = replace(made, valid=valid)
    return found


def test_commands_say_which_stream_no_training_clip_has(tmp_path: Path) -> None:
    known, manifest, store = lengths(*[8] * 24), tmp_path / "m.jsonl", tmp_path / "store"
    for one in known.values():
        one.valid["audio"][:] = False
    fill(store, known)
    clips = [Clip(i, "x", ("AB"[n % 2],), split="train") for n, i in enumerate(known)]
    write(manifest, [*clips[:18], *(replace(c, split="test") for c in clips[18:])])
    little, search = tmp_path / "little.toml", tmp_path / "search.toml"
    little.write_text(SMALL)
    search.write_text(f"trials = 1\n[settings]\n{SMALL}[search]\ndropout = [0.1]\n")
    told = "trained without audio: no training clip (of one fold"
    settings = ("--config", little)
    assert told in avarnet("train", manifest, store, tmp_path / "run", *settings)
    assert told in avarnet("ablate", manifest, store, tmp_path / "all", *settings)
    assert told in avarnet("sweep", manifest, store, tmp_path / "sweep", search)
    assert not (tmp_path / "all" / "audio").exists()
    for streams in ("audio", "video,audio"):
        words = ("train", manifest, store, tmp_path / "named", "--streams", streams, "--json")
        assert "no training clip has audio" in avarnet(*words, code=1)


def test_classes_with_commas_are_chosen_and_named(tmp_path: Path) -> None:
    known, manifest = lengths(*[8] * 6), tmp_path / "m.jsonl"
    fill(tmp_path / "store", known)
    classes = ("Fire, smoke", "Fire", 'the "end"')
    write(manifest, [Clip(i, "x", (classes[n % 3],)) for n, i in enumerate(known)])
    url = f"file://{tmp_path}/store"
    for labels, expected in {
        '"Fire, smoke"': ["c0", "c3"],
        'Fire, "the ""end"""': ["c1", "c2", "c4", "c5"],
    }.items():
        pulled = tmp_path / labels
        words = ("features", "pull", url, pulled, "--manifest", manifest, "--labels", labels)
        avarnet(*words, "--trim")
        assert sorted(Store(pulled)) == expected
    words = ("features", "pull", url, tmp_path / "p", "--manifest", manifest, "--labels")
    error = avarnet(*words, "Fire, smoke", code=2)
    assert "is smoke" in " ".join(error.replace("│", "").split())
    assert "write commas between" in avarnet(*words, '"Fire', code=1)


def test_clips_without_anything_in_the_streams_are_said(tmp_path: Path) -> None:
    """As silent videos have nothing for a run of sound alone."""
    known, manifest, store = lengths(*[8] * 30), tmp_path / "m.jsonl", tmp_path / "store"
    for silent in ("c25", "c26"):
        known[silent].valid["audio"][:] = False
    fill(store, known)
    sides = ["train"] * 18 + ["val"] * 4 + ["test"] * 8
    labels = ("Crash", "Normal")
    clips = [Clip(i, "x", (labels[n % 2],), split=sides[n]) for n, i in enumerate(known)]
    write(manifest, clips)
    (tmp_path / "little.toml").write_text(SMALL + 'streams = ["audio"]\n')
    avarnet("train", manifest, store, tmp_path / "run", "--config", tmp_path / "little.toml")
    doubts = as_json("evaluate", tmp_path / "run")["doubts"]
    assert any("clips of the run, 2 (c25, c26) have nothing in audio" in doubt for doubt in doubts)
    # they are no footage either: hours of a camera's outage are not hours without an alarm
    run, alarms = tmp_path / "run", ("--false-alarms-per-hour", 3600)
    assert "2 clips with nothing in the streams" in avarnet("calibrate", run, store, *alarms)
    assert json.loads((run / "calibration.json").read_text())["hours"] == 28 * 2 / 3600
    told = "it has nothing that the run was trained on: this is a guess"
    assert told in avarnet("predict", tmp_path / "run", "--store", store, "c25")
    assert told not in avarnet("predict", tmp_path / "run", "--store", store, "c24")


@pytest.mark.parametrize(
    ("duration", "interval", "message"),
    [
        (
            2000.0,
            (0.5, 1.0),
            "clip c20: the manifest says that it lasts 2000 s, and its features 2 s",
        ),
        (
            0.2,
            (0.5, 1.0),
            "all frames of the held-out clips are normal, as all anomalies lie beyond",
        ),
        (
            None,
            (5.0, 6.0),
            "all frames of the held-out clips are normal, as all anomalies lie beyond",
        ),
        (None, (0.0, 9.0), "all frames of the held-out clips are anomalous"),
    ],
)
def test_annotations_that_do_not_fit_their_clips(
    tmp_path: Path, duration: float | None, interval: tuple[float, float], message: str
) -> None:
    """They ended in an error of the report, or of memory, after the training."""
    known = lengths(*[8] * 24)
    fill(tmp_path / "store", known)
    clips = []
    for n, clip_id in enumerate(known):
        split = "train" if n < 16 else "val" if n < 20 else "test"
        crash = n % 2 == 0 or (split == "test" and interval[1] == 9.0)
        when = (Interval(*interval),) if crash else ()
        label = "Crash" if crash else "Normal"
        clips.append(Clip(clip_id, "x", (label,), when, split=split, duration=duration))
    write(tmp_path / "m.jsonl", clips)
    words = ("train", tmp_path / "m.jsonl", tmp_path / "store", tmp_path / "run", "--json")
    assert message in avarnet(*words, "--task", "detection", code=1)
    assert not (tmp_path / "run").exists()


def test_many_classes_and_strange_ids(tmp_path: Path) -> None:
    names = ("\N{SLIGHTLY SMILING FACE}/a b", "--help", "[red]x[/]", "a,b", "x" * 200, "~x", "*")
    made = lengths(*[6] * 160)
    known = dict(zip((*names, *list(made)[len(names) :]), made.values(), strict=True))
    fill(tmp_path / "store", known)
    clips = [Clip(i, "x", (f"class {n % 40}",)) for n, i in enumerate(known)]
    sides = ("train", "train", "val", "test")
    clips = [replace(clip, split=sides[n // 40]) for n, clip in enumerate(clips)]
    absent = [Clip("gone, too", "x", ("class 1",)), Clip("gone", "x", ("class 1",))]
    write(tmp_path / "m.jsonl", [*clips, *absent])
    (tmp_path / "little.toml").write_text(SMALL)
    run, words = tmp_path / "run", ("--config", tmp_path / "little.toml")
    output = avarnet("train", tmp_path / "m.jsonl", tmp_path / "store", run, *words)
    assert '("gone, too", gone)' in output
    output = avarnet("evaluate", run)
    assert "the confusion of 40 classes is in the report" in output
    assert max(map(len, output.splitlines())) < 200
    found = as_json("predict", run, "--store", tmp_path / "store")
    assert [row["video"] for row in found] == list(Store(tmp_path / "store"))
