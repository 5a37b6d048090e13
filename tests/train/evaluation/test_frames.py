"""Detection: top-k pooling, frames' truth and scores, the published figures, and a run of it."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score

from features import Features, Recipe, Store, Writer, import_npy
from manifests import Clip, Interval, assign_split, from_ucf_crime, from_xd_violence
from train import Config, Predictor, Run, TrainError, evaluate_run, train_run
from train.evaluation.frames import (
    detection,
    frame_figures,
    frame_metrics,
    frame_scores,
)
from train.labels import weak_labels
from train.losses import top_pool

STEP = 0.25
RECIPE = Recipe(STEP, "fp32", {"video": {"features": 6}, "audio": {"features": 4}})
SMALL = Config(task="detection", channels=16, epochs=20)
TRAINED = 400


@given(st.lists(st.integers(1, 70), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_highest_snippets_speak_for_a_clip(lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    logits = torch.randn(len(lengths), 2, max(lengths))
    for row, length in enumerate(lengths):
        alone = logits[row, :, :length]
        top = (alone[1] - alone[0]).topk(length // 16 + 1).indices
        assert torch.allclose(top_pool(logits, mask)[row], alone[:, top].mean(1), atol=1e-5)


def test_figures_are_those_of_the_published_protocol() -> None:
    """XD-Violence's own: 16 frames a snippet at 24 a second, all videos after each other."""
    rng = np.random.default_rng(0)
    clips, scores, truth = [], [], []
    for number in range(12):
        snippets = int(rng.integers(5, 60))
        frames = 16 * snippets
        first = int(rng.integers(0, frames - 20))
        intervals = (Interval(first / 24, (first + 15) / 24),) if number % 3 else ()
        labels = ("B1", "G") if number % 3 == 1 else ("B2",) if intervals else ("A",)
        clips.append(Clip(f"{number}", "x.mp4", labels, intervals, fps=24.0))
        scores.append(rng.random(snippets).astype(np.float32))
        truth.append(np.zeros(frames, int))
        if intervals:
            truth[-1][first : first + 15] = 1
    normal = [clip.label == "A" for clip in clips]
    found = detection(clips, scores, 16 / 24, normal, np.arange(len(clips)))

    def expected(chosen: list[int]) -> tuple[float, float]:
        real = np.concatenate([truth[i] for i in chosen])
        scored = np.concatenate([np.repeat(scores[i], 16) for i in chosen])
        precision, recall, _ = precision_recall_curve(real, scored)
        return auc(recall, precision), roc_auc_score(real, scored)

    everyone = list(range(12))
    for name, chosen in (("all", everyone), ("abnormal", [i for i in everyone if i % 3])):
        assert (found[name]["ap"], found[name]["roc_auc"]) == pytest.approx(expected(chosen))
    assert set(found["per_class"]) == {"B1", "B2", "G"}
    assert found["per_class"]["G"]["ap"] == pytest.approx(expected([1, 4, 7, 10])[0])


@given(st.integers(1, 300), st.floats(0.04, 3), st.floats(5, 60))
@settings(max_examples=60, deadline=None)
def test_a_frame_has_the_score_of_its_snippet(snippets: int, step: float, fps: float) -> None:
    scores = np.arange(snippets, dtype=np.float32)
    frames = max(1, round(snippets * step * fps))
    per_frame = frame_scores(scores, step, frames, fps)
    assert (np.diff(per_frame) >= 0).all()
    middle = (per_frame + 0.5) * step * fps  # of its snippet, in frames
    assert (np.abs(middle - np.arange(frames)) <= step * fps / 2 + 1).all()


def test_frames_of_one_kind_have_no_curve() -> None:
    only = frame_metrics([np.zeros(5, np.uint8)], [np.zeros(5, np.float32)])
    assert only == {
        "ap": None,
        "average_precision": None,
        "roc_auc": None,
        "frames": 5,
        "anomalous": 0,
    }


@pytest.mark.parametrize(
    ("name", "count", "abnormal"), [("xd-violence", 800, 500), ("ucf-crime", 290, 140)]
)
def test_every_official_test_video_is_judged_as_published(
    shared: Path, name: str, count: int, abnormal: int
) -> None:
    """Frames marked by number, straight from the lists, and scores repeated 16 times."""
    read, file, fps = {
        "xd-violence": (from_xd_violence, "annotations.txt", 24),
        "ucf-crime": (from_ucf_crime, "Temporal_Anomaly_Annotation.txt", 30),
    }[name]
    annotations = next((shared / name).rglob(file))
    marked = {}
    for line in annotations.read_text().splitlines():
        video, *words = line.split()
        numbers = [int(word) for word in words if word.lstrip("-").isdigit()]
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        marked[video.removesuffix(".mp4")] = [(a, b) for a, b in pairs if a >= 0]
    clips = [c for c in read(annotations.parent, shared).clips if c.split == "test"]
    rng = np.random.default_rng(0)
    truth, scores = [], []
    for clip in clips:
        pairs = marked.get(clip.id, [])
        end = max((b for _, b in pairs), default=320)
        snippets = max(1, end // 16 + int(rng.integers(-2, 9)))  # of some the features end early
        truth.append(np.zeros(16 * snippets, np.uint8))
        for a, b in pairs:
            truth[-1][a:b] = 1
        scores.append(rng.random(snippets).astype(np.float32))
    kinds = [clip.label for clip in weak_labels(clips, "")]
    assert (len(clips), kinds.count("anomaly")) == (count, abnormal)
    for chosen in (range(count), [i for i, kind in enumerate(kinds) if kind == "anomaly"]):
        real = np.concatenate([truth[i] for i in chosen])
        scored = np.concatenate([np.repeat(scores[i], 16) for i in chosen])
        precision, recall, _ = precision_recall_curve(real, scored)
        found = frame_figures([clips[i] for i in chosen], [scores[i] for i in chosen], 16 / fps)
        assert (found["frames"], found["anomalous"]) == (len(real), real.sum())
        assert found["ap"] == pytest.approx(auc(recall, precision))
        assert found["roc_auc"] == pytest.approx(roc_auc_score(real, scored))


def features(seed: int, event: tuple[int, int] | None, length: int) -> Features:
    """A place of its own, and for an anomaly a short while in which two values are raised."""
    rng = np.random.default_rng(seed)
    rows = {
        name: rng.normal(0, 0.3, (length, size)) + rng.normal(0, 0.5, size)
        for name, size in (("video", 6), ("audio", 4))
    }
    if event:
        rows["video"][slice(*event), :2] += 2.0
        rows["audio"][slice(*event), 0] += 2.0
    return Features(
        {name: values.astype(np.float16) for name, values in rows.items()},
        {name: np.ones(length, bool) for name in rows},
        STEP,
        length * STEP,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Clip], Store]:
    path = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(1)
    clips = []
    with Writer(path, RECIPE) as writer:
        for n in range(TRAINED + 80):
            length = int(rng.integers(30, 60))
            first = int(rng.integers(0, length - 8))
            event = (first, first + int(rng.integers(4, 8))) if n % 2 else None
            writer.add(f"c{n}", features(n, event, length))
            held_out = n >= TRAINED
            intervals = (Interval(event[0] * STEP, event[1] * STEP),) if event else ()
            labels = (("Crash", "Fight")[n // 2 % 2],) if event else ("Normal",)
            clips.append(
                Clip(
                    f"c{n}",
                    "x.mp4",
                    labels,
                    intervals if held_out else None,
                    "test" if held_out else "train",
                    duration=length * STEP,
                    fps=30.0,
                )
            )
    return clips, Store(path)


@pytest.fixture(scope="module")
def run(world: tuple[list[Clip], Store], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_run(*world, tmp_path_factory.mktemp("runs") / "run", SMALL)


def test_anomalies_are_located_from_labels_of_clips(
    world: tuple[list[Clip], Store], run: Run
) -> None:
    result = evaluate_run(Run.load(run.path), world[1])
    assert result["task"] == "detection"
    frames = result["model"]["all"]
    assert 0.04 < frames["anomalous"] / frames["frames"] < 0.2  # what guessing would reach
    assert frames["ap"] > 0.8
    assert frames["roc_auc"] > 0.95
    assert set(result["model"]["per_class"]) == {"Crash", "Fight"}
    assert set(result["model"]["segments"]["per_class"]) == {"Crash", "Fight"}
    assert result["model"]["segments"]["map"]["mean"] > 0.3  # trained to tell snippets, not edges
    alarms = result["model"]["false_alarms"]
    assert (alarms["asked"], alarms["recall"]) == (0.8, 0.8)
    more = evaluate_run(run, world[1], recall=1.0)["model"]["false_alarms"]
    assert (more["asked"], more["recall"]) == (1, 1)
    assert more["threshold"] < alarms["threshold"]
    assert Run.load(run.path).evaluation()["model"]["false_alarms"] == more
    with pytest.raises(TrainError, match="recall 0: expected"):
        evaluate_run(run, world[1], recall=0)
    assert result["linear"]["all"]["frames"] == frames["frames"]
    with open(run.path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(world[1][c.id]) for c in world[0] if c.split == "test")


def test_longer_sound_adds_no_frames(tmp_path: Path) -> None:
    """Of XD-Violence's features, VGGish's rows go on where I3D's 16 frames each have ended."""
    rng, lengths = np.random.default_rng(0), {}
    for n in range(24):
        lengths[f"c{n}"] = int(rng.integers(9, 20))
        rows = {"rgb": lengths[f"c{n}"], "audio": lengths[f"c{n}"] + n % 3 - 1}
        for name, length in rows.items():
            np.save(tmp_path / f"c{n}.{name}.npy", rng.normal(n % 2, 1, (length, 4)))
    patterns = {name: f"{tmp_path}/{{clip}}.{name}.npy" for name in ("rgb", "audio")}
    import_npy(tmp_path / "store", patterns, 16 / 24, "for a test")
    clips = [
        Clip(f"c{n}", "x.mp4", ("BA"[n % 2],), ((), (Interval(1, 3),))[1 - n % 2], fps=24.0)
        for n in range(24)
    ]
    clips = assign_split(clips, test=0.5, val=0.2)
    config = Config(task="detection", channels=4, layers=1, epochs=1, starts=1)
    run = train_run(clips, Store(tmp_path / "store"), tmp_path / "run", config)
    found = evaluate_run(run, Store(tmp_path / "store"))
    held_out = [lengths[clip.id] for clip in clips if clip.split == "test"]
    assert found["model"]["all"]["frames"] == 16 * sum(held_out)


def test_a_new_clip_is_scored_snippet_by_snippet(run: Run) -> None:
    prediction = Predictor(run)(features(999, (20, 26), 50))
    assert prediction.label == "anomaly"
    assert 20 <= int(prediction.scores[:, 1].argmax()) < 26
    assert Predictor(run)(features(998, None, 50)).label == "normal"


def error(clips: list[Clip], store: Store, path: Path, config: Config = SMALL) -> str:
    with pytest.raises(TrainError) as caught:
        train_run(clips, store, path / "run", config)
    assert not (path / "run").exists()
    return str(caught.value)


def test_mistakes_are_named_before_the_first_epoch(
    world: tuple[list[Clip], Store], tmp_path: Path
) -> None:
    clips, store = world
    bare = [replace(clip, intervals=None) for clip in clips]
    assert "held-out clips without annotation in time: 80 (c400 is one)" in error(
        bare, store, tmp_path
    )
    calm = [replace(clip, intervals=()) if clip.split == "test" else clip for clip in clips]
    assert "have no anomaly" in error(calm, store, tmp_path)
    named = replace(SMALL, normal="Quiet")
    expected = "no clip is labelled Quiet, which --normal names; there are Crash, Fight, Normal"
    assert expected in error(clips, store, tmp_path, named)
    both = [replace(c, labels=("A",)) if c.id == "c0" else c for c in clips]
    assert "A and Normal may each be" in error(both, store, tmp_path)
    assert "A and Normal may each be" in error(both, store, tmp_path, Config(epochs=1))


def test_held_out_clips_that_nobody_has_annotated_are_not_taken_as_normal_unseen(
    world: tuple[list[Clip], Store], tmp_path: Path
) -> None:
    """As a table without their start and end had it before."""
    clips, store = world
    ids = [clip.id for clip in clips if clip.split == "test" and clip.label != "Normal"][:2]
    bare = [replace(clip, intervals=()) if clip.id in ids else clip for clip in clips]
    run = train_run(bare, store, tmp_path / "run", replace(SMALL, epochs=1))
    (doubt,) = [doubt for doubt in run.doubts() if "no anomaly" in doubt]
    assert f"in 2 held-out clips whose label is that of one ({ids[0]}, {ids[1]})" in doubt
    assert doubt in evaluate_run(run, store)["doubts"]


def test_the_label_of_normal_clips_can_be_given() -> None:
    clips = [Clip("a", "a", ("calm",)), Clip("b", "b", ("crash",))]
    assert [clip.label for clip in weak_labels(clips, "calm")] == ["normal", "anomaly"]
    with pytest.raises(TrainError, match="--normal"):
        weak_labels(clips, "")


def test_a_run_without_held_out_clips_is_not_judged(
    world: tuple[list[Clip], Store], tmp_path: Path
) -> None:
    known = [clip for clip in world[0] if clip.split == "train"]
    trained = train_run(known, world[1], tmp_path / "run", replace(SMALL, epochs=1))
    with pytest.raises(TrainError, match="mark some of the manifest's clips as test"):
        evaluate_run(trained, world[1])
