"""Damaged recipes and spool files: refused, or read right; shards are in test_hostile.py."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from damage import damaged_bytes, damaged_json, dumped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory import resident
from small_stores import RECIPE, SIZES, clip, fill, same

from features import FeatureError, Features, Flag, Recipe, Store, read_recipe, recover, verify

pytestmark = pytest.mark.slow
CASES = [300, pytest.param(20_000, marks=pytest.mark.soak)]
MOST_MEMORY = 500 * 2**20  # bytes
FUZZ: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [*HealthCheck],
    "database": None,
    "print_blob": True,
}
LEFT = clip(4, 7)  # what a killed writer left beside the damaged file


def right_fingerprint(recipe: Any) -> str:
    """Return the fingerprint as FORMAT.md defines it; "" if there can be none."""
    try:
        decisive = {
            "snippet_seconds": float(recipe["snippet_seconds"]),
            "precision": recipe["precision"],
            "streams": recipe["streams"],
        }
        text = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    except (ValueError, KeyError, TypeError, ArithmeticError):
        return ""


@st.composite
def recipes(draw: st.DrawFn) -> bytes:
    whole = draw(damaged_json(json.loads(RECIPE.to_json())))
    if draw(st.booleans()):
        whole["fingerprint"] = right_fingerprint(whole)
    return draw(damaged_bytes(dumped(whole)))


@pytest.mark.parametrize("cases", CASES)
def test_damaged_recipes(cases: int, tmp_path: Path) -> None:
    before, outcomes = resident(), {"refused": 0, "read": 0}

    @given(recipes())
    @settings(max_examples=cases, **FUZZ)
    def fuzz(content: bytes) -> None:
        (tmp_path / "recipe.json").write_bytes(content)
        try:
            recipe = read_recipe(tmp_path)
        except FeatureError:
            outcomes["refused"] += 1
            return
        outcomes["read"] += 1
        stated = json.loads(content)
        assert recipe.fingerprint == stated["fingerprint"] == right_fingerprint(stated)
        assert recipe.streams == stated["streams"]
        assert recipe.snippet_seconds == float(stated["snippet_seconds"]) > 0
        widths = [stream["features"] for stream in stated["streams"].values()]
        assert widths
        assert all(type(width) is int and width > 0 for width in widths)
        assert Recipe.from_json(recipe.to_json()) == recipe

    fuzz()
    assert min(outcomes.values()) > cases / 50, outcomes
    assert resident() - before < MOST_MEMORY


def by_hand(content: bytes) -> tuple[str, Features]:
    """Read a spool file by the description of safetensors' format, without its library."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    about = header.pop("__metadata__")
    types = {"F16": "<f2", "BOOL": "?"}

    def array(name: str) -> np.ndarray:
        start, end = (8 + length + at for at in header[name]["data_offsets"])
        values = np.frombuffer(content[start:end], types[header[name]["dtype"]])
        return values.reshape(header[name]["shape"])

    return about["id"], Features(
        {name: array(f"{name}/rows") for name in SIZES},
        {name: array(f"{name}/valid") for name in SIZES},
        float(about["snippet_seconds"]),
        float(about["duration"]),
        Flag(int(about["flags"])),
        about["source"],
    )


def spooled(clip_id: str, features: Features) -> bytes:
    """Return a file of a spool as the writer makes it."""
    arrays = {f"{name}/rows": rows for name, rows in features.streams.items()}
    arrays |= {f"{name}/valid": mask for name, mask in features.valid.items()}
    about = {
        "id": clip_id,
        "snippet_seconds": "0.25",
        "duration": repr(features.duration),
        "flags": "0",
        "source": features.source,
    }
    return safetensors.numpy.save(arrays, about)


PLANTED = spooled("planted", clip(5, 1))
LENGTH = struct.unpack("<Q", PLANTED[:8])[0]
# safetensors writes its entries in any order
HEADER = json.loads(PLANTED[8 : 8 + LENGTH], object_hook=lambda some: dict(sorted(some.items())))
DATA = PLANTED[8 + LENGTH :]


@st.composite
def spool_files(draw: st.DrawFn) -> bytes:
    text = draw(damaged_bytes(dumped(draw(damaged_json(HEADER)))))
    size = draw(st.sampled_from([len(text)] * 6 + [0, 2**40, 2**64 - 1]))
    return struct.pack("<Q", size) + text + draw(damaged_bytes(DATA))


@pytest.mark.parametrize("cases", CASES)
def test_damaged_spool_files(cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # it takes most of the time; no power is cut
    store, spool = tmp_path / "store", tmp_path / "store" / ".spool-0"
    fill(store, {"one": clip(3)})
    sealed = set(store.iterdir())
    before, outcomes = resident(), {"left out": 0, "sealed": 0}

    @given(spool_files())
    @settings(max_examples=cases, **FUZZ)
    def fuzz(content: bytes) -> None:
        spool.mkdir()
        for order, planted in enumerate((content, spooled("left", LEFT))):
            digest = hashlib.sha256(planted).hexdigest()[:16]
            name = f"{RECIPE.fingerprint}-{order:08d}-{digest}.safetensors"
            (spool / name).write_bytes(planted)
        found = set(recover(store))
        opened = Store(store)
        assert opened.keys() == found | {"one", "left"}
        assert verify(store) == (len(opened), [])
        assert same(opened["one"], clip(3))
        assert same(opened["left"], LEFT)
        for clip_id in found - {"left"}:
            stated, features = by_hand(content)
            assert clip_id == stated
            assert same(opened[clip_id], features)
        outcomes["sealed" if len(found) > 1 else "left out"] += 1
        for file in set(store.iterdir()) - sealed:
            file.unlink()

    fuzz()
    assert min(outcomes.values()) > cases / 50, outcomes
    assert resident() - before < MOST_MEMORY
