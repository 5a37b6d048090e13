"""Stage 1: decode, frozen networks, sealed shards. The only part that reads videos."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from extract.backbones import WeightsError
    from extract.cluster import Cluster, ClusterError
    from extract.decode import ClipError, footage
    from extract.extractor import Extractor, Files, make_recipe, read_otherwise, read_text
    from extract.job import Outcome, Summary, extract
    from extract.live import Snippet, live_snippets
    from extract.look import Glimpse, glimpse
    from extract.plan import Status, Task, status
    from extract.precision import choose_precision
    from extract.reader import Reader
    from extract.receiver import Gap

__all__ = [
    "ClipError",
    "Cluster",
    "ClusterError",
    "Extractor",
    "Files",
    "Gap",
    "Glimpse",
    "NotFiniteError",
    "Outcome",
    "Reader",
    "Snippet",
    "Status",
    "Summary",
    "Task",
    "WeightsError",
    "choose_precision",
    "extract",
    "footage",
    "glimpse",
    "live_snippets",
    "make_recipe",
    "read_otherwise",
    "read_text",
    "status",
]
_MODULES = {
    "ClipError": "decode",
    "footage": "decode",
    "Reader": "reader",
    "WeightsError": "backbones",
}
_MODULES |= dict.fromkeys(("Extractor", "Files", "make_recipe"), "extractor")
_MODULES |= dict.fromkeys(("read_otherwise", "read_text"), "extractor")
_MODULES |= dict.fromkeys(("Glimpse", "glimpse"), "look")
_MODULES |= dict.fromkeys(("Outcome", "Summary", "extract"), "job")
_MODULES |= {"Gap": "receiver", "Snippet": "live", "live_snippets": "live"}
_MODULES |= {"Task": "plan", "Status": "plan", "status": "plan"}
_MODULES |= {"choose_precision": "precision", "NotFiniteError": "finite"}
_MODULES |= {"Cluster": "cluster", "ClusterError": "cluster"}


def __getattr__(name: str) -> Any:
    # loaded when asked for: the reading process (`extract.reader`) must stay without torch
    if name in _MODULES:
        return getattr(import_module(f"extract.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'extract' has no attribute {name!r}")
