"""Stores of several recipes on one time grid, read as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from features.clip_features import Features
from features.foreign_text import html_table
from features.recipe import FeatureError, Recipe
from features.resample import RESAMPLED, resampled
from features.store import Store


class Joined(Mapping[str, Features]):
    """Several stores, joined by clip id; see `join`.

    Args:
        stores: at least one.
        resample: bring those on other time grids to that of the first.
    """

    def __init__(self, stores: tuple[Store, ...], resample: bool = False) -> None:
        self.stores = stores
        recipes = [store.recipe for store in stores]
        if resample:
            recipes = [resampled_recipe(recipe, recipes[0].snippet_seconds) for recipe in recipes]
        self.recipe = _join_recipes(recipes)
        first, *others = stores
        self._ids = [clip_id for clip_id in first if all(clip_id in other for other in others)]
        self._id_set = frozenset(self._ids)

    @property
    def paths(self) -> list[Path]:
        """The folders of the stores."""
        return [store.path for store in self.stores]

    @property
    def unreadable(self) -> dict[Path, str]:
        """The shards of all stores that cannot be read, and why."""
        return {file: why for store in self.stores for file, why in store.unreadable.items()}

    @property
    def snippet_seconds(self) -> float:
        """Length of a snippet, in seconds."""
        return self.recipe.snippet_seconds

    def __getitem__(self, clip_id: str) -> Features:
        if clip_id not in self._id_set:
            raise KeyError(clip_id)
        parts = [store[clip_id] for store in self.stores]
        step = self.snippet_seconds
        parts = [p if p.snippet_seconds == step else resampled(p, step) for p in parts]
        return merge_streams(clip_id, parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"<Joined: {len(self)} clips of {', '.join(map(repr, self.stores))}>"

    def _repr_html_(self) -> str:
        shown = {str(store.path): repr(store) for store in self.stores}
        return html_table(f"{len(self)} clips of stores that are joined", shown)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._id_set


def join(*stores: Store, resample: bool = False) -> Joined:
    """Read several stores as one whose clips have the streams of all.

    A clip must be in every store. Where the stores differ by some snippets at the end of a clip
    (two feature extractors seldom agree on the last one), the shorter streams are flagged invalid
    at the end.

    >>> both = join(Store("frames.store"), Store("vggish.store"))    # doctest: +SKIP
    >>> both["fight/fi001"].streams["vggish"].shape                  # doctest: +SKIP
    (9, 128)

    Args:
        stores: to join.
        resample: average the rows of stores on other time grids over the snippets of the first.

    Raises:
        FeatureError: the time grids differ and are to stay, or two stores have different streams of
            one name.
    """
    if not stores:
        raise FeatureError("nothing to join; give at least one store")
    return Joined(stores, resample)


def merge_streams(clip_id: str, parts: list[Features]) -> Features:
    """Return one clip with all the streams of its features in several stores.

    Args:
        clip_id: its id.
        parts: its features in each store.

    Raises:
        FeatureError: they come from different videos, or their lengths are too different.
    """
    sources = {part.source for part in parts if part.source}
    if len(sources) > 1:
        raise FeatureError(
            f"clip {clip_id}: the stores read different videos under this id (their SHA-256 "
            "differ); extract it again in one of them"
        )
    length = max(map(len, parts))
    least = min((len(part) for part in parts if len(part)), default=0)
    if length - least > max(4, length // 10):
        raise FeatureError(
            f"clip {clip_id}: its streams have {least} and {length} snippets; is one of them on "
            "another time grid, or of another cut of the video?"
        )
    streams, valid, flags = {}, {}, parts[0].flags
    for part in parts:
        for name, rows in part.streams.items():
            mask = part.valid[name]
            if len(part) < length:
                rows = np.pad(rows, ((0, length - len(part)), (0, 0)))
                mask = np.pad(mask, (0, length - len(part)))
            streams[name], valid[name] = rows, mask
        flags |= part.flags
    duration = max(part.duration for part in parts)
    source = sources.pop() if sources else ""
    return Features(streams, valid, parts[0].snippet_seconds, duration, flags, source)


def resampled_recipe(recipe: Recipe, snippet_seconds: float) -> Recipe:
    """Return the recipe of the same streams on another time grid.

    Args:
        recipe: of a store.
        snippet_seconds: of the new grid.
    """
    if recipe.snippet_seconds == snippet_seconds:
        return recipe
    streams = {
        name: {RESAMPLED: recipe.snippet_seconds, **settings}
        for name, settings in recipe.streams.items()
    }
    return Recipe(snippet_seconds, recipe.precision, streams, recipe.source)


def _join_recipes(recipes: list[Recipe]) -> Recipe:
    """Return the recipe of all streams; precisions that differ are stated stream by stream."""
    grids = sorted({recipe.snippet_seconds for recipe in recipes})
    if len(grids) > 1:
        raise FeatureError(
            f"stores of different time grids cannot be joined: snippets of "
            f"{' and '.join(f'{seconds:g} s' for seconds in grids)}; extract one of them again "
            "with the other's --snippet-seconds, or let 'avarnet features join --resample' average "
            "its rows over those of the first"
        )
    precisions = {recipe.precision for recipe in recipes}
    streams: dict[str, dict[str, Any]] = {}
    source: dict[str, dict[str, Any]] = {}
    for recipe in recipes:
        for name, settings in recipe.streams.items():
            if len(precisions) > 1:
                settings = {**settings, "precision": recipe.precision}
            if streams.setdefault(name, settings) != settings:
                raise FeatureError(
                    f"both stores have a stream '{name}', of different recipes; a joined store "
                    "needs different names"
                )
        source = {**recipe.source, **source}
    return Recipe(grids[0], "/".join(sorted(precisions)), streams, source)
