"""The command line as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from avarnet import main


def avarnet(*words: object, cwd: Path | None = None, code: int = 0) -> str:
    """Run a command, check its exit code, and return its standard output.

    It runs in this process, where the networks' libraries are imported once for all commands: in
    one of its own, most of the time would go into that. See `in_a_process`.
    """
    out, err = StringIO(), StringIO()
    with (
        patch("sys.argv", ["avarnet", *map(str, words)]),
        chdir(cwd or Path.cwd()),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
            ended: Any = 0
        except SystemExit as end:
            ended = end.code or 0
    return _checked(ended, out.getvalue(), err.getvalue(), code)


def in_a_process(*words: object, code: int = 0) -> str:
    """Do the same in a process of its own, which the environment decides about."""
    command = [sys.executable, "-m", "avarnet", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return _checked(done.returncode, done.stdout, done.stderr, code)


def as_json(*words: object, code: int = 0) -> Any:
    return json.loads(avarnet(*words, "--json", code=code))


def _checked(ended: int, out: str, err: str, code: int) -> str:
    assert ended == code, out + err
    assert "Traceback" not in out + err
    return out if code in (0, 3) or out else err
