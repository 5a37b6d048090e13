"""Writing one shard: all of it or nothing, whatever kills the writer.

The format is written down in FORMAT.md.
"""

from __future__ import annotations

import io
import math
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from features.clip_features import Features
from features.format.shard_index import (
    COLUMNS,
    FORMAT,
    VERSION,
    check_id,
    clip_digest,
    clip_header,
    tables_checksum,
)
from features.format.shard_name import ShardName, file_hash
from features.recipe import FeatureError, Recipe, WriteError
from features.store_files import open_regular

BLOCK_BYTES = 2**20
ALIGNMENT = 64  # bytes; of every array, so that mapped rows suit any processor
MOST_FLAGS = 255  # they are a byte
SOURCE = re.compile(r"([0-9a-f]{64})?")


def write_shard(
    folder: Path, recipe: Recipe, clips: Mapping[str, Features], scratch: Path | None = None
) -> Path:
    """Write `clips` as one sealed shard in `folder` and return its path.

    The shard is written under a temporary name, flushed to disk and renamed: a reader sees all of
    it or nothing, whatever kills the writer.

    Args:
        folder: where the shard goes; it must exist.
        recipe: of the clips.
        clips: at least one.
        scratch: where the temporary file goes, on the same disk; `folder` if None.

    Raises:
        FeatureError: a clip does not fit the recipe, or its id is not a valid one.
        WriteError: the disk is full, or the folder is read-only or missing; nothing is left behind.
    """
    for clip_id, clip in clips.items():
        check_clip(clip_id, clip, recipe)
    temporary = (scratch or folder) / f".writing-{uuid.uuid4().hex}"
    try:
        made = open_regular(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        with os.fdopen(made, "w+b", buffering=0) as disk:
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
        sealed = folder / str(ShardName(recipe.fingerprint, file_hash(temporary)))
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

    def _try(self, action: Callable[[], int], default: int) -> int:
        if self.error is None:
            try:
                return action()
            except OSError as error:
                self.error = error
        return default

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
    """Return the error to raise when writing to `folder` failed.

    Args:
        folder: a store's folder.
        error: what the system reported, if anything.
    """
    if not folder.is_dir():
        reason = "the folder is gone"
    elif isinstance(error, OSError) and error.errno:
        reason = os.strerror(error.errno).lower()
    else:
        reason = str(error)
    return WriteError(
        f"{folder}: cannot write there ({reason}); what was sealed is safe: fix this and run the "
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
        # HDF5 allocates in the order of writing: the rows come last, so that the tables of a
        # distant shard can be read from its first bytes
        shape = (int(lengths.sum()), int(settings["features"]))
        rows = file.create_dataset(f"streams/{name}/rows", shape, dtype="<f2", track_times=False)
        first = 0
        for block in _blocks([clip.streams[name] for clip in clips.values()]):
            rows[first : first + len(block)] = block
            first += len(block)
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


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_clip(clip_id: str, clip: Features, recipe: Recipe) -> None:
    """Refuse a clip that a store of a recipe cannot hold.

    Args:
        clip_id: its id.
        clip: its features.
        recipe: of the store.

    Raises:
        FeatureError: its streams do not fit the recipe, its id is not valid, it is empty, or a
            reader would refuse its description.
    """
    check_id(clip_id)
    arrays_fit = all(
        rows.dtype == np.float16
        and rows.ndim == 2
        and valid.dtype == np.bool_
        and valid.ndim == 1
        # foreign bytes taken for bool may be neither 0 nor 1
        and not (valid.view(np.uint8) > 1).any()
        for rows, valid in zip(clip.streams.values(), clip.valid.values(), strict=True)
    )
    if not arrays_fit:
        raise FeatureError(
            f"clip {clip_id}: expected rows (T, D) in float16, and validity masks (T,) of bool"
        )
    if not (math.isfinite(clip.duration) and clip.duration >= 0 and 0 <= clip.flags <= MOST_FLAGS):
        raise FeatureError(
            f"clip {clip_id}: a duration of {clip.duration} s and flags {int(clip.flags)}; "
            f"expected seconds from 0 on, and flags from 0 to {MOST_FLAGS}"
        )
    if not SOURCE.fullmatch(clip.source):
        raise FeatureError(
            f"clip {clip_id}: source {clip.source[:80]!r}; expected a SHA-256 in hexadecimal, or ''"
        )
    found = {name: rows.shape[1] for name, rows in clip.streams.items()}
    wanted = {name: int(settings["features"]) for name, settings in recipe.streams.items()}
    if found != wanted or clip.snippet_seconds != recipe.snippet_seconds:
        raise FeatureError(
            f"clip {clip_id}: streams {found} of {clip.snippet_seconds} s do not fit the store's "
            f"recipe ({wanted} of {recipe.snippet_seconds} s)"
        )
    if len(clip) == 0:
        raise FeatureError(f"clip {clip_id}: no snippets")


def check_values(clip_id: str, clip: Features) -> None:
    """Refuse rows that are marked valid and have values that are not finite.

    Args:
        clip_id: its id.
        clip: its features.
    """
    for name, rows in clip.streams.items():
        lost = clip.valid[name] & ~np.isfinite(rows).all(1)
        if lost.any():
            raise FeatureError(
                f"clip {clip_id}: {lost.sum()} rows of the stream {name} are marked valid "
                "but have values that are not finite; expected numbers up to 65,504"
            )
