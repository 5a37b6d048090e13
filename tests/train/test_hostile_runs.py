"""Runs that are damaged or come from a stranger: refused with a reason, or read within limits."""

from __future__ import annotations

import copy
import json
import math
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_stores import clip as some_clip
from small_stores import fill

from features import Store, verify
from manifests import AvarnetError, Clip, Interval, assign_split
from train import Config, Predictor, Run, TrainError, calibrate, compare_runs, judge_run, train_run
from train.report.comparison import write_comparison
from train.report.run import write_report
from train.run_json import VERSION

CASES, SOAK_CASES = 300, 10_000  # of either task
LITTLE = 200 * 2**10  # KB of memory that a run of some KB may take
WEIGHTS = "model-0.safetensors"
FILES = (
    "run.json",
    "metrics.jsonl",
    "evaluation.json",
    "predictions.csv",
    "calibration.json",
    "known_clips.safetensors",
    WEIGHTS,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("store")
    fill(path, {f"c{n}": some_clip(8, n + 1) for n in range(24)})
    assert verify(path) == (24, [])
    return Store(path)


@pytest.fixture(scope="module", params=["recognition", "detection"])
def real(
    request: pytest.FixtureRequest, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A small run as `evaluate` leaves it."""
    clips = [
        Clip(f"c{n}", "x.mp4", (("Normal", "Crash")[n % 2],), ((), (Interval(0, 1),))[n % 2])
        for n in range(24)
    ]
    path = tmp_path_factory.mktemp("runs") / "run"
    config = Config(task=request.param, channels=4, layers=1, epochs=2, starts=1, dropout=0.0)
    run = train_run(assign_split(clips, test=0.3, val=0.3), store, path, config)
    write_report(run, judge_run(run, store), path / "report.html")
    calibrate(run, store, 2000)
    return path


def memory() -> int:
    """Return the most memory that this process has held so far, in KB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def use(path: Path) -> None:
    """Read all that a run's folder has."""
    run = Run.load(path)
    run.kept_epochs()
    run.doubts()
    run.evaluation()
    Predictor(run)(some_clip(5, 1))
    compare_runs(path, path)


@pytest.fixture
def copied(real: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(real, tmp_path / "copy"))


def change(path: Path, *keys: Any, to: Any) -> None:
    document = json.loads(path.read_text())
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("put", "message"),
    [
        (os.mkfifo, "not a regular file but a pipe"),
        (lambda file: file.symlink_to(file.with_name("other")), "not a regular file but a link"),
        (Path.mkdir, "not a regular file but a folder"),
        (lambda file: (file.touch(), os.truncate(file, 2**42)), "too long"),  # of holes
    ],
)
def test_what_is_no_file_of_a_run(
    copied: Path, name: str, put: Callable[[Path], object], message: str
) -> None:
    (copied / name).rename(copied / "other")
    put(copied / name)
    expected = "judge it first" if name == "evaluation.json" else message
    with pytest.raises(TrainError, match=f"{name}.*{expected}"):
        use(copied)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("version",), "4", "what it has for version cannot be"),
        (("version",), 99, f"a run of version 99, this program reads {VERSION};"),
        (("sizes",), {"video": -3, "audio": 2}, "sizes"),
        (("sizes",), {"video": 10**9, "audio": 2}, "sizes"),
        (("sizes",), {"video": "3", "audio": 2}, "sizes"),
        (("classes",), "ab", "classes"),
        (("classes",), ["a"], "classes"),
        (("classes",), ["Crash", "\ud800"], "damaged"),
        (("labels", "c0"), 1, "labels"),
        (("labels", "c0"), "other", "a label that is no class"),
        (("parts",), [], "its splits are not of its clips"),
        (("parts", 0, "test"), ["elsewhere"], "its splits are not of its clips"),
        (("stores",), ["a\0b"], "NUL in a path"),
        (("truth",), [{}], "damaged"),
        (("hysteresis",), {"high": "1"}, "what it has for high cannot be"),
        (("chosen",), {"balanced_accuracy": 1.0}, "chosen"),
        (("weights",), [], None),  # as of an older version
        (("weights",), ["0"] * 3, "3 digests of 1 models"),
        (("weights",), ["0"], "its SHA-256 is not that in run.json"),
        (("made",), {"date": 1}, "what it has for made cannot be"),
        (("config", "channels"), 99_999, "not the weights of this run"),
        (("config", "channels"), 10**12, "out of range: channels"),
        (("config", "stages"), 10**9, "out of range: stages"),
        (("config", "seeds"), 10**9, "out of range: seeds"),
        (("config", "seeds"), 99_999, "1 digests of 99999 models"),
        (("config", "learning_rate"), 1e400, "learning_rate"),
        (("recipe", "streams"), {}, "damaged"),
        (("known_clips",), "0", "known_clips.safetensors is damaged .its SHA-256"),
        (("packages",), {"model": 1}, "packages"),
        (("packages",), {"model": "p 1"}, "its model mtcn comes with another package, p 1"),
    ],
)
def test_what_no_run_has(
    copied: Path, keys: tuple[Any, ...], value: Any, message: str | None
) -> None:
    before = memory()
    change(copied / "run.json", *keys, to=value)
    if message is None:
        use(copied)
    else:
        with pytest.raises(TrainError, match=message):
            use(copied)
    assert memory() - before < LITTLE


@pytest.mark.parametrize(
    "name", ["run.json", "metrics.jsonl", "evaluation.json", "calibration.json"]
)
@pytest.mark.parametrize("text", [DEEP, "[]", "{}", "1", '"x"', '{"a":', "9" * 5000])
def test_json_that_is_something_else(copied: Path, name: str, text: str) -> None:
    (copied / name).write_text(text)
    with pytest.raises(TrainError, match=name):
        use(copied)


def test_rows_that_are_no_json_are_read_as_older_versions_wrote_them(copied: Path) -> None:
    file = copied / "metrics.jsonl"
    first, *others = file.read_text().splitlines()
    file.write_text(
        "\n".join([first.replace('"train_loss": ', '"train_loss": NaN, "x": '), *others])
    )
    row, *_ = Run.load(copied).epochs()
    assert math.isnan(row["train_loss"])
    use(copied)


@pytest.mark.parametrize("fold", [-1, 7])
def test_a_fold_that_the_run_does_not_have(copied: Path, fold: int) -> None:
    file = copied / "metrics.jsonl"
    file.write_text(file.read_text().replace('"fold": 0', f'"fold": {fold}', 1))
    with pytest.raises(TrainError, match=r"metrics\.jsonl is damaged \(a fold"):
        Run.load(copied).epochs()


def test_figures_that_are_none(copied: Path) -> None:
    task = Run.load(copied).config.task
    key = "accuracy" if task == "recognition" else "all"
    change(copied / "evaluation.json", "model", key, to="0.9")
    with pytest.raises(TrainError, match=r"no evaluation\.json that this version can read"):
        write_comparison([Run.load(copied)], copied / "page.html")


@pytest.mark.parametrize("lines", [0, 1])
def test_predictions_of_no_clip(copied: Path, lines: int) -> None:
    file = copied / "predictions.csv"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:lines]))
    with pytest.raises(TrainError, match=r"predictions\.csv is damaged \(it has no clips\)"):
        compare_runs(copied, copied)


def test_predictions_of_a_clip_that_was_not_held_out(copied: Path) -> None:
    file, (split, *_) = copied / "predictions.csv", Run.load(copied).splits
    text = file.read_text()
    file.write_text(text.replace(f"\n{split.test[0]},", f"\n{split.train[0]},"))
    assert file.read_text() != text
    with pytest.raises(TrainError, match="a line that is not of its held-out clips"):
        compare_runs(copied, copied)


def test_a_link_in_a_run_is_replaced_and_not_followed(
    copied: Path, store: Store, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    for name in ("evaluation.json", "predictions.csv", "report.html"):
        (copied / name).unlink()
        (copied / name).symlink_to(outside)
    run = Run.load(copied)
    write_report(run, judge_run(run, store), copied / "report.html")
    assert outside.read_text() == "mine"
    assert not any(file.is_symlink() for file in copied.iterdir())
    use(copied)


# The fuzz


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 2, 10**6, 2**31, 2**63, 10**30, 1e308, -0.5, "", "x", "\0", "c0"])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def other_json(data: st.DataObject, text: bytes) -> bytes:
    """Change a document in one place or a few."""
    document = [json.loads(text)]
    for _ in range(data.draw(st.sampled_from([1, 1, 1, 2, 3]))):
        *above, key = (0, *data.draw(st.sampled_from(places(document[0]))))
        inner = document
        for step in above:
            inner = inner[step]
        kind = data.draw(st.sampled_from(["junk", "gone", "another"]))
        if kind == "gone" and above:
            del inner[key]
        elif kind == "another":
            found: Any = document[0]
            for step in data.draw(st.sampled_from(places(document[0]))):
                found = found[step]
            inner[key] = copy.deepcopy(found)
        else:
            inner[key] = data.draw(JUNK)
    return json.dumps(document[0]).encode()


def other_bytes(data: st.DataObject, content: bytes) -> bytes:
    """Flip bits, cut, or put something else in."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(changed) - 1))
        kind = data.draw(st.sampled_from(["flip", "flip", "cut", "put"]))
        if kind == "flip":
            changed[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del changed[at + 1 : at + 1 + data.draw(st.integers(1, 50))]
        else:
            changed[at:at] = data.draw(st.binary(max_size=20))
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("cases", [CASES, pytest.param(SOAK_CASES, marks=pytest.mark.soak)])
def test_no_run_ends_otherwise_than_with_a_reason(
    real: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    cases: int,
) -> None:
    for name in ("BOOTSTRAPS", "PERMUTATIONS"):
        monkeypatch.setattr(f"train.evaluation.compare.{name}", 5)
    copied = Path(shutil.copytree(real, tmp_path_factory.mktemp("fuzz") / "run"))
    expected = Predictor(Run.load(real))(some_clip(5, 1)).scores
    outcomes = {"refused": 0, "read": 0}
    before = memory()

    @given(st.data())
    @settings(max_examples=cases, deadline=None, database=None)
    def one(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(FILES))
        content = (real / name).read_bytes()
        if name.endswith("json") and data.draw(st.booleans()):
            changed = other_json(data, content)
        elif name == "metrics.jsonl" and data.draw(st.booleans()):
            first, *others = content.splitlines(keepends=True)
            changed = b"".join([other_json(data, first) + b"\n", *others])
        else:
            changed = other_bytes(data, content)
        (copied / name).write_bytes(changed)
        try:
            use(copied)
            outcomes["read"] += 1
            if name != "run.json":
                scores = Predictor(Run.load(copied))(some_clip(5, 1)).scores
                assert np.array_equal(scores, expected)
            assert name != WEIGHTS or changed == content
        except AvarnetError:
            outcomes["refused"] += 1
        finally:
            (copied / name).write_bytes(content)

    one()
    assert memory() - before < LITTLE
    assert min(outcomes.values()) > cases / 100  # or the cases would be too tame, or too wild
