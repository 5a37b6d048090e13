"""A run of the tests always ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

STUCK = """
import threading

def wait_for_ever():
    threading.Event().wait()

def test_that_leaves_a_thread_which_is_joined():
    threading.Thread(target=wait_for_ever, name="stuck").start()
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 2])
def test_a_stuck_thread_is_shown_and_ended(tmp_path: Path, processes: int) -> None:
    (tmp_path / "test_stuck.py").write_text(STUCK)
    limits = {"AVARNET_TEST_SECONDS": "8", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(tmp_path)]
    command += ["-p", "conftest", "-p", "no:cacheprovider", "-n", str(processes)]
    done = subprocess.run(
        [*command, str(tmp_path)], env=os.environ | limits, capture_output=True, text=True
    )
    assert "failed" not in done.stdout
    assert "in wait_for_ever" in done.stderr
    assert done.returncode != 0
