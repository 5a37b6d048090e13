"""Search finds what a plain computation over all rows finds, and its cache is never believed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_stores import RECIPE, clip, fill

from features import FeatureError, Features, Recipe, Searcher, Store, join, pack, search

STREAMS = ("video", "audio")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


class Found(NamedTuple):
    """What the plain computation says of a clip."""

    whole: float
    moments: list[float]  # from the first to the last that fits


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    length = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / length) if length else np.nan


def plainly(clips: dict[str, Features], query: str, part: slice) -> dict[str, Found]:
    """Compare everything with a part of a clip, one row after the other, in float64."""
    asked = range(len(clips[query]))[part]
    by_clip: dict[str, list[list[float]]] = {name: [] for name in clips if name != query}
    for stream in STREAMS:

        def mean(name: str, steps: range, stream: str = stream) -> np.ndarray | None:
            real = [t for t in steps if clips[name].valid[stream][t]]
            rows = clips[name].streams[stream].astype(float)
            return sum(rows[t] for t in real) / len(real) if real else None

        means = [mean(name, range(len(clips[name]))) for name in clips]
        known = np.array([one for one in means if one is not None])
        wanted = mean(query, asked)
        if wanted is None:
            continue
        centre, deviation = known.mean(0), known.std(0)
        changes = deviation > 1e-6  # not so if only one clip has the stream
        scale = changes / np.where(changes, deviation, 1)
        for name, similarities in by_clip.items():
            length = min(len(asked), len(clips[name]))
            starts = range(len(clips[name]) - length + 1)
            parts = [range(len(clips[name])), *(range(s, s + length) for s in starts)]
            vectors = [mean(name, steps) for steps in parts]
            z = [None if v is None else (v - centre) * scale for v in vectors]
            place = (wanted - centre) * scale
            similarities.append([np.nan if v is None else cosine(v, place) for v in z])
    found = {}
    for name, by_stream in by_clip.items():
        together = [
            np.mean([s for s in some if s == s]) if any(s == s for s in some) else -1.0
            for some in zip(*by_stream, strict=True)
        ]
        if any(similarities[0] == similarities[0] for similarities in by_stream):
            found[name] = Found(float(together[0]), [float(m) for m in together[1:]])
    return found


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 10**6)), min_size=3, max_size=8),
    st.integers(1, 400),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_the_ranking_is_that_of_the_plain_computation(
    tmp_path_factory: pytest.TempPathFactory,
    some: list[tuple[int, int]],
    shard_bytes: int,
    moment: bool,
) -> None:
    clips = {f"clip@{n}-1": clip(length, seed + n) for n, (length, seed) in enumerate(some)}
    query = "clip@0-1"
    clips[query].valid["video"][0] = True  # else there may be nothing to ask for
    clips["clip@1-1"].valid["video"][0] = clips["clip@2-1"].valid["video"][0] = True
    part = slice(0, (len(clips[query]) + 1) // 2) if moment else slice(None)
    path = tmp_path_factory.mktemp("store")
    pack(path, clips.items(), RECIPE, shard_bytes)
    text = f"{query}@0-{part.stop / 4}" if moment else query
    hits = search(Store(path), text, n=len(clips))
    wanted = plainly(clips, query, part)
    assert {hit.clip for hit in hits} == wanted.keys()
    key = [hit.moment if moment else hit.similarity for hit in hits]
    assert key == sorted(key, reverse=True)
    for hit in hits:
        expected = wanted[hit.clip]
        assert hit.similarity == pytest.approx(expected.whole, abs=1e-3)
        assert hit.moment == pytest.approx(max(expected.moments), abs=1e-3)
        first = int(hit.start * 4)
        assert expected.moments[first] == pytest.approx(hit.moment, abs=1e-3)
        length = min(len(range(len(clips[query]))[part]), len(clips[hit.clip]))
        assert hit.end - hit.start == length / 4


def test_the_store_stays_nothing_but_shards_and_recipe(tmp_path: Path, cache: Path) -> None:
    fill(tmp_path, {name: clip(5, n) for n, name in enumerate("abcdef")})
    before = sorted(tmp_path.iterdir())
    search(Store(tmp_path), "a")
    assert sorted(tmp_path.iterdir()) == before
    assert len(list((cache / "avarnet" / "means").iterdir())) == len(STREAMS)


def test_means_are_made_once_and_again_for_new_shards_only(tmp_path: Path) -> None:
    clips = {name: clip(5, n) for n, name in enumerate("abcdef")}
    fill(tmp_path, clips)
    progress: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        progress.append((done, total))

    Searcher(Store(tmp_path), note)
    Searcher(Store(tmp_path), note)
    assert progress == [(6, 6)]
    fill(tmp_path, {"g": clip(5, 7)})
    Searcher(Store(tmp_path), note)
    assert progress == [(6, 6), (1, 1)]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone", "longer"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, cache: Path, damage: str) -> None:
    fill(tmp_path, {name: clip(5, n) for n, name in enumerate("abcdef")})
    right = search(Store(tmp_path), "a")
    file = next((cache / "avarnet" / "means").iterdir())
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        flipped = bytes([content[0] ^ 1]) + content[1:]
        bad = {"cut": content[:-1], "flipped": flipped, "empty": b"", "longer": content + b"\0"}
        file.write_bytes(bad[damage])
    assert search(Store(tmp_path), "a") == right
    assert file.read_bytes() == content


def test_a_cache_that_cannot_be_written_to(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, {name: clip(5, n) for n, name in enumerate("abcdef")})
    right = search(Store(tmp_path), "a")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # also for root, no folder
    assert search(Store(tmp_path), "a") == right


def test_a_shard_under_another_shards_name_has_its_own_means(tmp_path: Path) -> None:
    """A name can be anything; what is kept goes by what is in the shard."""
    for folder, seed in (("one", 0), ("two", 50)):
        fill(tmp_path / folder, {name: clip(5, seed + n) for n, name in enumerate("abcdef")})
        (shard,) = (tmp_path / folder).glob("*.h5")
        shard.rename(tmp_path / folder / "x.h5")
    one, two = (search(Store(tmp_path / folder), "a") for folder in ("one", "two"))
    assert [hit.similarity for hit in one] != [hit.similarity for hit in two]


def test_a_moment_is_found_where_it_was_put(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    recipe = Recipe(0.25, "fp32", {"video": {"features": 16}})
    event = 8 * rng.normal(size=(4, 16))
    clips = {}
    for number in range(20):
        rows = rng.normal(size=(40, 16))
        if number in (3, 11):
            rows[number : number + 4] = event
        valid = {"video": np.ones(40, bool)}
        clips[f"c{number}"] = Features({"video": rows.astype(np.float16)}, valid, 0.25, 10.0)
    pack(tmp_path, clips.items(), recipe)
    best = search(Store(tmp_path), "c3@0.75-1.75", n=1)
    assert [(hit.clip, hit.start, hit.end) for hit in best] == [("c11", 2.75, 3.75)]
    assert best[0].moment > 0.99


def test_a_value_that_never_changes_and_one_that_is_no_number_decide_nothing(
    tmp_path: Path,
) -> None:
    clips = {name: clip(5, n + 1) for n, name in enumerate("abcdef")}
    for features in clips.values():
        features.valid["video"][:] = True
    fill(tmp_path / "plain", clips)
    (tmp_path / "more").mkdir()
    recipe = Recipe(0.25, "fp32", {"video": {"features": 4}})
    wider = {
        name: Features(
            {"video": np.hstack([f.video, np.full((5, 1), np.float16(0.1))])},
            {"video": f.video_valid},
            0.25,
            1.25,
        )
        for name, f in clips.items()
    }
    broken = Features({"video": np.full((5, 4), np.inf, np.float16)}, wider["a"].valid, 0.25, 1.25)
    pack(tmp_path / "more", {**wider, "broken": broken}.items(), recipe)
    plain = search(Store(tmp_path / "plain"), "a", ["video"])
    more = search(Store(tmp_path / "more"), "a")
    assert [hit.clip for hit in more] == [hit.clip for hit in plain]
    assert [h.similarity for h in more] == pytest.approx([h.similarity for h in plain], abs=1e-4)
    with pytest.raises(FeatureError, match="nothing valid in video"):
        search(Store(tmp_path / "more"), "broken")


@pytest.mark.parametrize("kept", [True, False])
def test_a_damaged_clip_is_reported_and_the_others_are_found(tmp_path: Path, kept: bool) -> None:
    fill(tmp_path, {name: clip(5, n + 1) for n, name in enumerate("abcdef")})
    if kept:
        Searcher(Store(tmp_path))
    shard, index = Store(tmp_path).locate("c")
    extent = shard.table.extents["video"]
    with open(shard.path, "r+b") as file:
        file.seek(extent.rows_at + 2 * extent.features * int(shard.table.first_row[index]))
        file.write(b"\x12\x34")
    for _ in range(2):
        searcher = Searcher(Store(tmp_path))
        assert {hit.clip for hit in searcher.like("a")} == set("bdef")
        assert searcher.damaged.keys() == {"c"}
        assert "avarnet features verify" in searcher.damaged["c"]


def test_joined_stores_are_compared_in_all_streams(tmp_path: Path) -> None:
    clips = {name: clip(6, n + 1) for n, name in enumerate("abcdef")}
    fill(tmp_path / "both", clips)
    for stream in STREAMS:
        recipe = Recipe(0.25, "fp32", {stream: RECIPE.streams[stream]})
        rows = {
            # each store has its own order
            name: Features({stream: f.streams[stream]}, {stream: f.valid[stream]}, 0.25, 1.5)
            for name, f in sorted(clips.items(), reverse=stream == "audio")
        }
        pack(tmp_path / stream, rows.items(), recipe, shard_bytes=20)
    joined = join(*(Store(tmp_path / stream) for stream in STREAMS))
    for query in ("b", "b@0-0.75"):
        assert [h.clip for h in search(joined, query)] == [
            h.clip for h in search(Store(tmp_path / "both"), query)
        ]


def test_the_nearest_rows_to_a_vector(tmp_path: Path) -> None:
    """As texts are compared: the plain cosine, with the best moment."""
    clips = {name: clip(9, n + 1) for n, name in enumerate("abcdef")}
    fill(tmp_path, clips)
    vector = np.array([1.0, -2.0, 0.5])
    hits = Searcher(Store(tmp_path)).nearest("video", vector, seconds=0.25, n=6)
    for hit in hits:
        rows = clips[hit.clip].video[clips[hit.clip].video_valid].astype(float)
        assert hit.moment == pytest.approx(max(cosine(row, vector) for row in rows), abs=1e-3)
        assert hit.similarity == pytest.approx(cosine(rows.mean(0), vector), abs=1e-3)
    assert [hit.moment for hit in hits] == sorted((hit.moment for hit in hits), reverse=True)


@pytest.mark.parametrize(
    ("query", "streams", "message"),
    [
        ("fight/1a", None, r"no clip 'fight/1a'; did you mean fight/1"),
        ("nothing like it at all", None, "avarnet features list"),
        ("fight/1@", None, r"expected CLIP@START-END in seconds, such as fight/1@0-2.5"),
        ("fight/1@one-two", None, "expected CLIP@START-END"),
        ("fight/1@2-1", None, "START before its END"),
        ("fight/1@0-1.6", None, "within the clip's 1.50 seconds"),
        ("fight/1", ["flow"], "no stream 'flow'; it has video, audio"),
        ("silent", ["audio"], "nothing valid in audio"),
    ],
)
def test_mistakes(tmp_path: Path, query: str, streams: list[str] | None, message: str) -> None:
    silent = clip(6, 3)
    silent.valid["audio"][:] = False
    fill(tmp_path, {"fight/1": clip(6, 1), "b": clip(6, 2), "silent": silent})
    with pytest.raises(FeatureError, match=message):
        search(Store(tmp_path), query, streams)


@given(st.integers(2, 9), st.integers(0, 2**32 - 1), st.floats(-1, 1))
@settings(max_examples=60)
def test_pairs_of_two_sides_are_those_of_a_plain_computation(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int, least: float
) -> None:
    rng = np.random.default_rng(seed)
    clips = {f"c{n}": clip(int(rng.integers(1, 5)), seed + n) for n in range(count)}
    pack(path := tmp_path_factory.mktemp("store"), clips.items(), RECIPE)
    sides = {i: ["train", "test", "val"][rng.integers(3)] for i in clips if rng.random() < 0.8}
    found = {
        frozenset(pair[:2]): pair.similarity
        for pair in Searcher(Store(path)).near_duplicates(sides, least)
    }
    expected = {
        frozenset((one, other)): own.whole
        for one in sides
        if any(clips[one].valid[stream].any() for stream in STREAMS)
        for other, own in plainly(clips, one, slice(None)).items()
        if other in sides and sides[one] != sides[other] and own.whole >= least - 1e-4
    }
    unsure = {pair for pair, whole in expected.items() if abs(whole - least) < 1e-4}
    assert expected.keys() - unsure <= found.keys() <= expected.keys()
    for pair, similarity in found.items():
        assert similarity == pytest.approx(expected[pair], abs=1e-3)
