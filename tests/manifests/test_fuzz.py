"""Damaged manifests: refused with the line, or read right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from damage import damaged_bytes, damaged_json, dumped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory import resident

from manifests import ManifestError, read

pytestmark = pytest.mark.slow
MOST_MEMORY = 500 * 2**20  # bytes
LINE: dict[str, Any] = {
    "id": "crash/001",
    "path": "crash/001.mp4",
    "labels": ["crash", "fire"],
    "intervals": [[1.0, 2.5], [4, 5]],
    "split": "train",
    "group": "camera 1",
    "duration": 9.5,
    "fps": 25.0,
    "audio": "crash/001.wav",
}
SOUND = {"id": "two", "path": "two.mp4", "labels": ["Normal"], "intervals": []}


@st.composite
def manifests(draw: st.DrawFn) -> bytes:
    first = draw(damaged_bytes(dumped(draw(damaged_json(LINE)))))
    return first + draw(st.sampled_from([b"\n", b"\n", b"\n\n", b"\r\n", b""])) + dumped(SOUND)


@pytest.mark.parametrize("cases", [300, pytest.param(20_000, marks=pytest.mark.soak)])
def test_damaged_manifests(cases: int, tmp_path: Path) -> None:
    before, outcomes, file = resident(), {"refused": 0, "read": 0}, tmp_path / "m.jsonl"

    @given(manifests())
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[*HealthCheck],
    )
    def fuzz(content: bytes) -> None:
        file.write_bytes(content)
        try:
            clips = read(file)
        except ManifestError:
            outcomes["refused"] += 1
            return
        outcomes["read"] += 1
        lines = [line for line in content.split(b"\n") if line.strip()]
        stated = [json.loads(line.decode("utf-8-sig")) for line in lines]
        assert len(clips) == len(stated)
        for clip, fields in zip(clips, stated, strict=True):
            assert json.loads(json.dumps(clip.to_json())) == {
                k: v for k, v in fields.items() if v is not None
            }

    fuzz()
    assert min(outcomes.values()) > cases / 50, outcomes
    assert resident() - before < MOST_MEMORY
