"""The parts in a notebook: paths may be texts, objects show what they are, tables are frames."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from small_stores import clip, fill

import extract
import features
import manifests
import train
from avarnet import pipelines
from features import Features, Flag, Store
from manifests import Clip, Interval
from train import Config, Run, TrainError

PARTS = [manifests, features, extract, train, pipelines]
# what they return: its fields are paths
RESULTS = {"Found", "Run", "Scored", "Unreadable"}
TAKES_A_SHARD = {"Remote.send"}  # of a store's own, by its name


def public(part: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    names = getattr(part, "__all__", None) or [n for n in vars(part) if not n.startswith("_")]
    for name in names:
        found = getattr(part, name)
        if inspect.isfunction(found) and found.__module__.startswith(part.__name__):
            yield name, found
        elif inspect.isclass(found) and found.__module__.startswith(part.__name__):
            for method, plain in vars(found).items():
                if method == "__init__" and name in RESULTS:
                    continue
                own = plain.__func__ if isinstance(plain, classmethod | staticmethod) else plain
                if (inspect.isfunction(own) and not method.startswith("_")) or method == "__init__":
                    yield f"{name}.{method}", own


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_public_function_takes_paths_as_texts(part: ModuleType) -> None:
    """As it declares; that it keeps to it is mypy's to find."""
    seen = 0
    for name, function in public(part):
        for parameter in inspect.signature(function).parameters.values():
            declared = str(parameter.annotation)
            if re.search(r"\bPath\b", declared) and name not in TAKES_A_SHARD:
                seen += 1
                assert re.search(r"\bstr\b", declared), f"{name}({parameter.name}: {declared})"
    assert seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A manifest, a store and a run, all made by texts; one class is called None."""
    folder = str(tmp_path_factory.mktemp("texts"))
    ids = [f"{label}/{number}" for label in ("None", "crash") for number in range(6)]
    sides = ("train", "train", "train", "val", "val", "test")
    clips = [Clip(i, i, (i[:-2],), split=sides[n % 6]) for n, i in enumerate(ids)]
    manifests.write(f"{folder}/m.jsonl", clips)
    fill(Path(folder, "store"), {clip_id: clip(8, seed) for seed, clip_id in enumerate(ids, 1)})
    train.train_run(
        manifests.read(f"{folder}/m.jsonl"),
        Store(f"{folder}/store"),
        f"{folder}/run",
        Config(epochs=2, seeds=2, starts=1, layers=2, channels=4),
        manifest=f"{folder}/m.jsonl",
    )
    return folder


def test_texts_all_the_way(folder: str, tmp_path: Path) -> None:
    run = Run.load(f"{folder}/run")
    assert run.manifest == Path(folder, "m.jsonl")
    pipelines.evaluate(run, [f"{folder}/store"], manifest=f"{folder}/m.jsonl", root=folder)
    train.export_run(run, f"{tmp_path}/model.pt2")
    assert train.compare_runs(f"{folder}/run", f"{folder}/run")["clips"] == 2
    features.merge([f"{folder}/store"], f"{tmp_path}/merged")
    assert features.diff(f"{folder}/store", f"{tmp_path}/merged") == ([], [], [], [])
    features.export_npy(Store(f"{tmp_path}/merged"), f"{tmp_path}/npy")
    patterns = {"video": f"{tmp_path}/npy/video/{{clip}}.npy"}
    features.import_npy(f"{tmp_path}/imported", patterns, 0.25, "the same again")
    assert len(Store(f"{tmp_path}/imported")) == 12
    assert features.drop(f"{tmp_path}/merged", "crash/0") == ["crash/0"]
    features.push(f"{tmp_path}/merged", f"{tmp_path}/pushed")
    features.pull(f"{tmp_path}/pushed", f"{tmp_path}/pulled")
    assert features.verify(f"{tmp_path}/pulled")[0] == 11
    features.pull(f"{tmp_path}/pushed", f"{tmp_path}/one", "crash/1", trim=True)
    assert list(Store(f"{tmp_path}/one")) == ["crash/1"]
    assert features.withdraw(f"{tmp_path}/merged", f"{tmp_path}/pushed", "crash/1") == ["crash/1"]
    table = tmp_path / "t.csv"
    table.write_text("path,label\na.mp4,x\n")
    assert manifests.from_csv(str(table), str(tmp_path))[0].path == "a.mp4"
    assert manifests.check(f"{folder}/m.jsonl", folder)


@pytest.mark.slow
def test_videos_are_named_by_texts(clips: Path, recipe: features.Recipe, tmp_path: Path) -> None:
    video = f"{clips}/Normal/0.mp4"
    assert extract.footage(video) == pytest.approx(1.0, abs=0.1)
    (whole, listed) = (extract.Extractor(recipe), [extract.Files(video, None)])  # type: ignore[arg-type]
    ((_, found),) = whole.stream(listed)
    assert isinstance(found, Features)
    assert len(found) == len(whole(video)) == 4
    listing = manifests.from_folders(str(clips), str(clips)).clips[:2]
    cluster = extract.Cluster(workers=1)
    made = pipelines.extract(listing, str(clips), f"{tmp_path}/store", recipe, cluster=cluster)
    assert len(made.extracted) == 2
    again = [extract.Task(one.id, f"{clips}/{one.path}") for one in listing]  # type: ignore[arg-type]
    assert len(extract.extract(again, f"{tmp_path}/store", recipe).already) == 2


def test_what_they_show_of_themselves(folder: str) -> None:
    store = Store(f"{folder}/store")
    about = "clips 12, 0.01 hours; streams video (3), audio (2); snippets of 0.25 s; shards 1"
    assert repr(store) == f"<Store '{folder}/store': {about}>"
    assert repr(features.join(store)) == f"<Joined: 12 clips of {store!r}>"
    rows = store["crash/0"]
    valid = {name: int(mask.sum()) for name, mask in rows.valid.items()}
    assert repr(rows) == (
        f"<Features: duration 2 s, 8 snippets of 0.25 s; video 3 values, {valid['video']} of 8 "
        f"valid; audio 2 values, {valid['audio']} of 8 valid>"
    )
    flagged = clip(4, flags=Flag.SOUND_GAP | Flag.CUT_SHORT)
    assert repr(flagged).endswith("; flags SOUND_GAP, CUT_SHORT>")
    assert repr(Run.load(f"{folder}/run")) == (
        f"<Run '{folder}/run': recognition of 2 classes; mtcn, early fusion of video + audio; "
        "models 2 (folds: 1, seeds: 2)>"
    )
    known = Clip("a", "a.mp4", ("x",), (Interval(1, 2),), group="g")
    assert eval(repr(known)) == known
    assert "None" not in repr(known)


@pytest.mark.parametrize("name", ["store", "joined", "features", "run", "clip"])
def test_notebooks_show_tables_and_run_nothing_of_others(name: str, folder: str) -> None:
    store, bad = Store(f"{folder}/store"), "<script>alert(1)</script>\x1b[1m"
    run = Run.load(f"{folder}/run")
    hostile: dict[str, Any] = {
        "store": _renamed(store, bad),
        "joined": features.join(_renamed(store, bad)),
        "features": Features({bad: clip(4).video}, {bad: clip(4).video_valid}, 0.25, 1.0),
        "run": Run(**{**{n: getattr(run, n) for n in vars(run)}, "classes": [bad, "b"]}),
        "clip": Clip(bad.removesuffix("\x1b[1m"), "x", (bad,)),
    }
    shown = hostile[name]._repr_html_()
    assert shown.startswith("<table>")
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown
    assert "\x1b" not in shown + repr(hostile[name])


def _renamed(store: Store, name: str) -> Store:
    again = Store(store.path)
    recipe = again.recipe
    again.recipe = features.Recipe(0.25, "fp32", {name: dict(recipe.streams["video"])})
    return again


def test_history_and_predictions_are_frames(folder: str) -> None:
    pandas = pytest.importorskip("pandas")
    run = Run.load(f"{folder}/run")
    history = run.history()
    assert isinstance(history, pandas.DataFrame)
    assert len(history) == 4  # two epochs of two models
    assert history.to_dict("records") == run.epochs()
    pipelines.evaluate(run)
    table = run.predictions()
    assert list(table.columns) == ["clip", "label", "predicted", "linear", "None", "crash"]
    assert list(table["clip"]) == ["None/5", "crash/5"]
    assert list(table["label"]) == ["None", "crash"]  # and not a missing value
    lines = (run.path / "predictions.csv").read_text().splitlines()
    assert [f"{p:.6f}" for p in table["crash"]] == [line.split(",")[-1] for line in lines[1:]]


def test_frames_without_pandas_or_without_predictions(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.load(f"{folder}/run")
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(TrainError, match=r"pip install pandas; Run\.epochs\(\) is a list"):
        run.history()
    monkeypatch.undo()
    pytest.importorskip("pandas")
    elsewhere = Run(**{**{n: getattr(run, n) for n in vars(run)}, "path": tmp_path})
    with pytest.raises(TrainError, match="judge it first: avarnet evaluate"):
        elsewhere.predictions()
