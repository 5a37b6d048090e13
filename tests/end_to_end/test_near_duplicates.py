"""`manifest check --store`: a clip that is encoded again and cut is found on the other side."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import as_json, avarnet
from films import ffmpeg

from extract import Extractor
from features import Recipe, Store, pack, search
from manifests import Clip, from_folders, write

pytestmark = pytest.mark.slow


def test_a_clip_that_is_encoded_again_is_found(clips: Path, recipe: Recipe, tmp_path: Path) -> None:
    again = tmp_path / "again.mp4"
    harder = ("-crf", "28", "-c:a", "aac", "-b:a", "48k")
    ffmpeg("-ss", "0.1", "-i", clips / "Police siren" / "1.mp4", *harder, again)
    listed = from_folders(clips, tmp_path).clips
    files = {clip.id: clip.resolve(tmp_path) for clip in listed} | {"again": again}
    with closing(Extractor(recipe)) as extractor:
        rows = {clip_id: extractor(file) for clip_id, file in files.items()}
    pack(tmp_path / "store", rows.items(), recipe)
    sides = [replace(clip, split="train") for clip in listed]
    new = Clip("again", "again.mp4", ("Police siren",), split="test")
    without_side = replace(new, id="later", split=None)
    write(tmp_path / "m.jsonl", [*sides, new, without_side])

    def check(*words: object, code: int = 0) -> list[dict[str, Any]]:
        found = as_json("manifest", "check", tmp_path / "m.jsonl", *words, code=code)
        return [one for one in found["findings"] if one["kind"] == "near-duplicate"]

    assert check() == []
    (pair,) = check("--store", tmp_path / "store")
    assert {pair["clip"]} | {i for i in files if f"as {i} on" in pair["problem"]} == {
        "again",
        "Police siren/1",
    }
    similarity = float(pair["problem"].rpartition(" ")[2])
    (hit,) = search(Store(tmp_path / "store"), "again", n=1)
    assert similarity == pytest.approx(hit.similarity, abs=1e-3)
    assert hit.clip == "Police siren/1"
    output = avarnet("manifest", "check", tmp_path / "m.jsonl", "--store", tmp_path / "store")
    assert "compared: 13 clips\nnot compared, without a side or readable features: 1" in output
    write(tmp_path / "m.jsonl", [*sides, replace(new, split="train")])
    assert check("--store", tmp_path / "store") == []  # on one side it leaks nothing
