"""`avarnet search`, from videos to the clip that a text fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from command import as_json, avarnet
from safetensors.torch import save_file
from small_networks import save_clip, save_wav2vec2
from small_stores import clip, fill

from features import Store

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_like_a_clip_and_like_a_moment(tmp_path: Path) -> None:
    store = tmp_path / "store"
    fill(store, {f"[{n}]": clip(8, n + 1) for n in range(12)})
    found = as_json("search", store, "--like", "[3]", "-n", 4)
    assert found["damaged"] == {}
    assert [len(hit) for hit in found["hits"]] == [5, 5, 5, 5]
    assert "[3]" not in {hit["clip"] for hit in found["hits"]}
    whole, figures = first_figures(avarnet("search", store, "--like", "[3]", "-n", 4))
    assert "by the whole clips" in whole
    assert figures == sorted(figures, reverse=True)
    assert found["ordered_by"] == "similarity"
    words = ("search", store, "--like", "[3]@0.5-1.5", "--stream", "video", "-n", 4)
    moments, figures = first_figures(avarnet(*words))
    assert "by their best moments" in moments
    assert figures == sorted(figures, reverse=True)
    found = as_json(*words)
    assert found["ordered_by"] == "moment"
    assert [f"{hit['moment']:.3f}" for hit in found["hits"]] == [f"{f:.3f}" for f in figures]
    best = found["hits"][0]
    assert best["clip"] in moments
    assert best["end"] - best["start"] == 1


def first_figures(table: str) -> tuple[str, list[float]]:
    """Return a table as it was printed, and the column that follows the clips."""
    rows = [line.split("│")[2] for line in table.splitlines() if line.startswith("│")]
    return table, [float(figure) for figure in rows]


def test_damage_is_reported_and_the_rest_is_found(tmp_path: Path) -> None:
    store = tmp_path / "store"
    fill(store, {f"{n}": clip(8, n + 1) for n in range(5)})
    fill(store, {"late": clip(8, 9)})
    shard, _ = Store(store).locate("late")
    with open(shard.path, "r+b") as file:
        file.seek(shard.table.extents["video"].rows_at)
        file.write(b"\x12\x34")
    found = as_json("search", store, "--like", "3", code=3)
    assert {hit["clip"] for hit in found["hits"]} == set("0124")
    assert list(found["damaged"]) == ["late"]
    assert "left out" in avarnet("search", store, "--like", "3", code=3)


def test_a_text(clips: Path, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    save_wav2vec2(tmp_path / "sound")
    weights = tmp_path / "picture.safetensors"
    save_file(timm.create_model("mobilevit_xxs").state_dict(), weights)
    manifest, store = tmp_path / "m.jsonl", tmp_path / "store"
    avarnet("manifest", "folders", clips, "-o", manifest, "--root", clips)
    avarnet(
        *("extract", manifest, store, "--root", clips, "--workers", 1),
        *("--video-model", "mobilevit_xxs", "--video-weights", weights),
        *("--audio-model", tmp_path / "sound", "--stream", f"clip={tmp_path / 'clip'}"),
    )
    found = as_json("search", store, "--text", "a crowd fighting", "-n", 3)["hits"]
    assert len(found) == 3
    assert found != as_json("search", store, "--text", "nothing", "-n", 3)["hits"]
    (tmp_path / "clip").rename(tmp_path / "moved")
    moved = ["--text-model", tmp_path / "moved"]
    again = as_json("search", store, "--text", "a crowd fighting", "-n", 3, *moved)["hits"]
    assert json.dumps(again) == json.dumps(found)
    save_clip(tmp_path / "moved", seed=4)
    assert "SHA-256" in avarnet("search", store, "--text", "a crowd", *moved, code=1)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "give one of --like CLIP and --text WORDS"),
        (["--like", "a", "--text", "b"], 2, "give one of --like CLIP and --text WORDS"),
        (["--like", "clip-9"], 1, "no clip 'clip-9'; did you mean clip-"),
        (["--like", "clip-0@1-9"], 1, "within the clip's 1.50 seconds"),
        (["--like", "clip-0", "--stream", "flow"], 1, "no stream 'flow'; it has video, audio"),
        (["--text", "a crowd"], 1, "'avarnet extract MANIFEST STORE --stream clip'"),
        (["--text", "a crowd", "--stream", "audio"], 1, "audio cannot be compared with texts"),
    ],
)
def test_mistakes(tmp_path: Path, words: list[str], code: int, message: str) -> None:
    fill(tmp_path / "store", {f"clip-{n}": clip(6, n + 1) for n in range(3)})
    output = avarnet("search", tmp_path / "store", *words, code=code)
    assert message in " ".join(output.replace("│", "").split())
