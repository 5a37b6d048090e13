"""What is damaged in a store is fetched again from a copy of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_stores import RECIPE, clip, same

from features import FeatureError, Recipe, Store, create, pack, pull, pull_repair, verify

CLIPS = {f"clip-{number}": clip(4 + number, number) for number in range(12)}


@pytest.fixture
def team(tmp_path: Path) -> Path:
    assert len(pack(tmp_path / "team", CLIPS.items(), RECIPE, 250)) > 3
    return tmp_path / "team"


def hurt(shard: Path, clip_id: str | None = None, keep: int | None = None) -> None:
    """Change a bit of a clip, or keep only the beginning of the shard."""
    content = bytearray(shard.read_bytes())
    if clip_id:
        content[content.index(CLIPS[clip_id].video.tobytes())] ^= 1
    shard.write_bytes(content[:keep])


def whole(store: Path, ids: set[str]) -> bool:
    opened = Store(store)
    return (
        verify(store) == (len(ids), [])
        and set(opened) == ids
        and all(same(opened[clip_id], CLIPS[clip_id]) for clip_id in ids)
    )


def test_damaged_shards_are_replaced(team: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    pull(str(team), mine)
    first, second, third, *_ = sorted(mine.glob("*.h5"))
    sizes = {shard: shard.stat().st_size for shard in (first, second, third)}
    hurt(first, Store(mine).shards[-1].ids[0])
    hurt(second, keep=100)
    third.write_bytes(b"")
    names = {shard.name for shard in mine.glob("*.h5")}
    transfer = pull_repair(str(team), mine)
    assert set(transfer.shards) == {first.name, second.name, third.name}
    assert transfer.nbytes == sum(sizes.values())
    assert transfer.already == len(names) - 3
    assert whole(mine, set(CLIPS))
    assert {shard.name for shard in mine.iterdir()} == {*names, "recipe.json"}
    assert pull_repair(str(team), mine).shards == []


def test_nothing_else_is_fetched(team: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    pull(str(team), mine, ["clip-1"])
    (shard,) = mine.glob("*.h5")
    before = set(Store(mine))
    hurt(shard, "clip-1")
    assert pull_repair(str(team), mine).shards == [shard.name]
    assert whole(mine, before)


def test_the_clips_of_a_missing_shard_are_fetched(team: Path, tmp_path: Path) -> None:
    mine, ids = tmp_path / "mine", {"clip-1", "clip-5", "clip-11"}
    pull(str(team), mine, ids, trim=True)
    (shard,) = mine.glob("*.h5")
    hurt(shard, "clip-5")
    transfer = pull_repair(str(team), mine)
    assert (transfer.shards, transfer.clips, transfer.missing) == ([], ["clip-5"], [])
    assert whole(mine, ids)


def test_a_clip_that_is_missing_from_both_is_named(team: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    pack(mine, CLIPS.items(), RECIPE)
    for shard in Store(team).shards:
        if "clip-5" in shard.ids:
            shard.path.unlink()
            gone = set(shard.ids)
    (shard,) = mine.glob("*.h5")
    hurt(shard, "clip-5")
    assert pull_repair(str(team), mine).missing == ["clip-5"]
    assert "clip-5" in gone
    assert whole(mine, CLIPS.keys() - {"clip-5"})


def test_unknown_clips_are_reported(team: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    pull(str(team), mine)
    replaced = sorted(mine.glob("*.h5"))[0]
    hurt(replaced, keep=100)
    (own,) = pack(mine, [("own", clip(5))], RECIPE)
    hurt(own, keep=100)
    with pytest.raises(FeatureError, match=f"which clips {own.name} had is unknown.*features pull"):
        pull_repair(str(team), mine)
    assert whole(mine, set(CLIPS))  # the rest is repaired all the same


def test_a_copy_of_another_recipe_is_refused(team: Path, tmp_path: Path) -> None:
    create(tmp_path / "other", Recipe(0.5, "fp32", RECIPE.streams))
    hurt(sorted(team.glob("*.h5"))[0], keep=100)
    with pytest.raises(FeatureError, match="another recipe"):
        pull_repair(str(tmp_path / "other"), team)


def test_a_copy_that_is_damaged_as_well_changes_nothing(team: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    pull(str(team), mine)
    shard = sorted(mine.glob("*.h5"))[0]
    for store in (team, mine):
        hurt(store / shard.name, Store(store).shards[-1].ids[0])
    before = shard.read_bytes()
    with pytest.raises(FeatureError, match=f"{shard.name}.*damaged at the source"):
        pull_repair(str(team), mine)
    assert shard.read_bytes() == before
