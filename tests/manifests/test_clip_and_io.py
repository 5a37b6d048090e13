"""A clip's truth per frame, and manifests on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import Clip, Interval, ManifestError, parse, read, write

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


@pytest.mark.parametrize("bad", ["", "/a", "../a", "a/../b", "a\nb", "a\\b", " a", "x" * 201])
def test_ids_that_could_harm_are_refused(bad: str) -> None:
    with pytest.raises(ManifestError, match="clip id"):
        Clip(bad, "a.mp4", ("x",))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a line of JSON"),
        ("[]", "expected a JSON object"),
        ('{"path": "a", "labels": ["x"]}', "field id: expected text"),
        ('{"id": "a", "path": "a", "labels": "x"}', "field labels: expected a list"),
        ('{"id": "a", "path": "a", "labels": []}', "needs a label"),
        ('{"id": "a", "path": "a", "labels": ["x"], "colour": 1}', "no such field: colour"),
        ('{"id": "a", "path": "a", "labels": ["x"], "duration": "1"}', "expected a number"),
        ('{"id": "a", "path": "a", "labels": ["x"], "intervals": [[1]]}', "field intervals"),
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


def test_parse_goes_on_after_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    good = json.dumps(Clip("a", "a.mp4", ("x",)).to_json())
    path.write_text(f"nonsense\n{good}\n")
    (one, error), (two, clip) = parse(path)
    assert (one, two) == (1, 2)
    assert isinstance(error, ManifestError)
    assert isinstance(clip, Clip)
