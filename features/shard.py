"""One HDF5 file of many clips: written whole or not at all, never changed, read as mapped memory.

Format, version 1 (little-endian; N rows of all clips together, n clips, D values a row)::

    /                       attributes: format, version, fingerprint, recipe (JSON)
    /clips/id        (n,)   UTF-8, fixed length
    /clips/first_row (n,)   int64    where the clip's rows begin in every stream
    /clips/rows      (n,)   int64    how many snippets it has
    /clips/duration  (n,)   float64  seconds of footage
    /clips/flags     (n,)   uint8    see features.Flag
    /clips/source    (n,32) uint8    SHA-256 of the video file; zeros if unknown
    /streams/NAME/rows   (N, D)  float16, contiguous
    /streams/NAME/valid  (N,)    uint8    1 where there was something to see or hear
    /streams/NAME/digest (n,16)  uint8    BLAKE2b of each clip's rows and validity

A sealed shard is named FINGERPRINT-HASH.h5; HASH is the start of the SHA-256 of the whole file, so
the name alone tells whether a byte has changed.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from features.clip import Features, Flag
from features.recipe import FeatureError, Recipe

FORMAT = "avarnet-features"
VERSION = 1
MAX_ID_BYTES = 200
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def write_shard(folder: Path, recipe: Recipe, clips: Mapping[str, Features]) -> Path:
    """Write `clips` as one sealed shard in `folder` and return its path.

    The shard is written under a temporary name, flushed to disk and renamed: a reader sees all of
    it or nothing, whatever kills the writer.

    Raises:
        FeatureError: a clip does not fit the recipe, or its id is not one.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    for clip_id, clip in clips.items():
        _check_id(clip_id)
        _check_fits(clip_id, clip, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".writing-{uuid.uuid4().hex}"
    try:
        with h5py.File(temporary, "w", locking=False, libver=("v108", "v110")) as file:
            _fill(file, recipe, clips)
        sealed = folder / f"{recipe.fingerprint}-{_file_hash(temporary)}.h5"
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, sealed)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(folder)
    return sealed


def _fill(file: h5py.File, recipe: Recipe, clips: Mapping[str, Features]) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["version"] = VERSION
    file.attrs["fingerprint"] = recipe.fingerprint
    file.attrs["recipe"] = recipe.to_json()
    lengths = np.array([len(clip) for clip in clips.values()], dtype="<i8")
    ids = [clip_id.encode() for clip_id in clips]
    table = file.create_group("clips")
    id_type = h5py.string_dtype("utf-8", max(map(len, ids)))
    table.create_dataset("id", data=np.array(ids, dtype=id_type), dtype=id_type)
    table["rows"] = lengths
    table["first_row"] = np.cumsum(lengths) - lengths
    table["duration"] = np.array([clip.duration for clip in clips.values()], dtype="<f8")
    table["flags"] = np.array([clip.flags for clip in clips.values()], dtype="u1")
    table["source"] = np.array(
        [list(bytes.fromhex(clip.source or "00" * 32)) for clip in clips.values()], dtype="u1"
    )
    for name, settings in recipe.streams.items():
        stream = file.create_group(f"streams/{name}")
        shape = (int(lengths.sum()), int(settings["features"]))
        rows = stream.create_dataset("rows", shape, dtype="<f2")
        valid = stream.create_dataset("valid", shape[:1], dtype="u1")
        digests, first = [], 0
        for clip in clips.values():
            rows[first : first + len(clip)] = clip.streams[name]
            valid[first : first + len(clip)] = clip.valid[name]
            digests.append(list(_digest(clip.streams[name], clip.valid[name])))
            first += len(clip)
        stream["digest"] = np.array(digests, dtype="u1")


class Shard:
    """A sealed shard, open for reading.

    Its tables are read once; rows are read through a memory map, which needs no lock and is safe
    across threads and forked processes.

    Raises:
        FeatureError: the file is not a shard of this version, or its tables contradict the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with h5py.File(path, "r", locking=False) as file:
                if file.attrs.get("format") != FORMAT:
                    raise FeatureError(f"{path}: not a feature shard")
                if int(file.attrs["version"]) != VERSION:
                    raise FeatureError(
                        f"{path}: format version {file.attrs['version']}, this program reads "
                        f"{VERSION}; update avarnet"
                    )
                self.recipe = Recipe.from_json(file.attrs["recipe"])
                table = file["clips"]
                self.ids: list[str] = [clip_id.decode() for clip_id in table["id"][:]]
                self.first_row: NDArray[np.int64] = table["first_row"][:]
                self.rows: NDArray[np.int64] = table["rows"][:]
                self.duration: NDArray[np.float64] = table["duration"][:]
                self._flags: NDArray[np.uint8] = table["flags"][:]
                self._source: NDArray[np.uint8] = table["source"][:]
                self._digests: dict[str, NDArray[np.uint8]] = {}
                self._where: dict[str, tuple[int, int, tuple[int, int]]] = {}
                for name in self.recipe.streams:
                    stream = file[f"streams/{name}"]
                    self._digests[name] = stream["digest"][:]
                    self._where[name] = (
                        _offset(stream["rows"], "<f2"),
                        _offset(stream["valid"], "u1"),
                        stream["rows"].shape,
                    )
        except FeatureError:
            raise
        except (OSError, KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
            raise FeatureError(
                f"{path}: damaged or not a feature shard ({error}); delete it and extract or copy "
                "its clips again"
            ) from error
        self._check_tables()

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.ids)

    def read(self, index: int) -> Features:
        """Return the features of the clip at `index` of the table, as views of the mapped file."""
        first, last = self.first_row[index], self.first_row[index] + self.rows[index]
        source = bytes(self._source[index])
        return Features(
            {name: rows[first:last] for name, (rows, _) in self._maps.items()},
            {name: valid[first:last] for name, (_, valid) in self._maps.items()},
            self.recipe.snippet_seconds,
            float(self.duration[index]),
            Flag(int(self._flags[index])),
            source.hex() if any(source) else "",
        )

    def intact(self) -> bool:
        """Tell whether every byte of the file is as it was sealed."""
        return self.path.name == f"{self.recipe.fingerprint}-{_file_hash(self.path)}.h5"

    def damaged_clips(self) -> list[str]:
        """Return the ids of the clips whose rows are not as they were written."""
        return [
            clip_id
            for index, clip_id in enumerate(self.ids)
            if any(
                _digest(rows, clip.valid[name]) != bytes(self._digests[name][index])
                for clip in [self.read(index)]
                for name, rows in clip.streams.items()
            )
        ]

    @cached_property
    def _maps(self) -> dict[str, tuple[NDArray[np.float16], NDArray[np.bool_]]]:
        maps = {}
        for name, (rows_at, valid_at, shape) in self._where.items():
            rows = np.memmap(self.path, "<f2", "r", rows_at, shape)
            valid = np.memmap(self.path, "?", "r", valid_at, shape[:1])
            # plain arrays over the maps: a memmap object makes every slice several times dearer
            maps[name] = (np.asarray(rows), np.asarray(valid))
        return maps

    def _check_tables(self) -> None:
        """Refuse tables that would make a reader look outside the file."""
        size, count = self.path.stat().st_size, len(self.ids)
        for clip_id in self.ids:
            _check_id(clip_id)
        for column in (self.first_row, self.rows, self.duration, self._flags, self._source):
            if len(column) != count:
                raise FeatureError(f"{self.path}: its tables differ in length; delete the shard")
        for name, (rows_at, valid_at, shape) in self._where.items():
            if len(shape) != 2 or shape[1] != self.recipe.streams[name]["features"]:
                raise FeatureError(f"{self.path}: stream {name} is not as its recipe says")
            if rows_at + 2 * shape[0] * shape[1] > size or valid_at + shape[0] > size:
                raise FeatureError(f"{self.path}: cut short; copy it again or delete it")
            if (
                self._digests[name].shape != (count, 16)
                or (self.first_row < 0).any()
                or (self.rows < 1).any()
                or (self.first_row + self.rows > shape[0]).any()
            ):
                raise FeatureError(f"{self.path}: its table points outside its rows; delete it")


def _offset(dataset: h5py.Dataset, dtype: str) -> int:
    """Return where a contiguous dataset begins in its file, in bytes."""
    offset = dataset.id.get_offset()
    if offset is None or dataset.dtype != np.dtype(dtype) or dataset.external:
        raise FeatureError(f"{dataset.file.filename}: {dataset.name} is not a plain {dtype} array")
    return int(offset)


def _digest(rows: NDArray[np.float16], valid: NDArray[np.bool_]) -> bytes:
    digest = hashlib.blake2b(np.ascontiguousarray(rows, dtype="<f2").data, digest_size=16)
    digest.update(np.ascontiguousarray(valid, dtype="u1").data)
    return digest.digest()


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_id(clip_id: str) -> None:
    if (
        not clip_id
        or len(clip_id.encode()) > MAX_ID_BYTES
        or CONTROL.search(clip_id)
        or clip_id.startswith("/")
        or "\\" in clip_id
        or ".." in clip_id.split("/")
    ):
        raise FeatureError(
            f"clip id {clip_id!r}: expected 1 to {MAX_ID_BYTES} bytes of text that is no absolute "
            "path, without control characters and '..'; rename it in the manifest"
        )


def _check_fits(clip_id: str, clip: Features, recipe: Recipe) -> None:
    found = {name: rows.shape[1] for name, rows in clip.streams.items()}
    wanted = {name: int(settings["features"]) for name, settings in recipe.streams.items()}
    if found != wanted or clip.snippet_seconds != recipe.snippet_seconds:
        raise FeatureError(
            f"clip {clip_id}: streams {found} of {clip.snippet_seconds} s do not fit the store's "
            f"recipe ({wanted} of {recipe.snippet_seconds} s)"
        )
    if len(clip) == 0:
        raise FeatureError(f"clip {clip_id}: no snippets")
