"""Adding clips to a store so that no kill, full disk or second writer loses or doubles one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from features.clip_features import Features
from features.format.shard_writer import check_clip, check_values, write_shard
from features.pending_clips import Spool, abandoned_spools
from features.recipe import FeatureError, Recipe, WriteError
from features.store import UNFINISHED, Store, create

SHARD_BYTES = 256 * 2**20
SPOOLS_AT_ONCE = 100  # each holds a descriptor


class Writer:
    """Adds clips to a store; use it as a context manager.

    Each clip is put at once into the writer's spool as a file of its own, so that a killed process
    loses no finished clip, and the clips of the spool are sealed together when they fill a shard.
    What a killed writer left in its spool is sealed by `recover`. Several writers may be at work on
    one store.

    Args:
        path: the store's folder; see `create`.
        recipe: the recipe of every clip that will be added.
        shard_bytes: how much to gather before sealing a shard.

    Raises:
        WriteError: the store cannot be written.
    """

    def __init__(self, path: str | Path, recipe: Recipe, shard_bytes: int = SHARD_BYTES) -> None:
        path = Path(path)
        create(path, recipe)
        self.path = path
        self.recipe = recipe
        self.shard_bytes = shard_bytes
        self._spool = Spool(path)
        self._waiting: set[str] = set()  # ids; the clips themselves are in the spool
        self._bytes = 0

    def add(self, clip_id: str, features: Features) -> Path:
        """Add one clip; when this returns, a kill of the process cannot lose it.

        A power cut can, until the clip is sealed: then the clip is simply missing.

        Args:
            clip_id: its id.
            features: of the clip.

        Returns:
            The file in the store where the clip is until it is sealed, perhaps already.

        Raises:
            FeatureError: the clip does not fit the recipe, or a valid row of it is not finite.
        """
        check_clip(clip_id, features, self.recipe)
        check_values(clip_id, features)
        file = self._spool.add(clip_id, features, self.recipe.fingerprint)
        self._waiting.add(clip_id)
        self._bytes += _nbytes(features)
        if self._bytes >= self.shard_bytes:
            self.seal()
        return file

    def seal(self) -> None:
        """Seal what has been added so far."""
        if self._waiting:
            clips = dict(self._spool.clips(self.recipe.fingerprint))
            lost = self._waiting - clips.keys()
            if lost:
                raise WriteError(
                    f"{self._spool.path}: finished clips can no longer be read: "
                    f"{len(lost)} ({min(lost)} is one); was the folder or its disk removed? "
                    "Run the same command again: what is missing is done again"
                )
            write_shard(self.path, self.recipe, clips, self._spool.path)
            self._spool.clear()
        self._waiting, self._bytes = set(), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.seal()
        except BaseException:
            self._spool.release()  # `recover` finds its clips
            raise
        self._spool.remove()


def pack(
    path: str | Path,
    clips: Iterable[tuple[str, Features]],
    recipe: Recipe,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Seal clips that need no extraction into a store, without a spool; return the new shards.

    Args:
        path: the store's folder; see `create`.
        clips: (clip id, features) of each.
        recipe: of the clips.
        shard_bytes: how much to gather before sealing a shard.

    Raises:
        WriteError: the store cannot be written; the shards sealed so far stay.
    """
    path = Path(path)
    create(path, recipe)
    sealed: list[Path] = []
    waiting: dict[str, Features] = {}
    size = 0
    with Spool(path) as scratch:
        for clip_id, features in clips:
            waiting[clip_id] = features
            size += _nbytes(features)
            if size >= shard_bytes:
                sealed.append(write_shard(path, recipe, waiting, scratch.path))
                waiting, size = {}, 0
        if waiting:
            sealed.append(write_shard(path, recipe, waiting, scratch.path))
    return sealed


def recover(path: str | Path) -> list[str]:
    """Seal the finished clips that killed writers left in their spools, and return their ids.

    The spools of writers that still run are left alone.

    Raises:
        WriteError: the store cannot be written.
    """
    path = Path(path)
    for stray in path.glob(f"{UNFINISHED}*"):
        if stray.is_symlink() or not stray.is_dir():
            stray.unlink(missing_ok=True)
    spools, recovered = abandoned_spools(path), list[str]()
    while abandoned := list(islice(spools, SPOOLS_AT_ONCE)):
        recovered += _seal_spools(path, abandoned)
    return recovered


def _seal_spools(path: Path, abandoned: list[Spool]) -> list[str]:
    """Seal the clips of killed writers' spools that the store lacks; return their ids."""
    store = Store(path)
    recovered: dict[str, None] = {}

    def finished() -> Iterator[tuple[str, Features]]:
        for spool in abandoned:
            for clip_id, features in spool.clips(store.recipe.fingerprint):
                try:
                    check_clip(clip_id, features, store.recipe)
                    check_values(clip_id, features)
                except FeatureError:
                    continue  # not written by a writer of ours
                if clip_id not in store and clip_id not in recovered:
                    recovered[clip_id] = None
                    yield clip_id, features

    pack(path, finished(), store.recipe)
    for spool in abandoned:
        spool.remove()
    return list(recovered)


def _nbytes(features: Features) -> int:
    return sum(rows.nbytes for rows in features.streams.values())
