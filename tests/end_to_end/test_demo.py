"""The demonstration keeps its promise: better than chance on clips held out, and it says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from own_modules import write_own_modules

pytestmark = pytest.mark.slow


def test_demo(tmp_path: Path) -> None:
    write_own_modules(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "avarnet", "demo", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.glob("*.ran"))
    assert done.stdout.strip().splitlines()[-1] == "Report: demo/run/report.html"
    assert "These backbones were random" in " ".join(done.stdout.split())
    assert "RANDOM WEIGHTS" in done.stderr
    metrics = json.loads((tmp_path / "demo" / "run" / "evaluation.json").read_text())
    assert len(metrics["model"]["per_class"]) == 10
    assert metrics["missing_streams"]["audio"] > 0
    # chance is 0.1; the interval's lower end is clear of it
    assert metrics["model"]["accuracy"]["low"] > 0.3
    for name in ("report.html", "model-0.safetensors"):
        assert (tmp_path / "demo" / "run" / name).stat().st_size > 1000
