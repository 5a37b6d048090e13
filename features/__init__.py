"""The contract between the two stages: sharded HDF5 feature stores. numpy and h5py, never torch."""

from features.check import Damage, repair, verify
from features.clip import Features, Flag
from features.join import Joined, join
from features.recipe import FeatureError, Recipe, VersionError, WriteError
from features.shard import Shard
from features.store import Store, create, read_recipe
from features.writer import Writer, pack, recover

__all__ = [
    "Damage",
    "FeatureError",
    "Features",
    "Flag",
    "Joined",
    "Recipe",
    "Shard",
    "Store",
    "VersionError",
    "WriteError",
    "Writer",
    "create",
    "join",
    "pack",
    "read_recipe",
    "recover",
    "repair",
    "verify",
]
