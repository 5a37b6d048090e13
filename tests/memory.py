"""How much memory a test took."""

from __future__ import annotations

import resource
import sys


def resident() -> int:
    """Return the most memory, in bytes, that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
