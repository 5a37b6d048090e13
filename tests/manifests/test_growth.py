"""A manifest grows: what it holds stays as it is, and no clip changes its side."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from command import as_json, avarnet
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import Clip, Interval, ManifestError, assign_folds, assign_split, read, write


def make(count: int, first: int = 0) -> list[Clip]:
    return [Clip(f"{n}", f"{n}.mp4", ("ab"[n % 2],)) for n in range(first, first + count)]


def clips_of(groups: list[int], first: int) -> list[Clip]:
    return [Clip(f"{n}", "x", ("a",), group=f"g{group}") for n, group in enumerate(groups, first)]


@given(
    st.lists(st.integers(0, 20), min_size=20, max_size=40),
    st.lists(st.integers(0, 40), max_size=40),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_clips_keep_their_side_and_groups_stay_whole(
    groups: list[int], new: list[int], seed: int
) -> None:
    old = clips_of(groups, 0)
    if len(set(groups)) < 4:
        return
    for first, again in (
        (assign_split(old, 0.2, 0.2, seed), lambda c: assign_split(c, 0.2, 0.2, seed, keep=True)),
        (assign_folds(old, 4, seed), lambda c: assign_folds(c, 4, seed, keep=True)),
    ):
        grown = again([*first, *clips_of(new, len(old))])
        assert grown[: len(old)] == first
        sides = Counter((clip.group, clip.split) for clip in grown)
        assert len(sides) == len({clip.group for clip in grown})
        assert None not in {clip.split for clip in grown}


def test_new_clips_bring_the_sides_nearest_to_their_shares() -> None:
    first = assign_split(make(60), 0.2, 0.1)
    grown = assign_split([*first, *make(40, 60)], 0.2, 0.1, keep=True)
    assert Counter(clip.split for clip in grown) == {"train": 70, "val": 10, "test": 20}
    assert {c.id for c in first if c.split == "test"} < {c.id for c in grown if c.split == "test"}


def test_sides_that_cannot_be_kept() -> None:
    split = [replace(clip, split="train") for clip in make(9)]
    with pytest.raises(ManifestError, match=r"clip 0 is on the side train, .* fold-0, fold-1; "):
        assign_folds(split, 2, keep=True)
    with pytest.raises(ManifestError, match=r"side val, .* asked for are train, test; .*--no-keep"):
        assign_split([replace(split[0], split="val"), *split[1:]], 0.5, 0, keep=True)
    torn = [
        Clip(f"{n}", "x", ("a",), split=side, group="g" if n < 3 else None)
        for n, side in enumerate(["train", "test", None, "train", "test"])
    ]
    with pytest.raises(ManifestError, match="clip 2: its group g is on the sides test and train"):
        assign_split(torn, 0.5, 0, keep=True)
    whole = [replace(torn[2], split="test"), *torn[:2], *torn[3:]]  # `check` warns of it
    assert assign_split(whole, 0.5, 0, keep=True) == whole


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    """A manifest of 60 clips of a folder: divided, and annotated by hand."""
    for n in range(60):
        file = tmp_path / "videos" / "ab"[n % 2] / f"{n}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    manifest = tmp_path / "m.jsonl"
    avarnet("manifest", "folders", tmp_path / "videos", "-o", manifest)
    avarnet("manifest", "split", manifest)
    clips = read(manifest)
    write(manifest, [replace(clips[0], intervals=(Interval(1, 2),)), *clips[1:]])
    return manifest


def test_a_split_survives_five_new_clips(divided: Path, tmp_path: Path) -> None:
    before = read(divided)
    for n in range(5):
        (tmp_path / "videos" / "a" / f"new-{n}.mp4").write_bytes(b"")
    output = avarnet("manifest", "add", divided, tmp_path / "videos")
    assert f"5 new clips, 65 clips in {divided}" in output
    assert f"avarnet manifest split {divided}" in output
    assert as_json("manifest", "split", divided)["kept"] == 60
    after = read(divided)
    assert after[:60] == before
    assert all(clip.split for clip in after)
    assert as_json("manifest", "add", divided, tmp_path / "videos")["added"] == []
    # anew, where that is asked for: with another seed others are held out
    assert as_json("manifest", "split", divided, "--no-keep", "--seed", 1)["kept"] == 0
    assert read(divided)[:60] != before


def test_clips_of_a_table_join_and_those_that_cannot_are_named(
    divided: Path, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    table = tmp_path / "more" / "t.csv"
    table.write_text("id,path,label,split\na/0,0.mp4,a,\nn,n.mp4,b,test\n,../videos/a/2.mp4,a,\n")
    added = as_json("manifest", "add", divided, table, code=3)
    assert added["added"] == ["n"]
    assert added["refused"] == {"more/0.mp4": "its id a/0 is that of videos/a/0.mp4"}
    assert read(divided)[-1] == Clip("n", "more/n.mp4", ("b",), split="test")


def test_a_name_that_a_second_file_makes_longer_is_still_the_same_file(
    divided: Path, tmp_path: Path
) -> None:
    (tmp_path / "videos" / "a" / "0.avi").write_bytes(b"")  # both now have their suffix in the id
    assert as_json("manifest", "add", divided, tmp_path / "videos")["added"] == ["a/0.avi"]


def test_no_split_is_erased_without_force(divided: Path, tmp_path: Path) -> None:
    before = read(divided)
    folders = ("manifest", "folders", tmp_path / "videos", "-o", divided)
    output = " ".join(avarnet(*folders, code=1).split())
    assert f"error: {divided} is divided already, and this would erase the split of 60" in output
    assert "avarnet manifest add" in output
    assert "--force" in output
    other = tmp_path / "other.jsonl"
    avarnet("manifest", "split", divided, "--no-keep", "--seed", 1, "-o", other)
    avarnet("manifest", "split", divided, "-o", other, code=1)
    assert read(divided) == before
    avarnet("manifest", "split", divided, "-o", other, "--force")
    assert read(other) == before
    avarnet(*folders, "--force")
    assert {clip.split for clip in read(divided)} == {None}
    avarnet(*folders)  # which loses nothing
