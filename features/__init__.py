"""The contract between the two stages: sharded HDF5 feature stores. numpy and h5py, never torch."""

from features.card import write_card
from features.clip_features import Features, Flag
from features.dataset import ClipSnippets, SnippetBatch, SnippetDataset
from features.foreign_text import escaped, html_table, json_text, visible
from features.format.shard import Shard
from features.integrity import Damage, repair, try_folder, verify
from features.interop.export import export_npy, export_safetensors, export_webdataset
from features.interop.import_npy import ImportSummary, import_npy
from features.joined_store import Joined, join
from features.overview import Entry, Overview, entries, overview
from features.recipe import FeatureError, Recipe, UnreadableShard, VersionError, WriteError
from features.redaction import redacted
from features.resample import resampled
from features.similarity import Hit, Searcher, search
from features.store import RECIPE_FILE, Store, create, read_recipe
from features.store_ops import Difference, compact, diff, drop, merge
from features.transfer.push_pull import Transfer, pull, push
from features.transfer.remote import Remote
from features.transfer.repair import pull_repair
from features.transfer.withdraw import withdraw
from features.writer import Writer, pack, recover

__all__ = [
    "RECIPE_FILE",
    "ClipSnippets",
    "Damage",
    "Difference",
    "Entry",
    "FeatureError",
    "Features",
    "Flag",
    "Hit",
    "ImportSummary",
    "Joined",
    "Overview",
    "Recipe",
    "Remote",
    "Searcher",
    "Shard",
    "SnippetBatch",
    "SnippetDataset",
    "Store",
    "Transfer",
    "UnreadableShard",
    "VersionError",
    "WriteError",
    "Writer",
    "compact",
    "create",
    "diff",
    "drop",
    "entries",
    "escaped",
    "export_npy",
    "export_safetensors",
    "export_webdataset",
    "html_table",
    "import_npy",
    "join",
    "json_text",
    "merge",
    "overview",
    "pack",
    "pull",
    "pull_repair",
    "push",
    "read_recipe",
    "recover",
    "redacted",
    "repair",
    "resampled",
    "search",
    "try_folder",
    "verify",
    "visible",
    "withdraw",
    "write_card",
]
