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
    for command in (
        "manifest folders videos -o m.jsonl",
        "manifest split m.jsonl",
        f"extract m.jsonl store {device} {networks}",
        f"train m.jsonl store run {device}",
        "evaluate run",
        f"predict run videos/Crash/0.mp4 {device}",
    ):
        began = time.monotonic()
        code, said = avarnet(options, command)
        took = time.monotonic() - began
        findings.add(f"avarnet {command[:60]}", f"exit {code}, {took:.0f} s", "exit 0", code == 0)
        if code:
            print(said)
    if options.device.type == "cuda":
        extract = f"extract m.jsonl other {device} {networks}"
        code, said = avarnet(options, extract, CUDA_VISIBLE_DEVICES="")
        findings.add("no GPU is visible", said, "one line", one_line(code, said, "--device cuda"))
        free, _ = torch.cuda.mem_get_info()
        held = torch.empty(free - LEFT, dtype=torch.uint8, device="cuda")
        code, said = avarnet(options, extract)
        findings.add("the GPU is full", said, "one line", one_line(code, said, "is full"))
        del held


def avarnet(options: Options, command: str, **variables: str) -> tuple[int, str]:
    """Run a command; return its exit code and what it said."""
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


def one_line(code: int, said: str, word: str) -> bool:
    """Return whether a command has failed with one line that says why."""
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    return code == 1 and len(errors) == 1 and word in errors[0] and "Traceback" not in said
