"""Python's collection of garbage, where a process imports what it keeps to its end."""

from __future__ import annotations

import atexit
import gc

NEW_OBJECTS = 5000  # after which it is collected; 700 or 2,000 by Python's own default


def collect_seldom() -> None:
    """Collect garbage less often, and not when the process ends.

    For the processes of ours that import torch and its kin: a large part of their start and end was
    Python's search through the objects of modules, none of which is garbage.
    """
    gc.set_threshold(NEW_OBJECTS)
    atexit.register(gc.freeze)  # the last collection passes over what is frozen
