"""The state and the logs of jobs in Slurm."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

LAST_LINES = 5  # of a job's log, for a message


def states() -> dict[str, str] | None:
    """Return the state of each of the user's jobs that is not over; None without an answer."""
    wanted = "PENDING,CONFIGURING,RUNNING,SUSPENDED"
    listed = _call("squeue", "-h", "-u", str(os.getuid()), "-t", wanted, "-o", "%i %T")
    return None if listed is None else dict(line.split() for line in listed.splitlines())


def log_end(job: str) -> str:
    """Return a sentence with the last lines that a job has printed."""
    log = _log_of(job)
    if log is None:
        return "Its log cannot be found here: look into the log_directory, or for slurm-*.out."
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = "".join(f"  {line}\n" for line in text.splitlines()[-LAST_LINES:])
    return f"The end of its log, {log}:\n{lines}".rstrip()


def _log_of(job: str) -> Path | None:
    """Return the file that a job has printed its errors, or anything, to."""
    about = _call("scontrol", "show", "job", job) or ""
    for name in ("StdErr", "StdOut"):
        found = re.search(rf"^\s*{name}=(.+)$", about, re.MULTILINE)
        path = Path(re.sub("%[jJ]", job, found[1])) if found else None
        if path is not None and path.is_file() and path.stat().st_size:
            return path
    return None


def _call(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
