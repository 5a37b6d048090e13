"""The contract between the two stages: sharded HDF5 feature stores. numpy and h5py, never torch."""

from features.clip import Features, Flag
from features.recipe import FeatureError, Recipe
from features.shard import Shard
from features.store import Damage, Store, Writer, create, read_recipe, recover, verify

__all__ = [
    "Damage",
    "FeatureError",
    "Features",
    "Flag",
    "Recipe",
    "Shard",
    "Store",
    "Writer",
    "create",
    "read_recipe",
    "recover",
    "verify",
]
