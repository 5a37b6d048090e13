"""The commands as a user types them, in a folder of synthetic clips."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import torch

from benchmarks.gpu_steps import Findings, Options, sources
from extract.synthetic import make_clip

LEFT = 700 * 2**20  # bytes of a GPU that is full: more than a process needs to begin


def run(options: Options, findings: Findings) -> None:
    """See how the commands end, and what they say where the GPU is absent or full."""
    for kind in ("Crash", "Normal"):
        (options.folder / "videos" / kind).mkdir(parents=True)
        for number in range(4 if options.tiny else 12):
            make_clip(options.folder / "videos" / kind / f"{number}.mp4", kind, number)
    names = {stream: source.get("name") for stream, source in sources(options).items()}
    networks = f"--weights random --video-model {names['video']} --audio-model {names['audio']}"
    device = f"--device {options.device.type}"
    ends_well(options, findings, "manifest folders videos -o m.jsonl")
    ends_well(options, findings, "manifest split m.jsonl")
    if options.device.type == "cuda":
        refuses(options, findings, f"extract m.jsonl other {device} {networks}")
    ends_well(options, findings, f"extract m.jsonl store {device} {networks}")
    few = "--epochs 4" if options.tiny else ""
    ends_well(options, findings, f"train m.jsonl store run {device} {few}")
    ends_well(options, findings, "evaluate run")
    ends_well(options, findings, f"predict run videos/Crash/0.mp4 {device}")


def ends_well(options: Options, findings: Findings, command: str) -> None:
    """Run a command that should succeed."""
    began = time.monotonic()
    code, output = avarnet(options, command)
    took = time.monotonic() - began
    findings.add(f"avarnet {command[:60]}", f"exit {code}, {took:.0f} s", "exit 0", code == 0)
    if code:
        print(output)


def refuses(options: Options, findings: Findings, command: str) -> None:
    """Run a command that should say why the GPU cannot be used: none is visible, or it is full."""
    code, output = avarnet(options, command, CUDA_VISIBLE_DEVICES="")
    findings.add("no GPU is visible", output, "one line", one_line(code, output, "--device cuda"))
    free, _ = torch.cuda.mem_get_info()
    filler = torch.empty(free - LEFT, dtype=torch.uint8, device="cuda")
    code, output = avarnet(options, command)
    findings.add("the GPU is full", output, "one line", one_line(code, output, "is full"))
    del filler


def avarnet(options: Options, command: str, **variables: str) -> tuple[int, str]:
    """Run a command; return its exit code and what it printed."""
    paths = os.pathsep.join(filter(None, (sys.path[0], os.environ.get("PYTHONPATH", ""))))
    ran = subprocess.run(
        [sys.executable, "-m", "avarnet", *command.split()],
        cwd=options.folder,
        env={**os.environ, "PYTHONPATH": paths, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout.strip()


def one_line(code: int, output: str, word: str) -> bool:
    """Return whether a command has failed with one line that says why."""
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    return code == 1 and len(errors) == 1 and word in errors[0] and "Traceback" not in output
