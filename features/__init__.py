"""The contract between the two stages: sharded HDF5 feature stores. numpy and h5py, never torch."""

from features.card import Entry, Overview, entries, overview, write_card
from features.check import Damage, repair, try_folder, verify
from features.clip import Features, Flag
from features.convert import (
    ImportSummary,
    export_npy,
    export_safetensors,
    export_webdataset,
    import_npy,
)
from features.edit import Difference, compact, diff, drop, merge
from features.join import Joined, join
from features.recipe import FeatureError, Recipe, VersionError, WriteError
from features.search import Hit, Searcher, search
from features.shard import Shard
from features.share import Remote, Transfer, pull, push
from features.store import RECIPE_FILE, Store, create, read_recipe
from features.writer import Writer, pack, recover

__all__ = [
    "RECIPE_FILE",
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
    "Store",
    "Transfer",
    "VersionError",
    "WriteError",
    "Writer",
    "compact",
    "create",
    "diff",
    "drop",
    "entries",
    "export_npy",
    "export_safetensors",
    "export_webdataset",
    "import_npy",
    "join",
    "merge",
    "overview",
    "pack",
    "pull",
    "push",
    "read_recipe",
    "recover",
    "repair",
    "search",
    "try_folder",
    "verify",
    "write_card",
]
