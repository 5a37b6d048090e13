"""AdamW as torch has it, and without torch's compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_stores import RECIPE, clip
from torch import nn
from torch.nn import functional as F

from features import pack
from manifests import Clip, write
from train.fitting.optimiser import AdamW


def trained(kind: type[torch.optim.Optimizer]) -> list[torch.Tensor]:
    """Train a layer in 20 steps, of which the last 10 continue from a state."""
    torch.manual_seed(0)
    layer, x, y = nn.Linear(5, 3), torch.randn(8, 5), torch.arange(8) % 3
    optimiser = kind(layer.parameters(), 0.1, weight_decay=0.1, fused=True)  # type: ignore[call-arg]
    for step in range(20):
        if step == 10:
            state = optimiser.state_dict()
            optimiser = kind(layer.parameters(), 0.5, fused=True)  # type: ignore[call-arg]
            optimiser.load_state_dict(state)
        optimiser.zero_grad()
        F.cross_entropy(layer(x), y).backward()
        optimiser.step()
    return list(layer.parameters())


def test_it_is_torchs() -> None:
    for ours, torchs in zip(trained(AdamW), trained(torch.optim.AdamW), strict=True):
        assert torch.equal(ours, torchs)


@pytest.mark.slow
def test_training_and_evaluating_import_no_compiler(tmp_path: Path) -> None:
    splits = ("train", "train", "val", "test")
    clips = [Clip(f"c{n}", "x.mp4", ("ab"[n % 2],), split=splits[n // 2 % 4]) for n in range(16)]
    write(tmp_path / "m.jsonl", clips)
    pack(tmp_path / "store", ((one.id, clip(6, n)) for n, one in enumerate(clips)), RECIPE)
    program = (
        "import sys, manifests, train; from features import Store\n"
        "clips, store = manifests.read('m.jsonl'), Store('store')\n"
        "run = train.train_run(clips, store, 'run', train.Config(epochs=2, starts=1))\n"
        "train.evaluate_run(run, store)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
