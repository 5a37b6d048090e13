"""A folder of sealed shards of one fingerprint, read as a mapping from clip id to features."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from features.clip import Features
from features.recipe import FeatureError, Recipe
from features.shard import Shard, write_shard

RECIPE_FILE = "recipe.json"
SPOOL = ".spool-"  # folders of finished clips that wait to be sealed together
SHARD_BYTES = 256 * 2**20


class Store(Mapping[str, Features]):
    """A feature store, open for reading.

    Opening reads every shard's own table: there is no index to go stale. Shards that cannot be
    read are left out and listed in `unreadable`; the clips of the others stay readable.

    >>> store = Store("surv-fight.store")       # doctest: +SKIP
    >>> store["fight/fi001"].video.shape        # doctest: +SKIP
    (9, 320)

    Raises:
        FeatureError: the folder is no store, or holds shards of two fingerprints.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = read_recipe(self.path)
        self.shards: list[Shard] = []
        self.unreadable: dict[Path, str] = {}
        self._index: dict[str, tuple[Shard, int]] = {}
        for file in sorted(self.path.glob("*.h5")):
            try:
                shard = Shard(file)
            except FeatureError as error:
                self.unreadable[file] = str(error)
                continue
            if shard.recipe.fingerprint != self.recipe.fingerprint:
                raise FeatureError(
                    f"{file}: features of another recipe than the store's; move it to a store of "
                    "its own. " + "; ".join(shard.recipe.differences(self.recipe))
                )
            self.shards.append(shard)
            for index, clip_id in enumerate(shard.ids):
                self._index.setdefault(clip_id, (shard, index))

    @property
    def snippet_seconds(self) -> float:
        """Length of a snippet, in seconds."""
        return self.recipe.snippet_seconds

    def __getitem__(self, clip_id: str) -> Features:
        shard, index = self._index[clip_id]
        return shard.read(index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._index


def read_recipe(path: Path) -> Recipe:
    """Return the recipe of the store in the folder `path`."""
    try:
        return Recipe.from_json((path / RECIPE_FILE).read_text(encoding="utf-8"))
    except FeatureError as error:
        raise FeatureError(f"{path / RECIPE_FILE}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FeatureError(
            f"{path} is no feature store: it has no readable {RECIPE_FILE}; make one with "
            "'avarnet extract MANIFEST STORE'"
        ) from error


def create(path: Path, recipe: Recipe) -> None:
    """Make the folder `path` a store of `recipe`; a store that is there must have the same one.

    Raises:
        FeatureError: the store there has another recipe; the message lists the differing fields.
    """
    if (path / RECIPE_FILE).exists():
        differing = recipe.differences(read_recipe(path))
        if differing:
            raise FeatureError(
                f"{path} holds features of another recipe; give another folder, or the settings "
                "it was made with. Asked for: " + "; ".join(differing)
            )
        return
    if path.exists() and not path.is_dir():
        raise FeatureError(f"{path} is a file; give the folder of the store")
    path.mkdir(parents=True, exist_ok=True)
    if any(path.glob("*.h5")):
        raise FeatureError(f"{path} has shards but no {RECIPE_FILE}; copy the store's one there")
    temporary = path / f".{RECIPE_FILE}-{uuid.uuid4().hex}"
    recipe.save(temporary)
    temporary.replace(path / RECIPE_FILE)


class Writer:
    """Adds clips to a store; use it as a context manager.

    Each clip is put at once into a spool as a sealed file of its own, so that a killed process
    loses no finished clip, and the clips of the spool are sealed together when they fill a shard.
    What a killed writer left in the spool is sealed by `recover`.

    Args:
        path: the store's folder; see `create`.
        recipe: the recipe of every clip that will be added.
        shard_bytes: how much to gather before sealing a shard.
    """

    def __init__(self, path: Path, recipe: Recipe, shard_bytes: int = SHARD_BYTES) -> None:
        create(path, recipe)
        self.path = path
        self.recipe = recipe
        self.shard_bytes = shard_bytes
        self._spool = path / f"{SPOOL}{uuid.uuid4().hex}"
        self._waiting: dict[str, Features] = {}
        self._bytes = 0

    def add(self, clip_id: str, features: Features) -> None:
        """Add one clip; when this returns, a kill of the process cannot lose it."""
        write_shard(self._spool, self.recipe, {clip_id: features})
        self._waiting[clip_id] = features
        self._bytes += sum(rows.nbytes for rows in features.streams.values())
        if self._bytes >= self.shard_bytes:
            self.seal()

    def seal(self) -> None:
        """Seal what has been added so far."""
        if self._waiting:
            write_shard(self.path, self.recipe, self._waiting)
        shutil.rmtree(self._spool, ignore_errors=True)
        self._waiting, self._bytes = {}, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seal()


def recover(path: Path) -> list[str]:
    """Seal the finished clips that killed writers left in the spool, and return their ids.

    Call it while no writer of the store is at work.
    """
    recovered: list[str] = []
    left = sorted(path.glob(f"{SPOOL}*"))
    if left:
        recipe = read_recipe(path)
        with Writer(path, recipe) as writer:
            for file in sorted(file for spool in left for file in spool.glob("*.h5")):
                try:
                    shard = Shard(file)
                except FeatureError:
                    continue  # damaged: its clip is done again
                if shard.intact() and shard.recipe.fingerprint == recipe.fingerprint:
                    writer.add(shard.ids[0], shard.read(0))
                    recovered.append(shard.ids[0])
        for spool in left:
            shutil.rmtree(spool, ignore_errors=True)
    for stray in path.glob(".writing-*"):
        stray.unlink(missing_ok=True)
    return recovered


class Damage(NamedTuple):
    """A shard that is not as it was sealed."""

    shard: Path
    reason: str
    clips: list[str]  # the clips hurt; empty if only the file's own bookkeeping is, or all are lost


def verify(path: Path) -> tuple[int, list[Damage]]:
    """Read every byte of a store; return the number of intact clips and the damaged shards."""
    store = Store(path)
    damages = [Damage(file, reason, []) for file, reason in store.unreadable.items()]
    for shard in store.shards:
        if not shard.intact():
            hurt = shard.damaged_clips()
            reason = "its content is not that of its name: bytes were changed or it was renamed"
            damages.append(Damage(shard.path, reason, hurt))
    hurt_ids = {clip_id for damage in damages for clip_id in damage.clips}
    return len(store.keys() - hurt_ids), damages
