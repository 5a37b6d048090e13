"""Which clips are unlike those of the training: distances, how often it is wrong, and predict."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from command import as_json, avarnet
from safetensors.numpy import save
from scipy.spatial.distance import cdist

from features import Features, Recipe, Store, pack
from manifests import Clip, assign_split
from train import Config, Predictor, Run, TrainError, train_run
from train.novelty import KnownClips, load_known_clips
from train.report.prediction import write_prediction_page

SIZES = {"video": 6, "audio": 4}
RECIPE = Recipe(0.25, "fp32", {name: {"features": d} for name, d in SIZES.items()}, {})


def drawn(rng: np.random.Generator, recordings: int, each: int = 1) -> np.ndarray:
    """Return (clips, 6) means of which those of one recording are alike."""
    own = np.repeat(rng.normal(size=(recordings, 6)), each, axis=0)
    return own + 0.2 * rng.normal(size=own.shape)


def novelty(known: KnownClips, means: np.ndarray) -> list[float]:
    """Return that of clips of one snippet each."""
    valid = {"video": np.ones(1, bool)}
    clips = [Features({"video": m[None].astype(np.float16)}, valid, 0.25, 0.25) for m in means]
    return [value for clip in clips if (value := known.novelty(clip, {})) is not None]


def test_the_distance_is_that_to_the_nearest_clip() -> None:
    rng = np.random.default_rng(0)
    rows = drawn(rng, 60).astype(np.float16)
    known = KnownClips.choose({"video": rows}, np.arange(60))
    assert known is not None
    spread = rows.astype(np.float64).std(0)
    assert known.false_rate == pytest.approx(1 / 61)
    new = drawn(rng, 5).astype(np.float16)
    expected = cdist(new / spread, rows / spread).min(1) / np.sqrt(6) / known.threshold
    assert novelty(known, new) == pytest.approx(expected)


def test_of_few_recordings_the_largest_distance_is_the_threshold() -> None:
    """Each of 12 recordings of 2 clips is left out, from the deviations too."""
    rows = drawn(np.random.default_rng(1), 12, 2).astype(np.float16)
    nearest = []
    for left in range(12):
        others = np.delete(rows, [2 * left, 2 * left + 1], axis=0).astype(np.float64)
        own = rows[2 * left : 2 * left + 2]
        spread = others.std(0)
        nearest += list(cdist(own / spread, others / spread).min(1) / np.sqrt(6))
    known = KnownClips.choose({"video": rows}, np.repeat(np.arange(12), 2))
    assert known is not None
    assert known.threshold == pytest.approx(max(nearest))


@pytest.mark.parametrize(("recordings", "each"), [(20, 1), (20, 6), (150, 1), (100, 3)])
def test_the_rate_of_false_reports_of_novelty(recordings: int, each: int) -> None:
    """Clips of new recordings, over many sets: not more often than is stated, and not never."""
    rng = np.random.default_rng(recordings + each)
    rates, stated = [], 0.0
    for _ in range(150):
        rows = drawn(rng, recordings, each).astype(np.float16)
        known = KnownClips.choose({"video": rows}, np.repeat(np.arange(recordings), each))
        assert known is not None
        stated = known.false_rate
        rates.append(np.mean(np.array(novelty(known, drawn(rng, 40))) > 1))
    assert stated == max(0.01, 1 / (recordings + 1))
    error = 3 * np.std(rates) / np.sqrt(len(rates))
    assert 0.2 * stated < np.mean(rates) < stated + error


def test_streams_that_clips_lack() -> None:
    rng = np.random.default_rng(0)
    video, audio = rng.normal(size=(40, 6)), rng.normal(size=(40, 4))
    audio[::2] = np.nan
    known = KnownClips.choose(
        {"video": video.astype(np.float16), "audio": audio.astype(np.float16)}, np.arange(40)
    )
    assert known is not None

    def of(has: tuple[bool, bool], shift: float) -> float | None:
        rows = {"video": video[:1] + 0.1, "audio": audio[1:2] + shift}
        valid = {n: np.full(1, own) for n, own in zip(rows, has, strict=True)}
        streams = {n: r.astype(np.float16) for n, r in rows.items()}
        return known.novelty(Features(streams, valid, 0.25, 0.25), {})

    assert of((True, False), 50) == pytest.approx(of((True, False), 0))
    assert of((True, False), 0) < 1 < of((False, True), 50)
    assert of((False, False), 0) is None


def test_what_cannot_be_compared() -> None:
    rows = {"video": np.random.default_rng(0).normal(size=(9, 6)).astype(np.float16)}
    assert KnownClips.choose(rows, np.zeros(9, np.int64)) is None  # one recording
    assert KnownClips.choose({"video": np.ones((9, 6), np.float16)}, np.arange(9)) is None


def clip(kind: int, seed: int, shift: float = 0.0) -> Features:
    rng = np.random.default_rng(seed)
    rows = {n: rng.normal(shift, 1, (12, d)) for n, d in SIZES.items()}
    rows["video"][:, 0] += 2 * kind
    return Features(
        {n: r.astype(np.float16) for n, r in rows.items()},
        {n: np.ones(12, bool) for n in rows},
        0.25,
        3.0,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("novelty")
    names = ("Normal", "Crash")
    clips = [Clip(f"c{n}", "x.mp4", (names[n % 2],)) for n in range(60)]
    pack(path / "store", ((c.id, clip(n % 2, n)) for n, c in enumerate(clips)), RECIPE)
    config = Config(channels=4, layers=1, epochs=1, starts=1)
    divided = assign_split(clips, test=0.3, val=0.2)
    return train_run(divided, Store(path / "store"), path / "run", config)


def test_predict_reports_novelty(run: Run, tmp_path: Path) -> None:
    clips = {"usual": clip(0, 1000), "from elsewhere": clip(0, 1001, shift=4)}
    pack(tmp_path / "new", clips.items(), RECIPE)
    usual, other = as_json("predict", run.path, "--store", tmp_path / "new")
    if usual["video"] != "usual":
        usual, other = other, usual
    assert (usual["unlike_training"], other["unlike_training"]) == (False, True)
    assert usual["novelty"] < 1 < other["novelty"]
    output = avarnet("predict", run.path, "from elsewhere", "--store", tmp_path / "new")
    assert f"unlike anything in training: {other['novelty']:.1f} times as far" in output
    assert "unlike" not in avarnet("predict", run.path, "usual", "--store", tmp_path / "new")
    page = tmp_path / "page.html"
    predicted = Predictor(run)(clips["from elsewhere"])
    write_prediction_page(
        page, tmp_path / "a.mp4", clips["from elsewhere"], run, predicted, {}, single_file=True
    )
    assert "This clip is unlike anything in training" in page.read_text()
    # held-out clips are not among those that are known
    known = load_known_clips(Run.load(run.path))
    assert len(known.means["video"]) == len(run.splits[0].train) + len(run.splits[0].val)


@pytest.mark.parametrize(
    "change",
    [
        {"means video": np.zeros((3, 6))},
        {"means video": np.zeros((3, 5), np.float16)},
        {"means video": np.zeros((2, 6), np.float16)},
        {"means video": np.full((3, 6), np.inf, np.float16)},
        {"means audio": np.zeros((0, 4), np.float16), "means video": np.zeros((0, 6), np.float16)},
        {"threshold": np.array([np.nan])},
        {"threshold": np.array([1.0, 1.0])},
        {"false_rate": np.array([2.0])},
        {"means audio": None},
    ],
)
def test_a_stranger_s_clips(run: Run, tmp_path: Path, change: dict[str, np.ndarray | None]) -> None:
    """With the digest that belongs to them."""
    copy = shutil.copytree(run.path, tmp_path / "run")
    tensors = {f"means {n}": np.zeros((3, d), np.float16) for n, d in SIZES.items()}
    tensors |= {"threshold": np.array([1.0]), "false_rate": np.array([0.1])}
    content = save({n: x for n, x in (tensors | change).items() if x is not None})
    (copy / "known_clips.safetensors").write_bytes(content)
    whole = json.loads((copy / "run.json").read_text())
    whole["known_clips"] = sha256(content).hexdigest()
    (copy / "run.json").write_text(json.dumps(whole))
    with pytest.raises(TrainError, match=r"known_clips.safetensors is damaged"):
        Predictor(Run.load(copy))


def test_runs_without_them_and_damaged_ones(run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(run.path, tmp_path / "run")
    file = copy / "known_clips.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(TrainError, match=r"known_clips.safetensors is damaged \(its SHA-256"):
        Predictor(Run.load(copy))
    file.unlink()
    assert Predictor(Run.load(copy))(clip(0, 1)).novelty is None
    older = json.loads((run.path / "run.json").read_text())
    del older["known_clips"]
    (copy / "run.json").write_text(json.dumps(older))
    assert Predictor(Run.load(copy))(clip(0, 1)).novelty is None
