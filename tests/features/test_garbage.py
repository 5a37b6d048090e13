"""Garbage is collected less often, but it is: counted in a process of its own."""

from __future__ import annotations

import subprocess
import sys

PAIRS = 30_000
PROGRAM = f"""
import weakref
from features.garbage import collect_seldom

class Node:
    pass

collect_seldom()
nodes = []
for _ in range({PAIRS}):  # two objects that keep each other, and nobody else does
    one, other = Node(), Node()
    one.other, other.other = other, one
    nodes.append(weakref.ref(one))
print(sum(node() is not None for node in nodes))
"""


def test_objects_that_keep_each_other_are_freed() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < PAIRS / 2
    assert done.stderr == ""
