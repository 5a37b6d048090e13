"""Does a GPU give what the CPU gives, in both stages, and how fast?

It needs no network, and of the packages only what a machine for PyTorch usually lacks
(`make gpu-wheels` gathers them); README.md beside it has the two commands. What matters most comes
first. Each step is a process of its own with a time limit: one that fails or hangs does not keep
the others from being run, and what it has found until then is kept. After each step its table is
printed and the JSON file is written anew.

features    rows on the GPU against those on the CPU: alone, in a batch, in windows of sound
training    gradients, a resumed run, stacked models, and what is reached, against the CPU
extraction  decoding alone, networks alone, and the pipeline, with 1, 4 and 12 reading processes
epoch       3,000 clips of 20 to 480 snippets, beside the CPU's epoch
commands    extract, train, evaluate and predict as a user types them; a GPU that is full, or absent

Networks have random weights: they cost the same, and differ more between devices than networks
that have learned. `--efficientnet` gives one that has.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path[0] = str(Path(__file__).parents[1])  # a script beside this one has the name of a package

from benchmarks.gpu_steps import Findings, Options  # noqa: E402

SECONDS = {"features": 110, "training": 80, "extraction": 170, "epoch": 80, "commands": 120}
LAST_LINES = 25  # of what a step printed that failed


def main() -> None:
    """Run each step in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small: to try this script")
    parser.add_argument("--efficientnet", type=Path, help="weights of EfficientNet-Lite0")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="what was found")
    parser.add_argument("--steps", nargs="+", choices=SECONDS, default=list(SECONDS))
    parser.add_argument("--seconds", type=float, default=400, help="for all steps together")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a step's own process
    asked = parser.parse_args()
    if asked.folder:
        step = importlib.import_module(f"benchmarks.gpu_steps.{asked.steps[0]}")
        options = Options(torch.device(asked.device), asked.tiny, asked.efficientnet, asked.folder)
        step.run(options, Findings(asked.json))
        return
    found: dict[str, Any] = {"machine": machine(asked.device)}
    console = Console(width=110)
    console.print(" · ".join(f"{what}: {value}" for what, value in found["machine"].items()))
    until = time.monotonic() + asked.seconds
    for name in asked.steps:
        left = until - time.monotonic()
        found[name] = in_a_process(name, left if asked.tiny else min(SECONDS[name], left), asked)
        console.print(table(name, found[name]))
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    steps = {name: found[name] for name in asked.steps}
    unfinished = [name for name, step in steps.items() if step["ended"] != "done"]
    missed = [
        f"{name}: {row['what'].strip()}"
        for name, step in steps.items()
        for row in step["rows"]
        if row["met"] is False
    ]
    print(f"steps not finished: {', '.join(unfinished) or 'none'}")
    print("goals missed:", *(missed or ["none"]), sep="\n  ")
    sys.exit(bool(unfinished))


def machine(device: str) -> dict[str, str]:
    """Return what the figures are taken on."""
    about = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": str(len(os.sched_getaffinity(0))),
        "device": device,
    }
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        ran = subprocess.run(query, capture_output=True, text=True, check=True)
        about["gpu"] = ran.stdout.strip()
    return about


def in_a_process(name: str, limit: float, asked: argparse.Namespace) -> dict[str, Any]:
    """Run one step; return its rows, how it ended, and its seconds."""
    if limit <= 0:
        return {"rows": [], "ended": "not begun, as no time was left", "seconds": 0.0}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder) / "rows.jsonl", Path(folder) / "log"
        command = [sys.executable, __file__, "--steps", name, "--device", asked.device]
        command += ["--json", str(rows), "--folder", folder, *["--tiny"] * asked.tiny]
        if asked.efficientnet:
            command += ["--efficientnet", str(asked.efficientnet.resolve())]
        with open(log, "wb") as file:
            child = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
            try:
                code = child.wait(limit)
                ended = "done" if code == 0 else f"failed ({code})"
            except subprocess.TimeoutExpired:
                ended = f"stopped after {limit:.0f} s"
            with suppress(ProcessLookupError):  # and what it has started
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        output = log.read_text(errors="replace").splitlines()
        print(*output[-LAST_LINES:] if ended != "done" else output, sep="\n")
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    seconds = round(time.monotonic() - began, 1)
    return {"rows": [json.loads(line) for line in lines], "ended": ended, "seconds": seconds}


def table(name: str, found: dict[str, Any]) -> Table:
    """Return a step's table."""
    drawn = Table(title=f"{name}: {found['ended']}, {found['seconds']:.0f} s", title_justify="left")
    for heading in ("", "found", "goal", ""):
        drawn.add_column(heading)
    for row in found["rows"]:
        met = {True: "met", False: "MISSED", None: ""}[row["met"]]
        drawn.add_row(row["what"], row["value"], row["goal"], met)
    return drawn


if __name__ == "__main__":
    main()
