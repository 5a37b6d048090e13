"""Stage 1: decode, frozen networks, sealed shards. The only part that reads videos."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from extract.backbones.base import WeightsError
    from extract.cluster.cluster import Cluster, ClusterError
    from extract.decoding.media import ClipError, footage
    from extract.decoding.reader import Reader
    from extract.extractor import Extractor, Files, make_recipe, read_otherwise, read_text
    from extract.job.batching import Status, Task, status
    from extract.job.client import Outcome, Summary, extract
    from extract.live.live_features import Snippet, live_snippets
    from extract.live.stream_receiver import Gap
    from extract.precision import choose_precision
    from extract.thumbnail import Glimpse, glimpse

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
    "ClipError": "decoding.media",
    "footage": "decoding.media",
    "Reader": "decoding.reader",
    "WeightsError": "backbones.base",
}
_MODULES |= dict.fromkeys(("Extractor", "Files", "make_recipe"), "extractor")
_MODULES |= dict.fromkeys(("read_otherwise", "read_text"), "extractor")
_MODULES |= dict.fromkeys(("Glimpse", "glimpse"), "thumbnail")
_MODULES |= dict.fromkeys(("Outcome", "Summary", "extract"), "job.client")
_MODULES |= {
    "Gap": "live.stream_receiver",
    "Snippet": "live.live_features",
    "live_snippets": "live.live_features",
}
_MODULES |= {"Task": "job.batching", "Status": "job.batching", "status": "job.batching"}
_MODULES |= {"choose_precision": "precision", "NotFiniteError": "finite"}
_MODULES |= {"Cluster": "cluster.cluster", "ClusterError": "cluster.cluster"}


def __getattr__(name: str) -> Any:
    # loaded when asked for: the reading process (`extract.decoding.reader`) must stay without torch
    if name in _MODULES:
        return getattr(import_module(f"extract.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'extract' has no attribute {name!r}")
