"""The check for GPUs runs from end to end where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = ("features", "training", "extraction", "epoch", "commands")


def check(found: Path, *words: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--tiny"]
    ran = subprocess.run([*command, "--json", found, *words], check=False, capture_output=True)
    return ran.returncode, json.loads(found.read_text())


def test_all_steps_on_the_cpu(tmp_path: Path) -> None:
    code, steps = check(tmp_path / "gpu.json", "--seconds", "800")
    assert code == 0
    assert {name: steps[name]["ended"] for name in STEPS} == dict.fromkeys(STEPS, "done")
    for name in ("features", "training", "commands"):  # what does not depend on the machine's load
        assert any(row["met"] for row in steps[name]["rows"])
        assert [row for row in steps[name]["rows"] if row["met"] is False] == []


def test_what_was_found_is_kept_where_time_runs_out(tmp_path: Path) -> None:
    words = ("--seconds", "1", "--steps", "epoch", "training")  # importing torch takes longer
    code, steps = check(tmp_path / "gpu.json", *words)
    assert code == 1
    assert steps["epoch"]["ended"] == "stopped after 1 s"
    assert steps["training"]["ended"] == "not begun, as no time was left"
