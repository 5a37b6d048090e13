"""Stage 1: decode, frozen networks, sealed shards. The only part that reads videos."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from extract.backbones.base import WeightsError
    from extract.cluster.cluster import Cluster
    from extract.cluster.versions import ClusterError
    from extract.decoding.container import ClipError, footage
    from extract.decoding.messages import Files
    from extract.decoding.reader import Reader
    from extract.extractor import Extractor
    from extract.job.batching import Task
    from extract.job.client import extract
    from extract.job.status import Status, status
    from extract.job.summary import Summary
    from extract.job.worker import Outcome
    from extract.live.live_features import Snippet, live_snippets
    from extract.live.stream_receiver import Gap
    from extract.precision import choose_precision
    from extract.recipe import make_recipe, read_otherwise
    from extract.text_query import read_text
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
    "ClipError": "decoding.container",
    "Cluster": "cluster.cluster",
    "ClusterError": "cluster.versions",
    "Extractor": "extractor",
    "Files": "decoding.messages",
    "Gap": "live.stream_receiver",
    "Glimpse": "thumbnail",
    "NotFiniteError": "finite",
    "Outcome": "job.worker",
    "Reader": "decoding.reader",
    "Snippet": "live.live_features",
    "Status": "job.status",
    "Summary": "job.summary",
    "Task": "job.batching",
    "WeightsError": "backbones.base",
    "choose_precision": "precision",
    "extract": "job.client",
    "footage": "decoding.container",
    "glimpse": "thumbnail",
    "live_snippets": "live.live_features",
    "make_recipe": "recipe",
    "read_otherwise": "recipe",
    "read_text": "text_query",
    "status": "job.status",
}


def __getattr__(name: str) -> Any:
    # loaded when asked for: the reading process (`extract.decoding.child`) must stay without torch
    if name in _MODULES:
        return getattr(import_module(f"extract.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'extract' has no attribute {name!r}")
