"""Imports: what other people extracted becomes a store, and bad files are named."""

from __future__ import annotations

import functools
import io
import os
import pickle
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from features import FeatureError, ImportSummary, Store, import_npy, pack, verify

XD = "Bad.Boys.1995__#01-11-55_01-12-40_label_G-B2-B6"
OTHER_XD = "v=0__#1_label_A"
PATTERNS = {"video": "i3d/RGB/{clip}__{crop}.npy", "audio": "vggish/{clip}__vggish.npy"}


def save(path: Path, array: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def normal(length: int, size: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(length, size)).astype(np.float32)


def make_xd(folder: Path, clip_ids: list[str], crops: int = 5) -> None:
    """Lay files out like the public features of XD-Violence: VGGish is one row shorter."""
    for number, clip_id in enumerate(clip_ids):
        for crop in range(crops):
            rows = normal(7 + number, 4, 10 * number + crop)
            save(folder / f"i3d/RGB/{clip_id}__{crop}.npy", rows)
        save(folder / f"vggish/{clip_id}__vggish.npy", normal(6 + number, 2, 10 * number))


def take_in(folder: Path, **others: Any) -> ImportSummary:
    streams = {name: str(folder / pattern) for name, pattern in PATTERNS.items()}
    return import_npy(folder / "store", streams, 0.5, "I3D and VGGish", **others)


def test_crops_and_streams_of_unlike_length(tmp_path: Path) -> None:
    make_xd(tmp_path, [XD, OTHER_XD])
    seen: list[tuple[int, int]] = []
    summary = take_in(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert summary == ImportSummary(sorted([XD, OTHER_XD]), [], {})
    assert seen == [(0, 2), (1, 2), (2, 2)]
    store = Store(tmp_path / "store")
    assert store.recipe.streams == {
        "video": {"features": 20, "crops": 5, "imported": "I3D and VGGish"},
        "audio": {"features": 2, "imported": "I3D and VGGish"},
    }
    assert store.recipe.precision == "imported"
    assert store.recipe.source["audio"] == {
        "weights": "imported",
        "name": str(tmp_path / PATTERNS["audio"]),
    }
    features = store[XD]
    crops = [np.load(tmp_path / f"i3d/RGB/{XD}__{crop}.npy") for crop in range(5)]
    assert (features.video == np.concatenate(crops, axis=1).astype(np.float16)).all()
    assert features.valid["video"].all()
    assert features.valid["audio"].tolist() == [True] * 6 + [False]
    assert (features.audio[:6] == normal(6, 2).astype(np.float16)).all()
    assert not features.audio[6].any()
    assert features.duration == 7 * 0.5


def test_crops_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for crop in range(12):
        save(tmp_path / f"crop {crop}/a.npy", np.full((2, 1), crop, np.float32))
    import_npy(tmp_path / "store", {"video": str(tmp_path / "crop {crop}/{clip}.npy")}, 1, "crops")
    assert Store(tmp_path / "store")["a"].video[0].tolist() == list(range(12))


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "g"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_floats_of_any_kind(tmp_path: Path, dtype: str, order: Any) -> None:
    rows = normal(5, 3).astype(np.float16)
    save(tmp_path / "a.npy", np.asarray(rows, dtype, order))
    import_npy(tmp_path / "store", {"video": str(tmp_path / "{clip}.npy")}, 1, "floats")
    assert (Store(tmp_path / "store")["a"].video == rows).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 70_000.0, -1e30])
def test_values_that_do_not_fit_are_flagged(tmp_path: Path, bad: float) -> None:
    rows = normal(4, 3)
    rows[1, 2] = bad
    rows[3] = [65504, -65504, 0]
    save(tmp_path / "a.npy", rows)
    import_npy(tmp_path / "store", {"video": str(tmp_path / "{clip}.npy")}, 1, "floats")
    features = Store(tmp_path / "store")["a"]
    assert features.video_valid.tolist() == [True, False, True, True]
    assert not features.video[1].any()
    assert features.video[3].tolist() == [65504, -65504, 0]


def test_a_clip_that_lacks_a_stream(tmp_path: Path) -> None:
    make_xd(tmp_path, [XD, OTHER_XD])
    (tmp_path / f"vggish/{XD}__vggish.npy").unlink()
    for crop in range(5):
        (tmp_path / f"i3d/RGB/{OTHER_XD}__{crop}.npy").unlink()
    assert take_in(tmp_path).failed == {}
    store = Store(tmp_path / "store")
    assert store[XD].audio.shape == (7, 2)
    assert not store[XD].audio_valid.any()
    assert store[XD].video_valid.all()
    assert store[OTHER_XD].video.shape == (7, 20)
    assert not store[OTHER_XD].video_valid.any()
    assert store[OTHER_XD].audio_valid.all()
    assert store[OTHER_XD].duration == 3.5


def header(shape: str, data: bytes = bytes(32)) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


class Trap:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones((2, 4)))
    return buffer.getvalue()


BAD_FILES = {
    "one dimension": (npy(np.ones(4)), r"shape \(4,\)"),
    "three dimensions": (npy(np.ones((2, 5, 4))), r"shape \(2, 5, 4\)"),
    "no rows": (npy(np.ones((0, 4))), r"shape \(0, 4\)"),
    "integers": (npy(np.ones((2, 4), np.int64)), "holds int64, not floats"),
    "records": (npy(np.ones(2, [("a", "<f4")])), "not floats"),
    "objects": (npy(np.array([[Trap()]])), "Python objects"),
    "a pickle": (pickle.dumps(Trap()), "not a readable .npy file"),
    "an archive": (npz(), "not a readable .npy file"),
    "empty": (b"", "not a readable .npy file"),
    "text": (b"<html>404</html>", "not a readable .npy file"),
    "huge": (header("(1000000000000, 4)"), "not a readable .npy file"),
    "beyond counting": (header(f"({10**30}, 4)"), "not a readable .npy file"),
    "below nothing": (header("(-2, 4)"), "not a readable .npy file"),
    "a long header": (header("(2, 4)" + " " * 50_000), "not a readable .npy file"),
    "cut short": (header("(2, 4)", bytes(31)), "not a readable .npy file"),
    "cut on the way": (npy(np.ones((2000, 4)))[:40_000], "not a readable .npy file"),
    "bytes left over": (header("(2, 4)", bytes(33)), "bytes where its header says"),
    "other values": (npy(np.ones((2, 3))), "rows of 3 values; most clips have rows of 4 values"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "z"):
        save(tmp_path / f"in/{name}.npy", normal(3, 4))
    (tmp_path / "in/bad.npy").write_bytes(content)
    tracemalloc.start()
    summary = import_npy(tmp_path / "store", {"video": "in/{clip}.npy"}, 1, "some")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert summary.imported == ["a", "z"]
    assert set(Store(tmp_path / "store")) == {"a", "z"}
    assert list(summary.failed) == ["bad"]
    assert re.match(f"in/bad.npy: .*{reason}", summary.failed["bad"])
    assert not (tmp_path / "sprung").exists()
    assert peak < 50 * 2**20


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    save(tmp_path / "in/a.npy", normal(3, 4))
    os.mkfifo(tmp_path / "in/pipe.npy")
    (tmp_path / "in/gone.npy").symlink_to(tmp_path / "nowhere.npy")
    (tmp_path / "in/folder.npy").mkdir()
    summary = import_npy(tmp_path / "store", {"video": f"{tmp_path}/in/{{clip}}.npy"}, 1, "some")
    assert summary.imported == ["a"]
    assert set(summary.failed) == {"pipe", "gone"}


@pytest.mark.parametrize("name", [b"a\xff.npy", b"a\n.npy", b"a\\b.npy", b"x" * 201 + b".npy"])
def test_a_name_that_is_no_id_fails_alone(tmp_path: Path, name: bytes) -> None:
    save(tmp_path / "in/a.npy", normal(3, 4))
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name)).write_bytes(npy(normal(3, 4)))
    except OSError:
        pytest.skip("this disk knows no such name")
    summary = import_npy(tmp_path / "store", {"video": f"{tmp_path}/in/{{clip}}.npy"}, 1, "some")
    assert summary.imported == ["a"]
    ((clip_id, reason),) = summary.failed.items()
    assert f"{clip_id}: {reason}".isprintable() or "\n" in clip_id
    assert reason.startswith("clip id")


@pytest.mark.parametrize("gone", [0, 2, 4])
def test_a_missing_crop_fails_just_that_clip(tmp_path: Path, gone: int) -> None:
    make_xd(tmp_path, [XD, OTHER_XD, "third"])
    (tmp_path / f"i3d/RGB/{XD}__{gone}.npy").unlink()
    summary = take_in(tmp_path)
    assert summary.imported == ["third", OTHER_XD]
    left = ", ".join(str(crop) for crop in range(5) if crop != gone)
    (reason,) = summary.failed.values()
    assert f"i3d/RGB/{XD}__" in reason
    assert f"in crops {left}; most clips have rows of 4 values in crops 0, 1, 2, 3, 4" in reason


def test_where_two_layouts_are_as_many_the_larger_counts(tmp_path: Path) -> None:
    make_xd(tmp_path, [XD, OTHER_XD])
    (tmp_path / f"i3d/RGB/{XD}__4.npy").unlink()
    assert take_in(tmp_path).imported == [OTHER_XD]


def test_crops_of_unlike_length_fail_just_that_clip(tmp_path: Path) -> None:
    make_xd(tmp_path, [XD, OTHER_XD])
    save(tmp_path / f"i3d/RGB/{XD}__3.npy", normal(8, 4))
    summary = take_in(tmp_path)
    assert summary.imported == [OTHER_XD]
    assert f"{XD}__3.npy: shape (8, 4); crop 0 of the same clip has (7, 4)" in summary.failed[XD]


def test_resuming_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_xd(tmp_path, ["a", "b", "c", "d"])

    def interrupt(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("features.interop.import_npy.pack", functools.partial(pack, shard_bytes=1))
        with pytest.raises(KeyboardInterrupt):
            take_in(tmp_path, progress=interrupt)
    assert set(Store(tmp_path / "store")) == {"a", "b"}
    (tmp_path / "i3d/RGB/a__0.npy").write_bytes(b"changed since")
    (tmp_path / "store/.spool-killed").mkdir()
    (tmp_path / "store/.spool-killed/.writing-half").write_bytes(b"half a shard")
    assert take_in(tmp_path) == ImportSummary(["c", "d"], ["a", "b"], {})
    assert take_in(tmp_path) == ImportSummary([], ["a", "b", "c", "d"], {})
    assert verify(tmp_path / "store") == (4, [])
    names = {path.suffix for path in (tmp_path / "store").iterdir()}
    assert names == {".h5", ".json"}


def test_unlike_features_are_not_mixed(tmp_path: Path) -> None:
    make_xd(tmp_path, [XD])
    streams = {name: str(tmp_path / pattern) for name, pattern in PATTERNS.items()}
    take_in(tmp_path)
    with pytest.raises(FeatureError, match=r"another recipe.*audio\.imported: other weights, not"):
        import_npy(tmp_path / "store", streams, 0.5, "other weights")
    with pytest.raises(FeatureError, match=r"snippet_seconds: 0\.25, not 0\.5"):
        import_npy(tmp_path / "store", streams, 0.25, "I3D and VGGish")
    assert import_npy(tmp_path / "store", streams, 0.5, " I3D  and\nVGGish").already == [XD]


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("i3d/video.npy", r"\{clip\} exactly once"),
        ("{clip}/{clip}.npy", r"\{clip\} exactly once"),
        ("{clip}_{crop}_{crop}.npy", r"\{crop\} only once"),
        ("{clip}{crop}.npy", r"between \{clip\} and \{crop\}"),
        ("i3d/{clip}", r"end in \.npy"),
    ],
)
def test_wrong_patterns_are_refused(tmp_path: Path, pattern: str, problem: str) -> None:
    with pytest.raises(FeatureError, match=problem) as caught:
        import_npy(tmp_path / "store", {"video": pattern}, 1, "some")
    assert f"pattern {pattern}:" in str(caught.value)
    assert "a good one is i3d/RGB/{clip}__{crop}.npy" in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_patterns_that_fit_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "in/deep/a__x.npy", normal(3, 4))
    (tmp_path / "empty").mkdir()
    for pattern, reason in {
        "in/{clip}__{crop}.npy": r"in has .npy files, but such as 'deep/a__x.npy'",
        "{clip}__{crop}.npy": rf"{tmp_path} has .npy files, but such as 'in/deep/a__x.npy'",
        "empty/{clip}.npy": "empty has no .npy files",
        "nowhere/{clip}.npy": "nowhere is no folder",
        "in/deep/a__x.npy/{clip}.npy": "is no folder",
    }.items():
        with pytest.raises(FeatureError, match=reason) as caught:
            import_npy(tmp_path / "store", {"video": pattern}, 1, "some")
        assert f"no file fits the pattern {pattern}:" in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a_pattern_is_taken_literally_but_for_its_placeholders(tmp_path: Path) -> None:
    for name in ("r.g+b (1)/a__[x]__3.npy", "rXg+b (1)/b__[x]__3.npy", "r.g+b (1)/c__x__3.npy"):
        save(tmp_path / name, normal(3, 4))
    streams = {"video": f"{tmp_path}/r.g+b (1)/{{clip}}__[x]__{{crop}}.npy"}
    assert import_npy(tmp_path / "store", streams, 1, "some").imported == ["a"]


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", normal(3, 4))
    good = {"video": f"{tmp_path}/{{clip}}.npy"}
    for streams, seconds, about, reason in [
        ({}, 1.0, "some", "give a stream"),
        ({"a/b": good["video"]}, 1.0, "some", "'a/b' cannot name a stream"),
        (good, 0.0, "some", "0.0 seconds"),
        (good, float("nan"), "some", "nan seconds"),
        (good, 1.0, " \n", "in one line"),
    ]:
        with pytest.raises(FeatureError, match=reason):
            import_npy(tmp_path / "store", streams, seconds, about)
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(FeatureError, match=r"no file of stream video can be used.*a\.npy: not a r"):
        import_npy(tmp_path / "store", good, 1, "some")
    assert not (tmp_path / "store").exists()
