"""What may not be read, or cannot be written: it is named, and the rest is done."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import as_a_user, avarnet

from avarnet import pipelines
from extract import Cluster
from extract.synthetic import make_clip
from features import Recipe, Store
from features.store_files import replace_file
from manifests import Clip, assign_split, from_folders, write
from train import Config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of videos, their manifest, store and run."""
    folder = tmp_path_factory.mktemp("closed")
    manifest, store = folder / "m.jsonl", folder / "store"
    for label in ("Crash", "Normal"):
        for number in range(4):
            make_clip(folder / "videos" / label / f"{number}.mp4", label, number, seconds=1.0)
    clips = assign_split(from_folders(folder / "videos", folder).clips, test=0.5, val=0.25)
    write(manifest, clips)
    pipelines.extract(clips, folder, store, recipe, cluster=Cluster(workers=1))
    settings = Config(channels=8, epochs=1, starts=1)
    pipelines.train(clips, Store(store), folder / "run", settings, manifest=manifest)
    return folder


@contextmanager
def mode(path: Path, bits: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(bits)
    try:
        yield
    finally:
        path.chmod(before)


def test_what_is_closed_is_named_and_costs_no_other_clip(project: Path) -> None:
    closed, other = project / "videos" / "Crash", project / "videos" / "Normal" / "0.mp4"
    with mode(closed, 0):
        words = ("predict", project / "run", closed / "0.mp4", closed, other, "--json")
        rows = {row["video"]: row for row in json.loads(as_a_user(*words, code=3))}
        assert list(rows) == [str(closed), str(closed / "0.mp4"), str(other)]
        assert rows[str(closed)]["error"] == "Permission denied; ask its owner"
        why = "cannot be read (Permission denied; ask its owner)"
        assert rows[str(closed / "0.mp4")]["error"] == f"{why}: {closed / '0.mp4'}"
        assert "label" in rows[str(other)]
        # the rows are in the store, so only the pictures of the report are not at hand
        assert "report:" in as_a_user("evaluate", project / "run")
        found = as_a_user("manifest", "check", project / "m.jsonl", code=1)
        assert f"no permission to read {closed / '0.mp4'}" in found
        assert "does not exist" not in found


def test_a_run_that_cannot_be_written_is_refused_before_the_work(project: Path) -> None:
    run, manifest = project / "run", project / "m.jsonl"
    before = sorted(run.iterdir())
    with mode(run, 0o555):
        alarms = ("calibrate", run, project / "store", "--false-alarms-per-hour", 1e6)
        for words in (("report", run, "-o", project / "r.html"), ("stress", run, manifest), alarms):
            error = as_a_user(*words, code=1)
            assert f"error: {run}: cannot be written" in error
            assert "copy it, and give the copy" in error
            assert "reading again" not in error
    assert sorted(run.iterdir()) == before


def test_a_page_that_cannot_be_written_costs_no_prediction(project: Path, tmp_path: Path) -> None:
    run, videos = project / "run", project / "videos" / "Crash"
    pages = tmp_path / "pages"
    (pages / "1.html").mkdir(parents=True)  # where the page of a video is to be
    found = json.loads(avarnet("predict", run, videos, "--html", pages, "--json", code=3))
    assert [row["video"] for row in found] == [str(videos / f"{n}.mp4") for n in range(4)]
    assert all(row["label"] in ("Crash", "Normal") for row in found)
    reasons = {Path(row["video"]).stem: row.get("page_error") for row in found}
    assert reasons.pop("1") == f"{pages / '1.html'} is a folder; give a file"
    assert reasons == dict.fromkeys("023")
    assert {page.name for page in pages.iterdir() if page.is_file()} >= {"0.html", "index.html"}
    (pages / "index.html").unlink()
    (pages / "index.html").mkdir()
    words = ("predict", run, videos / "0.mp4", "--html", pages)
    assert len(json.loads(avarnet(*words, "--json", code=3))) == 1
    closed = tmp_path / "closed"
    closed.mkdir(0o555)  # known before a video is read
    error = as_a_user("predict", run, videos, "--html", closed, "--json", code=1)
    assert error == f"error: --html {closed}: {closed} cannot be written; give another folder\n"


@pytest.mark.parametrize("name", ["pipe.html", "/dev/stdout", "-"])
def test_a_report_replaces_no_pipe(
    project: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe.html")
    run = project / "run"
    avarnet("evaluate", run)
    before = (run / "evaluation.json").stat().st_mtime_ns
    for words in (("report", run, "-o"), ("report", run, run, "--compare", "-o")):
        error = avarnet(*words, name, code=1)
        assert error == f"error: {name} is no regular file; give a name for one\n"
    assert (run / "evaluation.json").stat().st_mtime_ns == before  # refused before the work
    if name.endswith(".html"):
        video = project / "videos" / "Crash" / "0.mp4"
        words = ("predict", run, video, "--html", name, "--json")
        assert "no regular file" in avarnet(*words, code=1)
        os.mkfifo(tmp_path / "model.pt2")
        assert "no regular file" in avarnet("export", run, "model.pt2", code=1)
        assert (tmp_path / "model.pt2").is_fifo()
        assert (tmp_path / name).is_fifo()
    assert Path("/dev/stdout").is_symlink()


def test_files_that_are_closed_are_not_called_damaged(project: Path, tmp_path: Path) -> None:
    store, run = Path(shutil.copytree(project / "store", tmp_path / "s")), tmp_path / "r"
    shutil.copytree(project / "run", run)
    (shard,) = store.glob("*.h5")
    told = "this user may not read it (permission denied); let its owner run 'chmod a+r' on it"
    train = ("train", project / "m.jsonl", store, tmp_path / "new", "--json")
    evaluate = ("evaluate", run, "--store", store, "--json")
    for file, words in {
        shard: train,
        store / "recipe.json": train,
        run / "run.json": evaluate,
        run / "model-0.safetensors": evaluate,
        run / "known_clips.safetensors": ("predict", run, "--store", store, "--json"),
    }.items():
        with mode(file, 0):
            error = as_a_user(*words, code=1)
            assert f"error: {file}: {told}" in error
            assert "damaged" not in error
    with mode(shard, 0):
        output = as_a_user("features", "verify", store, code=1)
        assert output.splitlines() == [
            f"not read {shard}: {told}",
            "1 shard closed to this user",
            "0 clips intact, 0 damaged shards",
        ]
    (tmp_path / "closed").mkdir()
    manifest = shutil.copy(project / "m.jsonl", tmp_path / "closed" / "m.jsonl")
    with mode(tmp_path / "closed", 0):
        error = as_a_user("manifest", "check", manifest, "--json", code=1)
        assert error == f"error: {manifest}: Permission denied; ask its owner\n"


def test_errors_name_the_file_that_a_user_knows(project: Path) -> None:
    store, closed = project / "store", project / "closed"
    closed.mkdir()
    with mode(store, 0o555), mode(closed, 0o555):
        for file, words in {
            closed / "m.jsonl": ("manifest", "folders", project / "videos", "-o"),
            store / "CARD.md": ("features", "card", store),
        }.items():
            given = (file,) if file.parent == closed else ()
            assert as_a_user(*words, *given, code=1) == (
                f"error: {file}: Permission denied; see who may read and write it, or give "
                "another place\n"
            )
        assert not list(closed.iterdir())


def test_where_there_is_no_room_the_error_names_the_file(tmp_path: Path) -> None:
    """A write has no name of its own; a limit of a file's size ends it as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for file, fill in {
        tmp_path / "CARD.md": lambda path: replace_file(path, bytes(1000)),
        tmp_path / "m.jsonl": lambda path: write(path, [Clip("a", "b" * 1000, ("c",))]),
    }.items():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            with pytest.raises(OSError, match="File too large") as found:
                fill(file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert found.value.filename == str(file)
    assert not list(tmp_path.iterdir())
