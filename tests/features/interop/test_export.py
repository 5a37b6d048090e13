"""Exports: other tools read them, and they come whole or not at all."""

from __future__ import annotations

import json
import resource
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from features import (
    FeatureError,
    Features,
    Flag,
    ImportSummary,
    Recipe,
    Store,
    WriteError,
    export_npy,
    export_safetensors,
    export_webdataset,
    import_npy,
    join,
    pack,
    verify,
)

SIZES = {"video": 3, "audio": 2}
RECIPE = Recipe(0.25, "fp32", {name: {"features": size} for name, size in SIZES.items()})
EXPORTS = [export_npy, export_webdataset, export_safetensors]
IDS = [
    "fight/fi001",
    "Bad.Boys.1995__#01-11-55_01-12-40_label_G-B2-B6",
    "v1.0/clip.with.dots",
    "класс/爆発 (1)",
    "fight/deeper/fi001.npy",
]


def clip(length: int, seed: int = 0, flags: Flag = Flag.NONE) -> Features:
    rng = np.random.default_rng(seed)
    valid = {name: rng.random(length) < 0.7 for name in SIZES}
    return Features(
        {
            name: rng.normal(size=(length, size)).astype(np.float16) * valid[name][:, None]
            for name, size in SIZES.items()
        },
        valid,
        0.25,
        length / 4 - 0.1,
        flags,
        f"{seed:064x}" if seed else "",
    )


def make(path: Path, clips: dict[str, Features]) -> Store:
    pack(path, clips.items(), RECIPE)
    return Store(path)


def some_clips() -> dict[str, Features]:
    flags = [Flag.NONE, Flag.SOUND_DAMAGED, Flag.NONE, Flag.PICTURE_DAMAGED, Flag.NONE]
    return {
        clip_id: clip(n + 3, n, flag)
        for n, (clip_id, flag) in enumerate(zip(IDS, flags, strict=True))
    }


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_numpy_reads_what_was_exported(tmp_path: Path) -> None:
    clips = some_clips()
    assert export_npy(make(tmp_path / "store", clips), tmp_path / "npy") == len(clips)
    assert len(files_below(tmp_path / "npy")) == 2 * len(clips)
    for clip_id, features in clips.items():
        for name in SIZES:
            rows = np.load(tmp_path / "npy" / name / f"{clip_id}.npy")
            valid = features.valid[name]
            assert rows.dtype == np.float16
            assert (rows[valid] == features.streams[name][valid]).all()
            assert np.isnan(rows[~valid]).all()


def test_npy_of_chosen_clips(tmp_path: Path) -> None:
    store = make(tmp_path / "store", some_clips())
    assert export_npy(store, tmp_path / "npy", [IDS[0], IDS[3]]) == 2
    assert set(files_below(tmp_path / "npy")) == {
        f"{name}/{clip_id}.npy" for name in SIZES for clip_id in (IDS[0], IDS[3])
    }
    with pytest.raises(FeatureError, match=r"lacks 1 of the clips.*'nowhere'"):
        export_npy(store, tmp_path / "none", [IDS[0], "nowhere"])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("ids", [("a/b", "a//b"), ("a", "a.npy/b"), ("a.npy/b", "a")])
def test_clips_that_would_share_a_file_are_refused(tmp_path: Path, ids: tuple[str, str]) -> None:
    store = make(tmp_path / "store", {clip_id: clip(3, n) for n, clip_id in enumerate(ids)})
    with pytest.raises(FeatureError, match="another clip's file has its place"):
        export_npy(store, tmp_path / "npy", ids)
    assert list((tmp_path / "npy").iterdir()) == []


def read_tars(folder: Path) -> list[dict[str, Any]]:
    urls = [str(path) for path in sorted(folder.iterdir())]
    return list(webdataset.WebDataset(urls, shardshuffle=False).decode())


def test_webdataset_reads_what_was_exported(tmp_path: Path) -> None:
    clips = some_clips()
    store = make(tmp_path / "store", clips)
    assert export_webdataset(store, tmp_path / "tars") == len(clips)
    samples = read_tars(tmp_path / "tars")
    assert [sample["__key__"] for sample in samples] == [f"{n:08}" for n in range(len(clips))]
    assert [sample["json"]["id"] for sample in samples] == list(store)
    for sample in samples:
        about = sample["json"]
        features = clips[about.pop("id")]
        for name in SIZES:
            assert sample[f"{name}.npy"].dtype == np.float16
            assert (sample[f"{name}.npy"] == features.streams[name]).all()
            assert (sample[f"{name}.valid.npy"] == features.valid[name]).all()
        assert about == {
            "duration": features.duration,
            "flags": int(features.flags),
            "snippet_seconds": 0.25,
            "source": features.source,
        }


def test_webdataset_shards_are_the_same_every_time(tmp_path: Path) -> None:
    store = make(tmp_path / "store", some_clips())
    for name in ("one", "two"):
        export_webdataset(store, tmp_path / name, 20_000)
    assert len(files_below(tmp_path / "one")) > 1
    assert files_below(tmp_path / "one") == files_below(tmp_path / "two")


def test_webdataset_ignores_case(tmp_path: Path) -> None:
    recipe = Recipe(0.25, "fp32", {"RGB": {"features": 1}, "rgb": {"features": 1}})
    rows, valid = np.ones((2, 1), np.float16), np.ones(2, bool)
    both = Features({"RGB": rows, "rgb": rows}, {"RGB": valid, "rgb": valid}, 0.25, 0.5)
    pack(tmp_path / "store", [("a", both)], recipe)
    with pytest.raises(FeatureError, match="differ by case only"):
        export_webdataset(Store(tmp_path / "store"), tmp_path / "tars")


def test_safetensors_reads_what_was_exported(tmp_path: Path) -> None:
    clips = some_clips()
    assert export_safetensors(make(tmp_path / "store", clips), tmp_path / "out") == len(clips)
    (path,) = (tmp_path / "out").iterdir()
    tensors = load_file(path)
    assert len(tensors) == 4 * len(clips)
    for clip_id, features in clips.items():
        for name in SIZES:
            assert tensors[f"{clip_id}/{name}"].dtype == np.float16
            assert (tensors[f"{clip_id}/{name}"] == features.streams[name]).all()
            assert tensors[f"{clip_id}/{name}.valid"].dtype == bool
            assert (tensors[f"{clip_id}/{name}.valid"] == features.valid[name]).all()
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert Recipe.from_json(metadata["recipe"]) == RECIPE
    assert json.loads(metadata["clips"]) == {
        clip_id: {
            "duration": features.duration,
            "flags": int(features.flags),
            "source": features.source,
        }
        for clip_id, features in clips.items()
    }


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(10_000, 60_000))
@example([1, 1, 1, 65, 150, 235], 30_208)  # with the end of the archive, one record more
@settings(max_examples=25, deadline=None)
def test_shards_keep_to_their_size(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], shard_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("sizes")
    clips = {f'"кл"/{n}': clip(length, n) for n, length in enumerate(lengths)}
    store = make(path / "store", clips)
    export_webdataset(store, path / "tars", shard_bytes)
    export_safetensors(store, path / "tensors", shard_bytes)
    found = [sample["json"]["id"] for sample in read_tars(path / "tars")]
    assert sorted(found) == sorted(clips)
    for tar in (path / "tars").iterdir():
        alone = len(list(webdataset.WebDataset(str(tar), shardshuffle=False))) == 1
        assert alone or tar.stat().st_size <= shard_bytes
    exported: list[str] = []
    for file in (path / "tensors").iterdir():
        inside = [name.removesuffix("/video") for name in load_file(file) if name[-6:] == "/video"]
        assert len(inside) == 1 or file.stat().st_size <= shard_bytes
        exported += inside
    assert sorted(exported) == sorted(clips)


def test_headers_count_in_the_size_of_a_file(tmp_path: Path) -> None:
    recipe = Recipe(0.25, "imported", {"v": {"features": 1, "imported": '"quoted" ' * 600}})
    rows, valid = np.ones((1, 1), np.float16), np.ones(1, bool)
    one = Features({"v": rows}, {"v": valid}, 0.25, 0.123456789, source="f" * 64)
    pack(tmp_path / "store", ((f"{n:03}", one) for n in range(200)), recipe)
    assert export_safetensors(Store(tmp_path / "store"), tmp_path / "out", 20_000) == 200
    sizes = [path.stat().st_size for path in (tmp_path / "out").iterdir()]
    assert max(sizes) <= 20_000
    assert len(sizes) < 12


@pytest.mark.parametrize("export", EXPORTS)
def test_memory_is_bounded_by_a_shard(tmp_path: Path, export: Any) -> None:
    recipe = Recipe(0.25, "fp32", {"video": {"features": 2**13}})
    rows, valid = np.ones((2**6, 2**13), np.float16), np.ones(2**6, bool)
    big = Features({"video": rows}, {"video": valid}, 0.25, 16.0)  # a MiB
    pack(tmp_path / "store", ((str(n), big) for n in range(24)), recipe)
    store = Store(tmp_path / "store")
    tracemalloc.start()
    if export is export_npy:
        export(store, tmp_path / "out")
    else:
        export(store, tmp_path / "out", 2 * 2**20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(files_below(tmp_path / "out")) >= 12
    assert peak < 8 * 2**20


@pytest.mark.parametrize("export", EXPORTS)
def test_a_folder_with_files_is_refused(tmp_path: Path, export: Any) -> None:
    store = make(tmp_path / "store", some_clips())
    out = tmp_path / "new/out"
    export(store, out)
    before = files_below(out)
    with pytest.raises(FeatureError, match=r"new/out has files already.*give another folder"):
        export(store, out)
    assert files_below(out) == before
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file: cannot export there"):
        export(store, tmp_path / "file")


@pytest.mark.parametrize("export", EXPORTS)
def test_an_export_that_fails_leaves_nothing(tmp_path: Path, export: Any) -> None:
    store = make(tmp_path / "store", some_clips())
    last = list(store)[-1]
    (shard,) = (tmp_path / "store").glob("*.h5")
    content = bytearray(shard.read_bytes())
    content[content.index(store[last].video.tobytes())] ^= 1
    shard.write_bytes(content)
    with pytest.raises(FeatureError, match="damaged"):
        export(Store(tmp_path / "store"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("export", EXPORTS)
def test_a_disk_that_takes_no_more(tmp_path: Path, export: Any) -> None:
    store = make(tmp_path / "store", {"a": clip(3), "b": clip(3000, 1)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(WriteError, match=r"out: cannot export there.*nothing was exported"):
            export(store, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "out").iterdir()) == []
    assert export(store, tmp_path / "out") == 2


@pytest.mark.parametrize("export", EXPORTS)
def test_joined_stores_are_exported(tmp_path: Path, export: Any) -> None:
    one = make(tmp_path / "one", {"a": clip(4)})
    other = Recipe(0.25, "fp32", {"more": {"features": 1}})
    rows = np.ones((5, 1), np.float16)
    more = Features({"more": rows}, {"more": np.ones(5, bool)}, 0.25, 1.25)
    pack(tmp_path / "other", [("a", more)], other)
    assert export(join(one, Store(tmp_path / "other")), tmp_path / "out") == 1
    read = {
        export_npy: lambda: np.load(tmp_path / "out/video/a.npy"),
        export_webdataset: lambda: read_tars(tmp_path / "out")[0]["video.npy"],
        export_safetensors: lambda: load_file(tmp_path / "out/000000.safetensors")["a/video"],
    }[export]()
    assert read.shape == (5, 3)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_an_export_is_imported_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int
) -> None:
    path = tmp_path_factory.mktemp("round")
    clips = {
        clip_id: clip(length, seed + n)
        for n, (clip_id, length) in enumerate(zip(IDS, lengths, strict=False))
    }
    export_npy(make(path / "store", clips), path / "npy [x] (1)+")
    streams = {name: str(path / "npy [x] (1)+" / name / "{clip}.npy") for name in SIZES}
    summary = import_npy(path / "again", streams, 0.25, "exported before")
    assert summary == ImportSummary(sorted(clips), [], {})
    store = Store(path / "again")
    assert verify(path / "again") == (len(clips), [])
    for clip_id, features in clips.items():
        for name in SIZES:
            assert (store[clip_id].valid[name] == features.valid[name]).all()
            assert (store[clip_id].streams[name] == features.streams[name]).all()
        assert store[clip_id].duration == len(features) * 0.25
        assert (store[clip_id].source, store[clip_id].flags) == ("", Flag.NONE)
