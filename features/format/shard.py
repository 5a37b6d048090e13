"""One HDF5 file of many clips: written whole or not at all, never changed, read as mapped memory.

The format is written down in FORMAT.md. A sealed shard is named FINGERPRINT-HASH.h5; HASH is the
start of the SHA-256 of the whole file, so the name alone tells whether a byte has changed.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import re
import stat
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from features.clip_features import Features, Flag
from features.format.shard_index import (
    COLUMNS,
    FORMAT,
    VERSION,
    Table,
    check_id,
    clip_digest,
    clip_header,
    read_table,
    tables_checksum,
)
from features.recipe import FeatureError, Recipe, VersionError, WriteError

SHARD_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.h5")
BLOCK_BYTES = 2**20
ALIGNMENT = 64  # bytes; of every array, so that mapped rows suit any processor
FLAGS = [Flag(value) for value in range(256)]  # making one takes as long as finding a clip
NO_SOURCE = bytes(32)
# Python 3.13 maps files without holding a descriptor for each of them
MAP_OPTIONS: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def write_shard(
    folder: Path, recipe: Recipe, clips: Mapping[str, Features], scratch: Path | None = None
) -> Path:
    """Write `clips` as one sealed shard in `folder` and return its path.

    The shard is written under a temporary name, flushed to disk and renamed: a reader sees all of
    it or nothing, whatever kills the writer.

    Args:
        folder: must be there.
        recipe: of the clips.
        clips: at least one.
        scratch: where the temporary file goes, on the same disk; `folder` if None.

    Raises:
        FeatureError: a clip does not fit the recipe, or its id is not one.
        WriteError: the disk is full, or the folder is read-only or gone; nothing is left behind.
    """
    for clip_id, clip in clips.items():
        check_clip(clip_id, clip, recipe)
    temporary = (scratch or folder) / f".writing-{uuid.uuid4().hex}"
    try:
        with open(temporary, "w+b", buffering=0) as disk:
            sink = _Sink(disk)
            # from 1.8 on HDF5 guards its own headers by checksums
            with h5py.File(
                sink,
                "w",
                libver=("v108", "v110"),
                alignment_threshold=1,
                alignment_interval=ALIGNMENT,
            ) as file:
                _fill(file, recipe, clips)
            if sink.error:
                raise sink.error
            os.fsync(disk.fileno())
        sealed = folder / f"{recipe.fingerprint}-{file_hash(temporary)}.h5"
        os.replace(temporary, sealed)
        sync_folder(folder)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)
    return sealed


class _Sink(io.RawIOBase):
    """A file that keeps its first error for later: HDF5 crashes the process when a write fails."""

    def __init__(self, disk: io.FileIO) -> None:
        self._disk = disk
        self.error: OSError | None = None

    def _try(self, action: Callable[[], int], otherwise: int) -> int:
        if self.error is None:
            try:
                return action()
            except OSError as error:
                self.error = error
        return otherwise

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.error is None:
            done += self._try(partial(self._disk.write, view[done:]), 0)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        return self._try(partial(self._disk.truncate, size), size or 0)

    def readinto(self, buffer: Any) -> int:
        return self._try(partial(self._disk.readinto, buffer), len(buffer))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._disk.seek(offset, whence)

    def tell(self) -> int:
        return self._disk.tell()


def write_error(folder: Path, error: Exception | None) -> WriteError:
    """Return what to tell when writing to `folder` failed."""
    if not folder.is_dir():
        reason = "the folder is gone"
    elif isinstance(error, OSError) and error.errno:
        reason = os.strerror(error.errno).lower()
    else:
        reason = str(error)
    return WriteError(
        f"{folder}: cannot write there ({reason}); what was sealed is safe: mend this and run the "
        "same command again"
    )


def _fill(file: h5py.File, recipe: Recipe, clips: Mapping[str, Features]) -> None:
    lengths = np.array([len(clip) for clip in clips.values()], dtype="<i8")
    first_row = np.cumsum(lengths) - lengths
    encoded = [clip_id.encode() for clip_id in clips]
    sources = [bytes.fromhex(clip.source) or bytes(32) for clip in clips.values()]
    columns: dict[str, NDArray[Any]] = {
        "first_row": first_row,
        "rows": lengths,
        "duration": np.array([clip.duration for clip in clips.values()]),
        "flags": np.array([clip.flags for clip in clips.values()]),
    }
    tables: list[NDArray[Any]] = [
        np.array(encoded, dtype=h5py.string_dtype("utf-8", max(map(len, encoded)))),
        *(columns[name].astype(dtype) for name, dtype in COLUMNS.items()),
        np.frombuffer(b"".join(sources), np.uint8).reshape(-1, 32),
    ]
    for name, table in zip(("id", *COLUMNS, "source"), tables, strict=True):
        file.create_dataset(f"clips/{name}", data=table, dtype=table.dtype, track_times=False)
    headers = [
        clip_header(clip_id, clip.duration, clip.flags, source)
        for clip_id, clip, source in zip(encoded, clips.values(), sources, strict=True)
    ]
    for name in recipe.streams:
        digests = b"".join(
            clip_digest(header, clip.streams[name], clip.valid[name])
            for header, clip in zip(headers, clips.values(), strict=True)
        )
        tables.append(np.frombuffer(digests, np.uint8).reshape(-1, 16))
        valid = np.concatenate([clip.valid[name] for clip in clips.values()]).astype(np.uint8)
        for part, array in (("digest", tables[-1]), ("valid", valid)):
            file.create_dataset(f"streams/{name}/{part}", data=array, track_times=False)
    for name, settings in recipe.streams.items():
        # space is given out in the order of writing: the rows come last, so that the tables of a
        # distant shard can be read from its first bytes
        shape = (int(lengths.sum()), int(settings["features"]))
        rows = file.create_dataset(f"streams/{name}/rows", shape, dtype="<f2", track_times=False)
        first = 0
        for some in _blocks([clip.streams[name] for clip in clips.values()]):
            rows[first : first + len(some)] = some
            first += len(some)
    recipe_json = recipe.to_json()
    for attribute, text in {
        "format": FORMAT,
        "version": str(VERSION),
        "fingerprint": recipe.fingerprint,
        "recipe": recipe_json,
        "tables": tables_checksum(recipe_json, tables),
    }.items():
        file.attrs.create(attribute, text, dtype=h5py.string_dtype("utf-8", len(text.encode())))


def _blocks(arrays: list[NDArray[np.float16]]) -> Iterator[NDArray[np.float16]]:
    """Yield the rows of all arrays in blocks: one HDF5 write for each tiny clip would be slow."""
    first, size = 0, 0
    for number, array in enumerate(arrays, 1):
        size += array.nbytes
        if size >= BLOCK_BYTES or number == len(arrays):
            yield np.concatenate(arrays[first:number]) if number - first > 1 else array
            first, size = number, 0


class Shard:
    """A sealed shard, open for reading.

    Its tables are read once; rows are read through a memory map, which needs no lock and is safe
    across threads and processes, forked or spawned. The first time a clip is read, its rows are
    held against their checksum.

    Args:
        path: of the file.
        damaged: take a shard whose tables are not as they were written, or that was cut short, to
            see which of its clips are hurt.

    Raises:
        VersionError: it is a shard of another version of the format.
        FeatureError: it is no shard, or its tables contradict the file.
    """

    def __init__(self, path: Path, damaged: bool = False) -> None:
        self.path = path
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise FeatureError("no regular file")  # to open a pipe would wait for ever
            self.table: Table = read_table(path, status.st_size)
            if not damaged:
                self.table.check()
        except VersionError as error:
            raise VersionError(f"{path}: {error}") from error
        except (FeatureError, OSError) as error:
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
        # what is no UTF-8 is only met in a damaged shard, whose clips are named as well as can be
        return [clip_id.decode(errors="backslashreplace") for clip_id in self.table.ids]

    @property
    def nbytes(self) -> int:
        """Size of the file, in bytes."""
        return self.path.stat().st_size

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
        return self.table.valid_counts(self._maps[stream][1])

    def intact(self) -> bool:
        """Tell whether every byte of the file is as it was sealed."""
        return self.path.name == f"{self.recipe.fingerprint}-{file_hash(self.path)}.h5"

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
        """Hold a clip against its digests."""
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
    def _maps(self) -> dict[str, tuple[NDArray[np.float16], NDArray[np.bool_]]]:
        try:
            with open(self.path, "rb") as file:
                whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ, **MAP_OPTIONS)
        except FileNotFoundError as error:
            raise FeatureError(
                f"{self.path} is gone: was its store compacted, or rid of clips? Open it again"
            ) from error
        return {
            name: (
                np.ndarray((at.total, at.features), "<f2", whole, at.rows_at),
                np.ndarray((at.total,), "?", whole, at.valid_at),
            )
            for name, at in self.table.extents.items()
        }


def file_hash(path: Path) -> str:
    """Return the start of the SHA-256 of a file, as it stands in a shard's name."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_clip(clip_id: str, clip: Features, recipe: Recipe) -> None:
    """Refuse a clip that does not fit a recipe, or whose id is none, by a `FeatureError`."""
    check_id(clip_id)
    found = {name: rows.shape[1] for name, rows in clip.streams.items()}
    wanted = {name: int(settings["features"]) for name, settings in recipe.streams.items()}
    if found != wanted or clip.snippet_seconds != recipe.snippet_seconds:
        raise FeatureError(
            f"clip {clip_id}: streams {found} of {clip.snippet_seconds} s do not fit the store's "
            f"recipe ({wanted} of {recipe.snippet_seconds} s)"
        )
    if len(clip) == 0:
        raise FeatureError(f"clip {clip_id}: no snippets")
