"""FORMAT.md is true: read and verified by it alone, and nothing in a shard goes unnamed.

Nothing here calls the code that reads or checks tables: what FORMAT.md says must be enough.
"""

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
from small_stores import clip, fill

import features
from features import Flag, Store
from features.recipe import READING_CHANGES

FORMAT = (Path(features.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
CLIPS = {"a": clip(4), "класс/b": clip(9, 3, Flag.SOUND_DAMAGED), "c": clip(1, 2)}
STREAMS = ("video", "audio")
# what the tables of FORMAT.md say: dataset -> (type, shape), attribute -> (type, bytes if fixed)
DATASETS = re.findall(r"^\| `(\w+/[\w/]+)` \| (\w+) \| \(([^|]+)\) \|", FORMAT, re.MULTILINE)
ATTRIBUTES = re.findall(r"^\| `(\w+)` \| text(?:, (\d+) bytes?)? \|", FORMAT, re.MULTILINE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fill(tmp_path, CLIPS)
    (file,) = tmp_path.glob("*.h5")
    return file


def test_six_lines_of_h5py(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = FORMAT.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) == 6
    store = Store(path.parent)
    for clip_id in CLIPS:
        scope: dict[str, Any] = {"path": path, "clip": clip_id}
        exec(code, scope)
        assert scope["video"].dtype == np.float16
        assert np.array_equal(scope["video"], store[clip_id].video)
        assert capsys.readouterr().out == f"{store[clip_id].video}\n"


def fingerprint_of(recipe: dict[str, Any]) -> str:
    decisive = {key: recipe[key] for key in ("precision", "snippet_seconds", "streams")}
    canonical = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def test_checksums_are_as_documented(path: Path) -> None:
    fingerprint, content = path.stem.split("-")
    assert content == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    with h5py.File(path, locking=False) as shard:
        text = shard.attrs["recipe"].decode()
        recipe = json.loads(text)
        assert recipe == json.loads((path.parent / "recipe.json").read_text(encoding="utf-8"))
        stated = (recipe["fingerprint"], shard.attrs["fingerprint"].decode())
        assert {fingerprint, fingerprint_of(recipe), *stated} == {fingerprint}
        names = ("id", "first_row", "rows", "duration", "flags", "source")
        table = {name: shard["clips"][name][:] for name in names}
        digests = {name: shard["streams"][name]["digest"][:] for name in recipe["streams"]}
        tables = b"".join(array.tobytes() for array in (*table.values(), *digests.values()))
        assert shard.attrs["tables"].decode() == xxhash.xxh3_128_hexdigest(text.encode() + tables)
        assert tuple(digests) == STREAMS
        for name, digest in digests.items():
            stream = shard["streams"][name]
            for k, clip_id in enumerate(table["id"].tolist()):  # h5py takes the padding off
                mine = slice(table["first_row"][k], table["first_row"][k] + table["rows"][k])
                header = [table[column][k].tobytes() for column in names[-3:]]
                whole = b"\0".join([clip_id, *header])
                whole += stream["rows"][mine].tobytes() + stream["valid"][mine].tobytes()
                assert digest[k].tobytes() == xxhash.xxh3_128_digest(whole)


def test_a_shard_is_exactly_what_the_tables_say(path: Path) -> None:
    widths = {name: CLIPS["a"].streams[name].shape[1] for name in STREAMS}
    sizes = {"n": len(CLIPS), "N": sum(map(len, CLIPS.values())), "16": 16, "32": 32}
    expected = {
        general.replace("NAME", name): (kind, shape, sizes | {"D": widths[name]})
        for general, kind, shape in DATASETS
        for name in (STREAMS if "NAME" in general else STREAMS[:1])
    }
    offsets: dict[str, int] = {}

    def check(name: str, item: h5py.Group | h5py.Dataset) -> None:
        assert not item.attrs
        if isinstance(item, h5py.Dataset):
            kind, shape, known = expected[name]
            assert item.shape == tuple(known[size] for size in re.findall(r"\w+", shape))
            right = np.dtype(f"S{max(map(len, map(str.encode, CLIPS)))}")
            assert item.dtype == (right if kind == "text" else np.dtype(kind).newbyteorder("<"))
            assert item.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
            offsets[name] = item.id.get_offset()

    with h5py.File(path, locking=False) as shard:
        shard.visititems(check)
        assert (set(shard), set(shard["streams"])) == ({"clips", "streams"}, set(STREAMS))
        assert shard.attrs.keys() == dict(ATTRIBUTES).keys()
        for name, length in ATTRIBUTES:
            attribute = shard.attrs.get_id(name)
            assert (attribute.shape, attribute.dtype.kind) == ((), "S")
            assert attribute.get_type().get_cset() == h5py.h5t.CSET_UTF8
            assert not length or attribute.dtype.itemsize == int(length)
    assert offsets.keys() == expected.keys()
    assert all(offset % 64 == 0 for offset in offsets.values())
    rows = {name for name in offsets if re.fullmatch("streams/.+/rows", name)}
    assert min(offsets[name] for name in rows) > max(offsets[n] for n in offsets.keys() - rows)


def test_the_examples_and_the_flags() -> None:
    ((recipe, fingerprint),) = re.findall(r"`(\{.+\})`\s+has `([0-9a-f]{16})`", FORMAT)
    assert fingerprint_of(json.loads(recipe)) == fingerprint
    ((settings, fingerprint),) = re.findall(
        r"`(\{.+\})` as the stream's .+\s`([0-9a-f]{16})`", FORMAT
    )
    read = {**json.loads(recipe), "streams": {"video": json.loads(settings)}}
    assert fingerprint_of(read) == fingerprint
    readings = re.findall(r"^\| (\d+) \| (.+) \|$", FORMAT, re.MULTILINE)
    assert {int(version): what for version, what in readings} == READING_CHANGES
    assert f", version {features.format.shard_index.VERSION}\n" in FORMAT
    flags = re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", FORMAT, re.MULTILINE)
    assert {name: int(value) for name, value in flags} == {flag.name: flag.value for flag in Flag}
