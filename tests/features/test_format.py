"""FORMAT.md is true: read and verified by it alone, and nothing in a shard goes unnamed."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash
from small import clip, fill

import features
from features import Flag, Store

FORMAT = (Path(features.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
CLIPS = {
    "a": clip(4),
    "класс/b": clip(9, 3, Flag.SOUND_DAMAGED),
    "c": clip(1, 2),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fill(tmp_path, CLIPS)
    (file,) = tmp_path.glob("*.h5")
    return file


def test_six_lines_of_h5py(path: Path) -> None:
    code = FORMAT.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) == 6
    scope: dict[str, Any] = {"path": path}
    exec(code, scope)
    store = Store(path.parent)
    assert scope["video"].keys() == CLIPS.keys()
    for clip_id in CLIPS:
        assert (scope["video"][clip_id] == store[clip_id].video).all()
        assert (scope["valid"][clip_id] == store[clip_id].video_valid).all()


def test_checksums_are_what_it_says(path: Path) -> None:
    fingerprint, content = path.stem.split("-")
    assert content == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    with h5py.File(path, locking=False) as shard:
        recipe_text = shard.attrs["recipe"].decode()
        recipe = json.loads(recipe_text)
        decisive = {key: recipe[key] for key in ("precision", "snippet_seconds", "streams")}
        canonical = json.dumps(decisive, sort_keys=True, separators=(",", ":")).encode()
        assert hashlib.sha256(canonical).hexdigest()[:16] == fingerprint == recipe["fingerprint"]
        assert shard.attrs["fingerprint"].decode() == fingerprint
        assert json.loads((path.parent / "recipe.json").read_text()) == recipe
        names = ("id", "first_row", "rows", "duration", "flags", "source")
        table = {name: shard["clips"][name][:] for name in names}
        digests = {name: shard["streams"][name]["digest"][:] for name in recipe["streams"]}
        text = recipe_text.encode() + b"".join(
            array.tobytes() for array in (*table.values(), *digests.values())
        )
        assert shard.attrs["tables"].decode() == xxhash.xxh3_128_hexdigest(text)
        for name, stream in shard["streams"].items():
            for k, clip_id in enumerate(table["id"]):
                inside = slice(table["first_row"][k], table["first_row"][k] + table["rows"][k])
                header = [table[c][k].tobytes() for c in ("duration", "flags", "source")]
                whole = b"\0".join([clip_id, *header])
                whole += stream["rows"][inside].tobytes() + stream["valid"][inside].tobytes()
                assert digests[name][k].tobytes() == xxhash.xxh3_128_digest(whole)


def test_every_part_of_a_shard_is_in_it(path: Path) -> None:
    rows = re.findall(r"^\| `([\w/]+)` \| ([^|]+) \| (?:\(([^|]+)\) \| )?", FORMAT, re.MULTILINE)
    written = {name: (kind, shape) for name, kind, shape in rows}
    sizes = {"n": len(CLIPS), "N": sum(map(len, CLIPS.values())), "32": 32, "16": 16}
    found = set()

    def check(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        stream = name.split("/")[1] if name.startswith("streams/") else ""
        general = name.replace(f"streams/{stream}/", "streams/NAME/") if stream else name
        found.add(general)
        kind, shape = written[general]
        expected = [
            item.shape[1] if size == "D" else sizes[size]
            for size in shape.replace(" ", "").split(",")
            if size
        ]
        assert list(item.shape) == expected
        assert item.dtype.kind == "S" if "text" in kind else item.dtype == np.dtype(kind.strip())
        assert item.dtype.byteorder in "<|="
        assert item.chunks is None
        assert item.compression is None
        assert item.id.get_offset() % 64 == 0

    with h5py.File(path, locking=False) as shard:
        shard.visititems(check)
        assert all(f"| `{name}` |" in FORMAT for name in shard.attrs)
        assert all(value.dtype.kind == "S" for value in map(np.asarray, shard.attrs.values()))
    assert found == {name for name in written if "/" in name}


def test_the_flags_and_the_version() -> None:
    assert [flag.value for flag in Flag] == [1, 2]
    assert f"version {features.table.VERSION}\n" in FORMAT
