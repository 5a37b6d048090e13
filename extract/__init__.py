"""Stage 1: decode, frozen networks, sealed shards. The only part that reads videos."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from extract.backbones import WeightsError
    from extract.cluster import Cluster, ClusterError
    from extract.decode import ClipError
    from extract.extractor import Extractor, make_recipe
    from extract.job import Outcome, Summary, extract
    from extract.live import Snippet, live_snippets
    from extract.plan import Status, Task, status
    from extract.precision import choose_precision
    from extract.receiver import Gap

__all__ = [
    "ClipError",
    "Cluster",
    "ClusterError",
    "Extractor",
    "Gap",
    "Outcome",
    "Snippet",
    "Status",
    "Summary",
    "Task",
    "WeightsError",
    "choose_precision",
    "extract",
    "live_snippets",
    "make_recipe",
    "status",
]
_MODULES = {"ClipError": "decode", "WeightsError": "backbones"}
_MODULES |= dict.fromkeys(("Extractor", "make_recipe"), "extractor")
_MODULES |= dict.fromkeys(("Outcome", "Summary", "extract"), "job")
_MODULES |= {"Gap": "receiver", "Snippet": "live", "live_snippets": "live"}
_MODULES |= {"Task": "plan", "Status": "plan", "status": "plan"}
_MODULES |= {"choose_precision": "precision"}
_MODULES |= {"Cluster": "cluster", "ClusterError": "cluster"}


def __getattr__(name: str) -> Any:
    # loaded when asked for: the reading process (`extract.reader`) must stay without torch
    if name in _MODULES:
        return getattr(import_module(f"extract.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'extract' has no attribute {name!r}")
