"""Whole stores: merged, compacted, compared, rid of clips, joined, described."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from small_stores import RECIPE, clip, fill, same

import features.store
from features import (
    FeatureError,
    Features,
    Flag,
    Recipe,
    Shard,
    Store,
    Writer,
    compact,
    diff,
    drop,
    join,
    merge,
    pack,
    verify,
    write_card,
)

CLIPS = {f"class/{number}": clip(4 + number, number + 1) for number in range(8)}


def some(first: int, end: int) -> dict[str, Features]:
    return dict(list(CLIPS.items())[first:end])


def holds(path: Path, clips: dict[str, Features]) -> bool:
    store = Store(path)
    return set(store) == set(clips) and all(same(store[i], clips[i]) for i in clips)


def test_merge(tmp_path: Path) -> None:
    fill(tmp_path / "a", some(0, 5))
    fill(tmp_path / "b", some(3, 8))
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c") == 2
    assert holds(tmp_path / "c", CLIPS)
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c") == 0  # nothing new


def test_merge_tidies_up_after_a_killed_writer(tmp_path: Path) -> None:
    fill(tmp_path / "a", some(0, 5))
    writer = Writer(tmp_path / "c", RECIPE)
    writer.add("class/7", CLIPS["class/7"])
    writer._spool.release()
    merge([tmp_path / "a"], tmp_path / "c")
    assert holds(tmp_path / "c", some(0, 5) | some(7, 8))
    assert not list(tmp_path.glob("c/.*"))


def test_merge_refuses_another_recipe(tmp_path: Path) -> None:
    fill(tmp_path / "a", some(0, 2))
    with Writer(tmp_path / "b", replace(RECIPE, precision="bf16")) as writer:
        writer.add("x", clip(3))
    with pytest.raises(FeatureError, match="precision: bf16, not fp32"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert not (tmp_path / "c").exists()
    with pytest.raises(FeatureError, match="precision"):
        merge([tmp_path / "a"], tmp_path / "b")
    assert set(Store(tmp_path / "b")) == {"x"}


def test_merge_leaves_damage_behind(tmp_path: Path) -> None:
    fill(tmp_path / "a", some(0, 4))
    fill(tmp_path / "b", some(4, 8))
    (shard,) = (tmp_path / "a").glob("*.h5")
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(FeatureError, match=f"not merged: {shard}"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert holds(tmp_path / "c", some(4, 8))


def test_compact(tmp_path: Path) -> None:
    pack(tmp_path, CLIPS.items(), RECIPE, shard_bytes=1)
    pack(tmp_path, some(0, 3).items(), RECIPE)  # duplicates
    reader, late = Store(tmp_path), Store(tmp_path)
    assert len([*reader.values()]) == len(CLIPS)
    assert compact(tmp_path) == (9, 1)
    assert holds(tmp_path, CLIPS)
    assert sum(map(len, Store(tmp_path).shards)) == len(CLIPS)
    assert verify(tmp_path) == (len(CLIPS), [])
    assert all(same(reader[i], CLIPS[i]) for i in CLIPS)  # who has read from it reads on
    with pytest.raises(FeatureError, match="Open it again"):
        late["class/0"]
    before = list(tmp_path.glob("*.h5"))
    assert compact(tmp_path) == (1, 1)
    assert list(tmp_path.glob("*.h5")) == before


def test_a_store_that_is_opened_while_it_is_compacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shards are replaced after they were listed, when the first of them is opened."""
    pack(tmp_path, CLIPS.items(), RECIPE, shard_bytes=1)
    begun = False

    def open_late(path: Path) -> Shard:
        nonlocal begun
        if not begun:
            begun = True
            compact(tmp_path)
        return Shard(path)

    monkeypatch.setattr(features.store, "Shard", open_late)
    assert holds(tmp_path, CLIPS)
    assert Store(tmp_path).unreadable == {}


def test_compact_leaves_full_shards_alone(tmp_path: Path) -> None:
    (full,) = pack(tmp_path, [("long", clip(3000))], RECIPE)
    pack(tmp_path, CLIPS.items(), RECIPE, shard_bytes=1)
    compact(tmp_path, full.stat().st_size)
    assert full in tmp_path.glob("*.h5")
    assert len(list(tmp_path.glob("*.h5"))) == 2


def test_drop(tmp_path: Path) -> None:
    pack(tmp_path, CLIPS.items(), RECIPE, shard_bytes=300)
    untouched = {shard.path for shard in Store(tmp_path).shards if "class/7" not in shard.ids}
    assert drop(tmp_path, ["class/7", "unknown"]) == ["class/7"]
    assert holds(tmp_path, some(0, 7))
    assert untouched <= set(tmp_path.glob("*.h5"))
    assert drop(tmp_path, list(CLIPS)) == list(some(0, 7))
    assert len(Store(tmp_path)) == 0


def test_a_dropped_clip_does_not_come_back_from_its_copy(tmp_path: Path) -> None:
    pack(tmp_path, CLIPS.items(), RECIPE)
    pack(tmp_path, some(2, 4).items(), RECIPE)
    drop(tmp_path, ["class/2"])
    assert "class/2" not in Store(tmp_path)
    assert len(Store(tmp_path)) == 7


def test_diff(tmp_path: Path) -> None:
    fill(tmp_path / "a", some(0, 6))
    fill(tmp_path / "b", {**some(2, 8), "class/4": clip(8, 99)})
    assert diff(tmp_path / "a", tmp_path / "b") == (
        [],
        ["class/0", "class/1"],
        ["class/6", "class/7"],
        ["class/4"],
    )
    pack(tmp_path / "c", some(0, 6).items(), RECIPE, shard_bytes=1)
    assert not any(diff(tmp_path / "a", tmp_path / "c"))  # however they are cut into shards


OPTICAL = Recipe(0.25, "bf16", {"flow": {"features": 4}}, {"flow": {"weights": "pretrained"}})


def optical(length: int, source: str = "") -> Features:
    rows = np.full((length, 4), length, np.float16)
    return Features(
        {"flow": rows}, {"flow": np.ones(length, bool)}, 0.25, length / 4, source=source
    )


def with_flow(path: Path, clips: dict[str, Features], recipe: Recipe = OPTICAL) -> Store:
    with Writer(path, recipe) as writer:
        for clip_id, features in clips.items():
            writer.add(clip_id, features)
    return Store(path)


def test_join(tmp_path: Path) -> None:
    fill(tmp_path / "a", {**some(0, 4), "hurt": clip(4, 0, Flag.SOUND_DAMAGED)})
    other = {"class/1": optical(5), "class/3": optical(9), "hurt": optical(3), "new": optical(2)}
    both = join(Store(tmp_path / "a"), with_flow(tmp_path / "b", other))
    assert list(both) == ["class/1", "class/3", "hurt"]
    assert "new" not in both
    with pytest.raises(KeyError):
        both["new"]
    one = both["class/1"]
    assert one.streams.keys() == {"video", "audio", "flow"}
    assert (one.video == CLIPS["class/1"].video).all()
    assert one.source == CLIPS["class/1"].source
    assert both.recipe.streams["flow"] == {"features": 4, "precision": "bf16"}
    longer = both["class/3"]  # 7 snippets of video, 9 of flow
    assert len(longer) == 9
    assert (longer.valid["video"][:7] == CLIPS["class/3"].valid["video"]).all()
    assert not longer.valid["video"][7:].any()
    assert not longer.video[7:].any()
    assert both["hurt"].flags == Flag.SOUND_DAMAGED
    assert not both["hurt"].valid["flow"][3:].any()


def test_what_cannot_be_joined(tmp_path: Path) -> None:
    fill(tmp_path / "a", some(0, 4))
    a = Store(tmp_path / "a")
    coarse = with_flow(tmp_path / "grid", {}, replace(OPTICAL, snippet_seconds=0.5))
    with pytest.raises(FeatureError, match=r"time grids.*0\.25 s and 0\.5 s"):
        join(a, coarse)
    same_name = replace(OPTICAL, streams={"video": {"features": 4}})
    with pytest.raises(FeatureError, match="both stores have a stream 'video'"):
        join(a, with_flow(tmp_path / "name", {}, same_name))
    swapped = with_flow(tmp_path / "source", {"class/0": optical(4, "ff" * 32)})
    with pytest.raises(FeatureError, match="class/0: the stores read different videos"):
        join(a, swapped)["class/0"]
    stretched = with_flow(tmp_path / "stretched", {"class/0": optical(40)})
    with pytest.raises(FeatureError, match="class/0: its streams have 4 and 40 snippets"):
        join(a, stretched)["class/0"]


def test_card(tmp_path: Path) -> None:
    fill(tmp_path, {**CLIPS, "hurt": clip(4, 0, Flag.SOUND_DAMAGED)})
    text = write_card(tmp_path, dict.fromkeys(CLIPS, "a|b")).read_text()
    assert "Features of 9 clips, 0.3 minutes of video, in steps of 0.25 s (64 snippets)" in text
    assert re.search(r"1 shard, \d+\.\d kB\.", text)
    assert "| a\\|b | 8 |" in text
    assert "**Random weights** (video)" in text
    assert "Sound damaged: 1 of the clips." in text
    code = text.split("```python\n")[1].split("```")[0]
    scope: dict[str, object] = {}
    exec(code.replace(tmp_path.resolve().name, str(tmp_path)), scope)
    assert isinstance(scope["clip"], Features)


@pytest.mark.parametrize("hurt", ["a", "b"])
def test_diff_compares_bytes(tmp_path: Path, hurt: str) -> None:
    """One bit of one clip is flipped; where, HDF5's own library tells."""
    clips = {f"clip {n}": clip(4, n + 1) for n in range(3)}
    for name in ("a", "b"):
        fill(tmp_path / name, clips)
    assert not any(diff(tmp_path / "a", tmp_path / "b"))
    (shard,) = (tmp_path / hurt).glob("*.h5")
    with h5py.File(shard) as file:
        start = file["streams/video/rows"].id.get_offset()
    content = bytearray(shard.read_bytes())
    content[start] ^= 1
    shard.write_bytes(content)
    differing = diff(tmp_path / "a", tmp_path / "b").content
    assert len(differing) == 1
    assert not any(diff(tmp_path / "a", tmp_path / "b", fast=True))
