"""The feature store: what is written is read, whatever happens on the way."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_stores import RECIPE, SIZES, clip, fill, same

from features import (
    FeatureError,
    Flag,
    Recipe,
    Shard,
    Store,
    Writer,
    create,
    join,
    merge,
    push,
    recover,
    verify,
)
from features.writer import pack


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 3), st.booleans()), min_size=1, max_size=6
    ),
    st.integers(1, 200),
)
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, some: list[tuple[int, int, bool]], shard_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("store")
    clips = {
        f"класс/{n}": clip(length, seed, Flag.SOUND_DAMAGED if hurt else Flag.NONE)
        for n, (length, seed, hurt) in enumerate(some)
    }
    with Writer(path, RECIPE, shard_bytes) as writer:
        for clip_id, features in clips.items():
            writer.add(clip_id, features)
    store = Store(path)
    assert set(store) == set(clips)
    assert all(same(store[clip_id], clips[clip_id]) for clip_id in clips)
    assert verify(path) == (len(clips), [])
    assert {file.name for file in path.iterdir()} == {
        "recipe.json",
        *(shard.path.name for shard in store.shards),
    }


@pytest.mark.parametrize("way", ["Writer", "pack"])
def test_it_does_not_matter_how_arrays_lie_in_memory(tmp_path: Path, way: str) -> None:
    plain = [clip(6, seed) for seed in range(4)]

    def lying(rows: np.ndarray, how: int) -> np.ndarray:
        if how == 0:
            return np.asfortranarray(rows)
        if how == 1:
            return np.repeat(rows, 2, axis=0)[::2]
        if how == 2:
            return rows[::-1].copy()[::-1]
        wide = np.zeros((len(rows), 2, *rows.shape[1:]), rows.dtype)
        wide[:, 1] = rows
        return wide[:, 1]  # some columns of a larger array

    clips = {
        f"c{how}": replace(
            one,
            streams={name: lying(rows, how) for name, rows in one.streams.items()},
            valid={name: lying(valid, how) for name, valid in one.valid.items()},
        )
        for how, one in enumerate(plain)
    }
    assert not all(c.video.flags["C_CONTIGUOUS"] for c in clips.values())
    if way == "Writer":
        fill(tmp_path, clips)
    else:
        pack(tmp_path, clips.items(), RECIPE)
    store = Store(tmp_path)
    assert all(same(store[f"c{how}"], one) for how, one in enumerate(plain))


def test_rows_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    fill(tmp_path, {"a": clip(4), "b": clip(5, 1)})
    video = Store(tmp_path)["b"].video
    assert video.base is not None
    assert video.dtype == np.float16
    with pytest.raises(ValueError, match="read-only"):
        video[0] = 0


def test_h5py_alone_reads_a_shard(tmp_path: Path) -> None:
    fill(tmp_path, {"a": clip(4), "b": clip(5, 1)})
    (path,) = tmp_path.glob("*.h5")
    with h5py.File(path) as file:
        row = list(file["clips/id"].asstr()).index("b")
        first, count = file["clips/first_row"][row], file["clips/rows"][row]
        rows = file["streams/video/rows"][first : first + count]
    assert (rows == clip(5, 1).video).all()


def test_shards_can_be_copied_in_and_deleted(tmp_path: Path) -> None:
    fill(tmp_path / "one", {"a": clip(4)})
    fill(tmp_path / "two", {"b": clip(5, 1)})
    (shard,) = (tmp_path / "two").glob("*.h5")
    moved = tmp_path / "one" / shard.name
    moved.write_bytes(shard.read_bytes())
    assert set(Store(tmp_path / "one")) == {"a", "b"}
    moved.unlink()
    assert set(Store(tmp_path / "one")) == {"a"}


def test_a_clip_written_twice_is_seen_once(tmp_path: Path) -> None:
    fill(tmp_path, {"a": clip(4)})
    fill(tmp_path, {"a": clip(4), "b": clip(5, 1)})
    assert len(Store(tmp_path)) == 2


def test_another_recipe_is_refused_with_the_differing_fields(tmp_path: Path) -> None:
    fill(tmp_path / "one", {"a": clip(4)})
    other = Recipe(0.5, "fp32", {**RECIPE.streams, "audio": {"features": 4}})
    with pytest.raises(FeatureError, match=r"snippet_seconds: 0.5, not 0.25.*audio.features: 4"):
        create(tmp_path / "one", other)
    create(tmp_path / "two", other)
    (shard,) = (tmp_path / "one").glob("*.h5")
    (tmp_path / "two" / shard.name).write_bytes(shard.read_bytes())
    with pytest.raises(FeatureError, match="another recipe"):
        Store(tmp_path / "two")


def test_two_processes_make_a_store_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one is about to, the other does it, and removes what is unfinished."""
    replace_path, late = Path.replace, True

    def replace_late(path: Path, target: Path) -> Path:
        nonlocal late
        if late:
            late = False
            create(tmp_path, RECIPE)
            recover(tmp_path)
        return replace_path(path, target)

    monkeypatch.setattr(Path, "replace", replace_late)
    create(tmp_path, RECIPE)
    assert {file.name for file in tmp_path.iterdir()} == {"recipe.json"}
    assert len(Store(tmp_path)) == 0


def test_fingerprint_depends_on_values_not_on_where_the_weights_lay() -> None:
    moved = Recipe(0.25, "fp32", RECIPE.streams, {"video": {"name": "/elsewhere"}})
    assert moved.fingerprint == RECIPE.fingerprint
    assert Recipe.from_json(RECIPE.to_json()) == RECIPE
    assert RECIPE.random_streams == ["video"]
    with pytest.raises(FeatureError, match="edited or damaged"):
        Recipe.from_json(RECIPE.to_json().replace("0.25", "0.26"))


@given(st.integers(0), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_is_found(
    tmp_path_factory: pytest.TempPathFactory, where: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("store")
    fill(path, {"a": clip(4), "b": clip(5, 1)})
    (shard,) = path.glob("*.h5")
    content = bytearray(shard.read_bytes())
    content[where % len(content)] ^= 1 << bit
    shard.write_bytes(content)
    _, (damage,) = verify(path)
    assert damage.shard == shard


def test_verify_names_the_clips_hurt(tmp_path: Path) -> None:
    fill(tmp_path, {"a": clip(4), "b": clip(5, 1)})
    (path,) = tmp_path.glob("*.h5")
    content = path.read_bytes()
    at = content.index(clip(5, 1).video.tobytes())
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    intact, (damage,) = verify(tmp_path)
    assert (intact, damage.clips) == (1, ["b"])


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_a_cut_shard_never_hides_the_others(tmp_path: Path, keep: float) -> None:
    fill(tmp_path, {"a": clip(4)})
    fill(tmp_path, {"b": clip(5, 1)})
    shard = next(shard for shard in Store(tmp_path).shards if shard.ids == ["b"])
    content = shard.path.read_bytes()
    cut = len(content) + int(keep) if keep < 0 else int(keep * (len(content) if keep < 1 else 1))
    shard.path.write_bytes(content[:cut])
    _, (damage,) = verify(tmp_path)
    assert damage.shard == shard.path
    assert same(Store(tmp_path)["a"], clip(4))


def test_a_renamed_shard_is_found(tmp_path: Path) -> None:
    fill(tmp_path, {"a": clip(4)})
    (path,) = tmp_path.glob("*.h5")
    path.rename(path.with_name(f"{RECIPE.fingerprint}-0000000000000000.h5"))
    assert len(verify(tmp_path)[1]) == 1


def test_a_table_that_points_outside_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"a": clip(4)})
    (path,) = tmp_path.glob("*.h5")
    with h5py.File(path, "r+") as file:
        file["clips/rows"][0] = 10**12
    with pytest.raises(FeatureError, match="tables were changed"):
        Shard(path)
    assert list(Store(tmp_path)) == []
    assert path in Store(tmp_path).unreadable


@pytest.mark.parametrize("bad", ["../x", "/x", "a/../../x", "", "x\n", "x" * 201])
def test_ids_that_could_harm_are_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(FeatureError, match="clip id"):
        fill(tmp_path, {bad: clip(4)})
    assert not list(tmp_path.glob("*.h5"))


def test_folders_that_are_no_store(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FeatureError, match=r"not a feature store.*avarnet extract"):
            Store(path)
    (tmp_path / "file").touch()
    with pytest.raises(FeatureError, match="is a file"):
        create(tmp_path / "file", RECIPE)


def test_shards_without_their_recipe_are_not_taken_for_nothing(tmp_path: Path) -> None:
    fill(tmp_path, {"a": clip(3)})
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(FeatureError, match=r"it has shards: copy the recipe\.json of the store"):
        Store(tmp_path)


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path, {"a": clip(3)})
    name = f"{RECIPE.fingerprint}-0123456789abcde"
    (path / f"{name}0.h5").mkdir()
    os.mkfifo(path / f"{name}1.h5")
    (path / f"{name}2.h5").symlink_to(path / "nowhere")
    intact, damages = verify(path)
    assert intact == 1
    assert [damage.shard.name for damage in damages] == [f"{name}{n}.h5" for n in range(3)]
    assert push(path, str(tmp_path / "team")).shards == [Store(path).shards[0].path.name]
    (path / "recipe.json").write_text(" " * 10**6)
    with pytest.raises(FeatureError, match="at most"):
        Store(path)


def test_files_that_are_not_whole_yet_are_not_read(tmp_path: Path) -> None:
    fill(tmp_path, {"a": clip(3)})
    (shard,) = tmp_path.glob("*.h5")
    (tmp_path / f".partial-{shard.name}").write_bytes(shard.read_bytes()[:100])
    assert Store(tmp_path).unreadable == {}
    assert verify(tmp_path) == (1, [])


def read_by(version: int | None, sides: dict[str, int] = SIZES) -> Recipe:
    """A recipe whose streams were read by a version of the reading code."""
    key = {} if version is None else {"reading": version}
    return Recipe(0.25, "fp32", {name: {"features": d, **key} for name, d in sides.items()})


def test_a_store_of_an_older_reading_code_is_read_and_not_extended(tmp_path: Path) -> None:
    """Made before versions were counted: its recipe has no such key."""
    old, new = tmp_path / "old", tmp_path / "new"
    with Writer(old, read_by(None)) as writer:
        writer.add("a", clip(4, 1))
    assert "reading" not in (old / "recipe.json").read_text()
    with pytest.raises(FeatureError) as caught:
        Writer(old, read_by(2))
    message = str(caught.value)
    assert "cannot be extended" in message
    assert "the streams video, audio were read by another version of the reading code" in message
    assert "one before versions were counted, not version 2" in message
    assert "sound is placed by its time stamps" in message  # which values changed
    assert "give the folder of a new store" in message
    assert verify(old) == (1, [])
    assert same(Store(old)["a"], clip(4, 1))
    with Writer(old, read_by(None)) as writer:  # what does not read anything may go on
        writer.add("b", clip(4, 2))
    assert set(Store(old)) == {"a", "b"}
    # one of today, and one of a version that is not known here
    with Writer(new, read_by(3)) as writer:
        writer.add("a", clip(4, 1))
    with pytest.raises(FeatureError, match=r"version 3, not version 2\); .*only a newer avarnet"):
        Writer(new, read_by(2))
    # where more than that differs, all of it is said
    other = Recipe(0.5, "fp32", read_by(2).streams)
    with pytest.raises(FeatureError, match=r"snippet_seconds: 0\.5, not 0\.25; .*And the files"):
        Writer(old, other)


def test_streams_of_two_reading_codes_are_joined_and_never_mixed(tmp_path: Path) -> None:
    picture, sound = clip(4, 1), clip(4, 1)
    for version, name, features in ((None, "video", picture), (2, "audio", sound)):
        some = {name: SIZES[name]}
        with Writer(tmp_path / name, read_by(version, some)) as writer:
            writer.add(
                "a",
                replace(
                    features,
                    streams={name: features.streams[name]},
                    valid={name: features.valid[name]},
                ),
            )
    both = join(Store(tmp_path / "video"), Store(tmp_path / "audio"))["a"]
    assert same(both, clip(4, 1))
    for version in (None, 2):
        with Writer(tmp_path / f"of {version}", read_by(version)) as writer:
            writer.add(f"of {version}", clip(4, 1))
    with pytest.raises(FeatureError, match=r"streams\.video\.reading: absent, not 2"):
        merge([tmp_path / "of 2", tmp_path / "of None"], tmp_path / "merged")
