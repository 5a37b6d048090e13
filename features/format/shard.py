"""A sealed shard, read as mapped memory.

The format is written down in FORMAT.md.
"""

from __future__ import annotations

import os
import stat
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.clip_features import Features, Flag
from features.format.mapped_file import map_file
from features.format.shard_index import Table, clip_digest, read_table
from features.format.shard_name import ShardName, file_hash
from features.recipe import FeatureError, Recipe, VersionError
from features.store_files import CLOSED

FLAGS = [Flag(value) for value in range(256)]  # making one takes as long as finding a clip
NO_SOURCE = bytes(32)


class MappedStream(NamedTuple):
    """The rows of all clips of a shard in one stream."""

    rows: NDArray[np.float16]  # (total, features)
    valid: NDArray[np.bool_]  # (total,)


class Shard:
    """A sealed shard, open for reading.

    Its tables are read once; rows are read through a memory map, which needs no lock and is safe
    across threads and processes, forked or spawned. The first time a clip is read, its rows are
    compared with their checksum.

    Args:
        path: of the file.
        damaged: take a shard whose tables are not as they were written, to see which of its clips
            are hurt.

    Attributes:
        nbytes: size of the file.

    Raises:
        VersionError: it is a shard of another version of the format.
        FeatureError: it is not a shard, or its tables contradict the file.
    """

    def __init__(self, path: str | Path, damaged: bool = False) -> None:
        path = Path(path)
        self.path = path
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a link leads outside
                raise FeatureError("not a regular file; links are not followed")
            self.nbytes = status.st_size
            self.table: Table = read_table(path, self.nbytes)
            if not damaged:
                self.table.check()
        except VersionError as error:
            raise VersionError(f"{path}: {error}") from error
        except (FeatureError, OSError) as error:
            if os.path.isfile(path) and not os.access(path, os.R_OK):  # it may be intact
                raise FeatureError(f"{path}: {CLOSED}") from error
            raise FeatureError(
                f"{path}: {error}; copy it again, or delete it and extract its clips again"
            ) from error
        self._checked = bytearray(len(self))

    def __reduce__(self) -> tuple[type[Shard], tuple[Path]]:
        return Shard, (self.path,)  # another process opens it anew

    def __len__(self) -> int:
        return len(self.table.ids)

    @property
    def recipe(self) -> Recipe:
        """Recipe of its features."""
        return self.table.recipe

    @property
    def ids(self) -> list[str]:
        """The ids of its clips."""
        # what is not UTF-8 occurs in damaged shards only, whose clips are named as far as possible
        return [clip_id.decode(errors="backslashreplace") for clip_id in self.table.ids]

    def read(self, index: int) -> Features:
        """Return clip number `index`; its arrays are read-only views of the mapped file.

        Raises:
            FeatureError: its bytes are not as they were written.
        """
        if not self._checked[index]:
            if not self._fits(index):
                raise FeatureError(
                    f"clip {self.table.ids[index].decode()}: damaged in {self.path}; run 'avarnet "
                    "features verify' on the store, then extract or copy the clip again"
                )
            self._checked[index] = True
        return self._view(index)

    def valid_counts(self, stream: str) -> NDArray[np.int64]:
        """Return how many rows of each clip are valid in a stream."""
        return self.table.valid_counts(self._maps[stream].valid)

    def intact(self) -> bool:
        """Tell whether every byte of the file is as it was sealed."""
        return self.path.name == str(ShardName(self.recipe.fingerprint, file_hash(self.path)))

    def damaged_clips(self) -> list[str]:
        """Return the ids of the clips whose rows are not as they were written."""
        return [
            clip_id
            for index, clip_id in enumerate(self.ids)
            if not (self.table.placed(np.s_[index : index + 1]).all() and self._fits(index))
        ]

    def _view(self, index: int) -> Features:
        table, maps = self.table, self._maps
        first = table.first_row.item(index)
        last = first + table.rows.item(index)
        source = table.source[index].tobytes()
        return Features.unchecked(
            {name: rows[first:last] for name, (rows, _) in maps.items()},
            {name: valid[first:last] for name, (_, valid) in maps.items()},
            table.recipe.snippet_seconds,
            table.duration.item(index),
            FLAGS[table.flags.item(index)],
            source.hex() if source != NO_SOURCE else "",
        )

    def _fits(self, index: int) -> bool:
        """Tell whether a clip agrees with its digests."""
        header = self.table.header(index)
        first = int(self.table.first_row[index])
        last = first + int(self.table.rows[index])
        return all(
            clip_digest(header, rows[first:last], valid[first:last])
            == self.table.digests[name][index].tobytes()
            and valid[first:last].view(np.uint8).max() <= 1
            for name, (rows, valid) in self._maps.items()
        )

    @cached_property
    def _maps(self) -> dict[str, MappedStream]:
        try:
            whole = map_file(self.path)
        except FileNotFoundError as error:
            raise FeatureError(
                f"{self.path} is gone: was its store compacted, or rid of clips? Open it again"
            ) from error
        except OSError as error:
            raise FeatureError(f"{self.path}: cannot be read ({error.strerror})") from error
        return {
            name: MappedStream(
                np.ndarray((at.total, at.features), "<f2", whole, at.rows_at),
                np.ndarray((at.total,), "?", whole, at.valid_at),
            )
            for name, at in self.table.extents.items()
        }
