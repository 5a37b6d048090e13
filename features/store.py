"""A folder of sealed shards of one fingerprint, read as a mapping from clip id to features."""

from __future__ import annotations

import os
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.clip_features import Features
from features.foreign_text import html_table, in_one_line
from features.format.shard import Shard
from features.recipe import MOST_BYTES, FeatureError, Recipe, UnreadableShard
from features.store_files import CLOSED, read_file, replace_file

RECIPE_FILE = "recipe.json"
UNFINISHED = f".{RECIPE_FILE}-"  # how the name begins of one that is being written


class ClipLocation(NamedTuple):
    """Where a clip is."""

    shard: Shard
    number: int  # of the clip in the shard


class Store(Mapping[str, Features]):
    """A feature store, open for reading.

    Opening reads every shard's own table, so no index can be out of date. Shards that cannot be
    read are left out, listed in `unreadable` and warned of (`UnreadableShard`); the clips of the
    others stay readable. A clip that is in several shards counts once.

    >>> store = Store("surv-fight.store")       # doctest: +SKIP
    >>> store["fight/fi001"].video.shape        # doctest: +SKIP
    (9, 320)

    Raises:
        FeatureError: the folder is not a store, or has shards of two fingerprints.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = read_recipe(self.path)
        self.shards: list[Shard] = []
        self.unreadable: dict[Path, str] = {}
        self._starts: list[int] = []  # the number of clips before each shard
        self._index: dict[bytes, int] = {}  # clip id -> number, counted over all shards
        count = 0
        for file, shard in _open_shards(self.path).items():
            if isinstance(shard, FeatureError):
                self.unreadable[file] = str(shard)
                warnings.warn(str(shard), UnreadableShard, stacklevel=2)
                continue
            if shard.recipe.fingerprint != self.recipe.fingerprint:
                raise FeatureError(
                    f"{file}: features of another recipe than the store's; move it to a store of "
                    "its own. " + "; ".join(shard.recipe.differences(self.recipe))
                )
            self.shards.append(shard)
            self._starts.append(count)
            self._index.update(zip(shard.table.ids, range(count, count + len(shard)), strict=True))
            count += len(shard)

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.path,)  # another process opens it anew

    @property
    def paths(self) -> list[Path]:
        """The folder, as a list: what was opened."""
        return [self.path]

    @property
    def snippet_seconds(self) -> float:
        """Length of a snippet, in seconds."""
        return self.recipe.snippet_seconds

    def __getitem__(self, clip_id: str) -> Features:
        shard, number = self.locate(clip_id)
        return shard.read(number)

    def locate(self, clip_id: str) -> ClipLocation:
        """Return where a clip is.

        Raises:
            KeyError: the store does not have it.
        """
        try:
            number = self._index[_key(clip_id)]
        except KeyError:
            raise KeyError(clip_id) from None
        place = bisect_right(self._starts, number) - 1
        return ClipLocation(self.shards[place], number - self._starts[place])

    def column(self, name: Literal["rows", "duration", "flags"]) -> NDArray[Any]:
        """Return one value for each clip, in the order of iteration: its table's column."""
        return self._gather([getattr(shard.table, name) for shard in self.shards])

    def valid_counts(self, stream: str) -> NDArray[np.int64]:
        """Return how many rows of a stream are valid, for each clip in the order of iteration."""
        return self._gather([shard.valid_counts(stream) for shard in self.shards])

    @property
    def numbers(self) -> NDArray[np.int64]:
        """The place of each clip, in the order of iteration, among the clips of all `shards`."""
        return np.fromiter(self._index.values(), np.int64, len(self))

    def _gather(self, by_shard: list[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(by_shard)[self.numbers] if by_shard else np.zeros(0)

    def __iter__(self) -> Iterator[str]:
        return (clip_id.decode() for clip_id in self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return f"<Store {str(self.path)!r}: {in_one_line(_shown(self))}>"

    def _repr_html_(self) -> str:
        return html_table(f"Store {self.path}", _shown(self))

    def __contains__(self, clip_id: object) -> bool:
        return isinstance(clip_id, str) and _key(clip_id) in self._index


def _shown(store: Store) -> dict[str, str]:
    """Return what a notebook shows of a store."""
    streams = store.recipe.streams.items()
    rows = int(store.column("rows").sum())
    shards = str(len(store.shards))
    if store.unreadable:
        shards += f", and {len(store.unreadable)} that cannot be read"
    return {
        "clips": f"{len(store)}, {rows * store.snippet_seconds / 3600:.2f} hours",
        "streams": ", ".join(f"{name} ({known.get('features')})" for name, known in streams),
        "snippets": f"of {store.snippet_seconds:g} s",
        "shards": shards,
    }


def _open_shards(folder: Path) -> dict[Path, Shard | FeatureError]:
    """Open all shards of a folder, or say why one cannot be.

    They are in reverse order, so that of a clip in two shards the first one, by name, counts.
    """
    found: dict[Path, Shard | FeatureError] = {}
    files = _shard_files(folder)
    while True:
        for file in files:
            if file not in found:
                try:
                    found[file] = Shard(file)
                except FeatureError as error:
                    if os.path.lexists(file):
                        found[file] = error
        listed, files = files, _shard_files(folder)
        # while shards are replaced, a list may lack the old ones as well as the new ones
        if files == listed and found.keys() >= set(files):
            return {file: found[file] for file in files}


def _shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.h5"), reverse=True)


def _key(clip_id: str) -> bytes:
    return clip_id.encode("utf-8", "surrogatepass")


def read_recipe(path: str | Path) -> Recipe:
    """Return the recipe of the store in the folder `path`."""
    path = Path(path)
    try:
        content = read_file(path / RECIPE_FILE, MOST_BYTES).decode()
    except PermissionError as error:
        raise FeatureError(f"{path / RECIPE_FILE}: {CLOSED}") from error
    except (OSError, UnicodeDecodeError) as error:
        way_out = "make one with 'avarnet extract MANIFEST STORE'"
        if any(path.glob("[!.]*.h5")):
            way_out = f"it has shards: copy the {RECIPE_FILE} of the store that they are from"
        raise FeatureError(
            f"{path} is not a feature store: it has no readable {RECIPE_FILE}; {way_out}"
        ) from error
    try:
        return Recipe.from_json(content)
    except FeatureError as error:
        raise FeatureError(f"{path / RECIPE_FILE}: {error}") from error


def create(path: str | Path, recipe: Recipe) -> None:
    """Make the folder `path` a store of `recipe`; an existing store must have the same recipe.

    Args:
        path: the folder, made if absent.
        recipe: of all features that the store will have.

    Raises:
        FeatureError: the existing store has another recipe; the message lists the differing fields.
    """
    path = Path(path)
    if (path / RECIPE_FILE).exists():
        existing = read_recipe(path)
        differing, read = recipe.differences(existing), recipe.read_otherwise(existing)
        if read and len(differing) == len(recipe.streams_read_otherwise(existing)):
            raise FeatureError(
                f"{path} cannot be extended: {read}. None of it is lost: it is read, verified, "
                "searched, joined and trained on as before. To add clips, give the folder of a new "
                "store and extract all clips there, or stay with the clips that it has"
            )
        if differing:
            further = (
                " A further stream goes into a folder of its own ('avarnet extract --only'), to be "
                "joined with this one in training ('--join')."
            )
            raise FeatureError(
                f"{path} holds features of another recipe; give another folder, or the settings "
                f"it was made with. Asked for: {'; '.join(differing)}."
                + (further if recipe.streams.keys() - existing.streams.keys() else "")
                + (f" And {read}: only a new store can have what is read today." if read else "")
            )
        return
    if path.exists() and not path.is_dir():
        raise FeatureError(f"{path} is a file; give the folder of the store")
    path.mkdir(parents=True, exist_ok=True)
    if any(path.glob("[!.]*.h5")):
        raise FeatureError(
            f"{path} has shards but no {RECIPE_FILE}; copy the one of its store into it"
        )
    try:
        replace_file(path / RECIPE_FILE, f"{recipe.to_json()}\n".encode())
    except FileNotFoundError:
        if not (path / RECIPE_FILE).exists():
            raise
        create(path, recipe)  # another process made it a store meanwhile, and tidied up
