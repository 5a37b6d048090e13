"""Stage 1: decode, frozen networks, sealed shards. The only part that reads videos."""

from extract.backbones import WeightsError
from extract.decode import ClipError
from extract.extractor import Extractor, make_recipe
from extract.job import Outcome, Summary, Task, extract

__all__ = [
    "ClipError",
    "Extractor",
    "Outcome",
    "Summary",
    "Task",
    "WeightsError",
    "extract",
    "make_recipe",
]
