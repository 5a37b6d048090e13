"""A clip's truth per frame, and manifests on disk."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import (
    Clip,
    Interval,
    ManifestError,
    default_root,
    parse,
    read,
    relative_path,
    write,
)

names = st.text(st.characters(categories=["L", "N", "P"], exclude_characters="/\\"), min_size=1)
ids = names.filter(lambda text: len(text.encode()) <= 200 and text != "..")
seconds = st.floats(0.01, 1e4)
intervals = st.lists(st.tuples(st.floats(0, 1e4), seconds), max_size=3).map(
    lambda pairs: tuple(Interval(start, start + length) for start, length in pairs)
)
clips = st.builds(
    Clip,
    ids,
    names,
    st.lists(names, min_size=1, max_size=3).map(tuple),
    st.none() | intervals,
    st.none() | st.sampled_from(["train", "val", "test", "fold-3"]),
    st.none() | names,
    st.none() | seconds,
    st.none() | seconds,
    st.none() | names,
)


@given(st.lists(clips, min_size=1, max_size=5, unique_by=lambda clip: clip.id))
@settings(max_examples=50, deadline=None)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, some: list[Clip]
) -> None:
    path = tmp_path_factory.mktemp("m") / "m.jsonl"
    write(path, some)
    assert read(path) == some
    assert list(path.parent.iterdir()) == [path]


@given(clips)
@settings(deadline=None)
def test_a_clip_survives_json(clip: Clip) -> None:
    plain = clip.to_json()
    assert None not in plain.values()
    assert Clip.from_json(json.loads(json.dumps(plain))) == clip


def test_a_failed_write_leaves_the_old_manifest(tmp_path: Path) -> None:
    path, old = tmp_path / "new" / "m.jsonl", Clip("a", "a.mp4", ("x",))
    write(path, [old])

    def broken() -> Iterator[Clip]:
        yield Clip("b", "b.mp4", ("x",))
        raise RuntimeError("the source of the clips failed")

    with pytest.raises(RuntimeError, match="source of the clips"):
        write(path, broken())
    assert read(path) == [old]
    assert list(path.parent.iterdir()) == [path]


@given(st.integers(0, 5000), st.integers(1, 5000), st.sampled_from([24.0, 25.0, 30.0, 29.97]))
def test_whole_frames_survive_the_way_through_seconds(first: int, length: int, fps: float) -> None:
    interval = Interval(first / fps, (first + length) / fps)
    truth = Clip("a", "a.mp4", ("x",), (interval,), fps=fps).frame_labels(first + length + 3)
    assert np.flatnonzero(truth).tolist() == list(range(first, first + length))


def test_frame_labels_need_an_annotation_and_a_rate() -> None:
    with pytest.raises(ManifestError, match="no annotation"):
        Clip("a", "a.mp4", ("x",)).frame_labels(10)
    with pytest.raises(ManifestError, match="give fps"):
        Clip("a", "a.mp4", ("x",), (Interval(0, 1),)).frame_labels(10)
    assert not Clip("a", "a.mp4", ("x",), ()).frame_labels(10).any()
    cut = Clip("a", "a.mp4", ("x",), (Interval(1, 99),)).frame_labels(10, fps=5)
    assert cut.tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize("fps", [0, -1, math.nan, math.inf])
def test_a_rate_that_is_none_is_refused(fps: float) -> None:
    clip = Clip("a", "a.mp4", ("x",), (Interval(0, 1),), fps=5)
    with pytest.raises(ManifestError, match=r"clip a: fps .* expected a positive number"):
        clip.frame_labels(10, fps)


@pytest.mark.parametrize(
    "bad", ["", "/a", "../a", "a/../b", "a\nb", "a\\b", " a", "x" * 201, "é" * 101, "\ud800"]
)
def test_ids_that_could_harm_are_refused(bad: str) -> None:
    with pytest.raises(ManifestError, match="clip id"):
        Clip(bad, "a.mp4", ("x",))


# a zero-width joiner and a no-break space are ordinary text in names of the web
@pytest.mark.parametrize("good", ["kämpfe/1", "打架 2", "a..b", "a\u200db", "a\u00a0b", "é" * 100])
def test_ids_may_be_in_any_language(good: str, tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", [Clip(good, "a.mp4", ("x",))])
    assert read(tmp_path / "m.jsonl")[0].id == good


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": ""}, "clip a: its path is empty"),
        ({"path": "a\0b"}, "clip a: .* is not Unicode text without NUL"),
        ({"audio": "\udcff.wav"}, "clip a: .* is not Unicode text"),
        ({"labels": "xyz"}, "clip a: labels 'xyz'; expected a tuple"),
        ({"labels": ("x", "")}, "clip a: needs a label"),
        ({"intervals": (Interval(1, 1),)}, "clip a: interval 1 to 1 s"),
        ({"intervals": (Interval(-1, 1),)}, "clip a: interval -1 to 1 s"),
        ({"intervals": (Interval(math.nan, 1),)}, "clip a: interval nan"),
        ({"intervals": (Interval(0, math.inf),)}, "clip a: interval 0 to inf"),
        ({"duration": 0.0}, "clip a: duration 0.0; expected a positive number"),
        ({"fps": math.nan}, "clip a: fps nan; expected a positive number"),
    ],
)
def test_fields_without_a_meaning_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Clip(**{"id": "a", "path": "a.mp4", "labels": ("x",), **fields})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a line of JSON"),
        ("[]", "expected a JSON object"),
        ('{"path": "a", "labels": ["x"]}', "the field id is missing"),
        ('{"id": "a", "path": 3, "labels": ["x"]}', "field path: expected text"),
        ('{"id": "a", "path": "a", "labels": "x"}', "field labels: expected a list"),
        ('{"id": "a", "path": "a", "labels": []}', "needs a label"),
        ('{"id": "a", "path": "a", "labels": ["x"], "colour": 1}', "no such field: colour"),
        ('{"id": "a", "path": "a", "labels": ["x"], "duration": "1"}', "expected a number"),
        ('{"id": "a", "path": "a", "labels": ["x"], "intervals": [[1]]}', "field intervals"),
        ('{"id": "a", "path": "a", "labels": ["x"], "intervals": ["12"]}', "field intervals"),
        (
            '{"id": "a", "path": "a", "labels": ["x"], "intervals": [["1", "2"]]}',
            "field intervals: expected a number, found '1'",
        ),
        (
            '{"id": "a", "path": "a", "labels": ["x"], "intervals": [[false, true]]}',
            "found False",
        ),
        (
            '{"id": "a", "path": "a", "labels": ["x"], "duration": 1' + "0" * 400 + "}",
            "field duration: expected a number, found one too large",
        ),
        ('{"id": "a", "path": "a", "labels": ["x"], "fps": true}', "field fps: expected a number"),
        ('{"id": "\\ud800", "path": "a", "labels": ["x"]}', "clip id"),
        ('{"id": "a", "path": "a", "labels": ["x"], "intervals": [[2, 1]]}', "0 <= start < end"),
        ('{"id": "ok", "path": "a", "labels": ["x"]}', "is on line 1 already"),
    ],
)
def test_mistakes_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": "ok", "path": "a", "labels": ["x"]}\n\n' + line + "\n")
    with pytest.raises(ManifestError, match=f"line 3: .*{message}"):
        read(path)


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is a folder; give a file for the manifest"):
        write(tmp_path, [])
    with pytest.raises(ManifestError, match="avarnet manifest folders"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match="directory"):
        read(tmp_path)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(ManifestError, match="line 1"):
        read(tmp_path / "binary")
    (tmp_path / "empty").touch()
    with pytest.raises(ManifestError, match="no clips"):
        read(tmp_path / "empty")


def test_a_linked_manifest_stays_a_link(tmp_path: Path) -> None:
    """Its paths are relative to the folder of the real file, where a copy would break them."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "m.jsonl").write_text("old")
    link = tmp_path / "m.jsonl"
    link.symlink_to("disk/m.jsonl")
    write(link, [Clip("a", "a.mp4", ("x",))])
    assert link.is_symlink()
    assert json.loads((tmp_path / "disk" / "m.jsonl").read_text())["id"] == "a"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["m.jsonl"]


def test_what_is_no_regular_file_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor written: what a command prints would be among the lines."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for path in ("pipe", "-", "/dev/fd/1", "/proc/self/fd/1"):
        with pytest.raises(ManifestError, match=f"^{path} is no regular file; give one"):
            write(path, [])
    assert Path("pipe").is_fifo()
    assert os.listdir() == ["pipe"]


def test_parse_continues_after_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    good = json.dumps(Clip("a", "a.mp4", ("x",)).to_json())
    path.write_text(f"nonsense\n{good}\n")
    (one, error), (two, clip) = parse(path)
    assert (one, two) == (1, 2)
    assert isinstance(error, ManifestError)
    assert isinstance(clip, Clip)


def test_paths_are_relative_to_the_folder_of_the_manifest(tmp_path: Path) -> None:
    root = default_root(tmp_path / "sets" / "m.jsonl")
    assert root == tmp_path.resolve() / "sets"
    assert relative_path(root / "a" / "b.mp4", root) == "a/b.mp4"
    assert relative_path(tmp_path / "v" / "b.mp4", root) == "../v/b.mp4"
    clip = Clip("a", relative_path(tmp_path / "v" / "b.mp4", root), ("x",))
    assert clip.resolve(root).resolve() == tmp_path.resolve() / "v" / "b.mp4"
    absolute = Clip("a", str(tmp_path / "b.mp4"), ("x",))
    assert absolute.resolve(root) == tmp_path / "b.mp4"


def test_links_keep_their_name_and_linked_folders_lead_home(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1f3c").write_text("a video")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "root").symlink_to(tmp_path / "far" / "away")
    link = tmp_path / "crash.mp4"
    link.symlink_to(tmp_path / "blobs" / "1f3c")
    written = relative_path(link, tmp_path / "root")
    assert written.endswith("/crash.mp4")
    assert (tmp_path / "root" / written).read_text() == "a video"
