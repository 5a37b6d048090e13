"""The command line as a user runs it."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from avarnet import main

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PLAIN = {
    key: value
    for key, value in os.environ.items()
    if key not in ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS")
}


def avarnet(*words: object, cwd: Path | None = None, code: int = 0) -> str:
    """Run a command, check its exit code, and return its standard output.

    It runs in this process, where the networks' libraries are imported once for all commands: in
    one of its own, most of the time would go into that. See `in_a_process`.
    """
    out, err = StringIO(), StringIO()
    with (
        patch("sys.argv", ["avarnet", *map(str, words)]),
        patch.dict(os.environ),
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


def as_a_user(*words: object, code: int = 0) -> str:
    """Do the same as a user for whom closed files are closed, which root is not."""
    root = os.geteuid() == 0
    if root and not shutil.which("setpriv"):
        pytest.skip("root needs setpriv to be as other users are")
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if root else []
    command = [*drop, sys.executable, "-m", "avarnet", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return _checked(done.returncode, done.stdout, done.stderr, code)


def at_a_terminal(*words: object, **environment: str) -> str:
    """Run a command under a pseudo-terminal, and return all that it wrote there."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "avarnet", *map(str, words)]
    environment = PLAIN | {"TERM": "xterm-256color", "COLUMNS": "100"} | environment
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        output = b""
        try:
            while some := os.read(ours, 65536):
                output += some
        except OSError:  # what the end of a terminal is on Linux
            pass
    os.close(ours)
    return output.decode()


def drawn(output: str) -> list[str]:
    """Return what was written at a terminal from one beginning of a line to the next."""
    return re.split(r"[\r\n]+", CONTROL.sub("", output))


def as_json(*words: object, code: int = 0) -> Any:
    return json.loads(avarnet(*words, "--json", code=code))


def _checked(ended: int, out: str, err: str, code: int) -> str:
    assert ended == code, out + err
    assert "Traceback" not in out + err
    return out if code in (0, 3) or out else err
