"""The command line as a user runs it: in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def avarnet(*words: object, cwd: Path | None = None, code: int = 0) -> str:
    """Run a command, check its exit code, and return its standard output."""
    command = [sys.executable, "-m", "avarnet", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout if code in (0, 3) or done.stdout else done.stderr


def as_json(*words: object, code: int = 0) -> Any:
    return json.loads(avarnet(*words, "--json", code=code))
