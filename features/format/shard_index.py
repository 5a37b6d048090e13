"""The tables of a shard: its recipe, its clips and where their rows lie.

A shard may come from a stranger: nothing is allocated or followed before it is known to lie inside
the file. The layout is written down in FORMAT.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from features.recipe import MOST_BYTES, FeatureError, Recipe, VersionError

FORMAT = "avarnet-features"
VERSION = 2
MAX_ID_BYTES = 200
# of all tables of a shard, enough for seven million clips: a sparse file can have any size
MAX_TABLE_BYTES = 2**30
DIGEST_BYTES = 16
COLUMNS = {"first_row": "<i8", "rows": "<i8", "duration": "<f8", "flags": "|u1"}
# control characters, and what no UTF-8 has
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# letters by which a bad id may begin to show, in UTF-8: a quick screen over all ids at once
SUSPICIOUS = re.compile(rb"[\x01-\x1f\x7f\\\xc2\xe2]")


class Extent(NamedTuple):
    """Where one stream's arrays lie in the file."""

    rows_at: int  # byte offset of (total, features) float16
    valid_at: int  # byte offset of (total,) uint8
    total: int
    features: int


@dataclass(frozen=True)
class Table:
    """The tables of one shard, n clips.

    Attributes:
        recipe: of all its features.
        ids: n clip ids, UTF-8.
        first_row, rows: (n,) int64, where a clip's rows begin in every stream, and how many.
        duration: (n,) float64, seconds of footage.
        flags: (n,) uint8, see `Flag`.
        source: (n, 32) uint8, SHA-256 of the video file; zeros if unknown.
        digests: stream -> (n, 16) uint8, see `clip_digest`.
        extents: stream -> where its rows lie.
        intact: whether the tables are as they were written.
    """

    recipe: Recipe
    ids: list[bytes]
    first_row: NDArray[np.int64]
    rows: NDArray[np.int64]
    duration: NDArray[np.float64]
    flags: NDArray[np.uint8]
    source: NDArray[np.uint8]
    digests: dict[str, NDArray[np.uint8]]
    extents: dict[str, Extent]
    intact: bool

    def check(self) -> None:
        """Refuse tables that were changed, or that would lead a reader astray.

        Raises:
            FeatureError: the first thing that is wrong.
        """
        if not self.intact:
            raise FeatureError("its tables were changed")
        _check_ids(self.ids)
        if not self.placed(slice(None)).all():
            raise FeatureError("its table points outside its rows")
        if not (np.isfinite(self.duration) & (self.duration >= 0)).all():
            raise FeatureError("its table has invalid durations")

    def valid_counts(self, valid: NDArray[Any]) -> NDArray[np.int64]:
        """Return (n,) how many rows of each clip are valid, of one stream's (total,) validity."""
        before = np.concatenate([[0], np.cumsum(valid, dtype=np.int64)])
        counts: NDArray[np.int64] = before[self.first_row + self.rows] - before[self.first_row]
        return counts

    def placed(self, index: slice) -> NDArray[np.bool_]:
        """Tell which clips' rows lie inside the streams' arrays."""
        first, rows = self.first_row[index], self.rows[index]
        total = min(extent.total for extent in self.extents.values())
        return (rows >= 1) & (rows <= total) & (first >= 0) & (first <= total - rows)

    def header(self, index: int) -> bytes:
        """Return what the digest of a clip covers beside its rows."""
        return clip_header(
            self.ids[index],
            float(self.duration[index]),
            int(self.flags[index]),
            bytes(self.source[index]),
        )


def read_table(file: Path | RawIOBase, size: int) -> Table:
    """Read the tables of a shard.

    Args:
        file: its path, or an open file that can seek.
        size: bytes of the file; no array may reach beyond it.

    Raises:
        VersionError: it is a shard of another version.
        FeatureError: it is not a shard, or an array is not as the format requires. The message does
            not name the file.
    """
    try:
        with h5py.File(file, "r", locking=False) as shard:
            return _read(shard.id, size)
    except FeatureError:
        raise
    except Exception as error:  # whatever HDF5 finds in a damaged or hostile file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FeatureError(f"damaged, or not a feature shard ({reason})") from error


def _read(shard: h5py.h5f.FileID, size: int) -> Table:
    if not h5py.h5a.exists(shard, b"format") or _text(shard, "format") != FORMAT:
        raise FeatureError("not a feature shard")
    version = _text(shard, "version")
    if version != str(VERSION):
        raise VersionError(
            f"format version {version}, this program reads {VERSION}; use the avarnet that fits it"
        )
    recipe_json = _text(shard, "recipe")
    recipe = Recipe.from_json(recipe_json)
    clips, streams = _group(shard, "clips"), _group(shard, "streams")
    ids, source = _plain(clips, "id", None, 1), _plain(clips, "source", "|u1", 2)
    columns = [_plain(clips, name, dtype, 1) for name, dtype in COLUMNS.items()]
    digests, extents = [], {}
    for name, settings in recipe.streams.items():
        stream = _group(streams, name)
        digests.append(_plain(stream, "digest", "|u1", 2))
        rows, valid = _plain(stream, "rows", "<f2", 2), _plain(stream, "valid", "|u1", 1)
        if rows.shape[1] != settings["features"] or valid.shape != rows.shape[:1]:
            raise FeatureError(f"stream {name} is not as its recipe says")
        if max(rows.offset + rows.nbytes, valid.offset + valid.nbytes) > size:
            raise FeatureError(f"cut short: stream {name} reaches beyond the end of the file")
        if rows.offset % 2:
            raise FeatureError(f"the rows of stream {name} are not aligned")
        extents[name] = Extent(rows.offset, valid.offset, *rows.shape)
    tables = [ids, *columns, source, *digests]
    if any(table.shape[0] != ids.shape[0] for table in tables):
        raise FeatureError("its tables differ in length")
    if source.shape[1] != 32 or any(table.shape[1] != DIGEST_BYTES for table in digests):
        raise FeatureError("its tables are not as the format requires")
    arrays = _load(tables, size)
    return Table(
        recipe=recipe,
        ids=arrays[0].tolist(),
        **dict(zip((*COLUMNS, "source"), arrays[1:], strict=False)),
        digests=dict(zip(recipe.streams, arrays[-len(digests) :], strict=True)),
        extents=extents,
        intact=_text(shard, "tables") == tables_checksum(recipe_json, arrays),
    )


def tables_checksum(recipe_json: str, arrays: Iterable[NDArray[Any]]) -> str:
    """Return the checksum of a shard's tables, 32 hexadecimal digits.

    Args:
        recipe_json: the shard's recipe as it is stored.
        arrays: every table, in the order of the format.
    """
    digest = xxhash.xxh3_128(recipe_json.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def clip_header(clip_id: bytes, duration: float, flags: int, source: bytes) -> bytes:
    """Return the part of a clip's digests that is the same for every stream.

    Args:
        clip_id: UTF-8.
        duration: seconds.
        flags: see `Flag`.
        source: SHA-256 of the video file, 32 bytes.
    """
    return b"\0".join((clip_id, np.float64(duration).tobytes(), bytes([flags]), source))


def clip_digest(header: bytes, rows: NDArray[np.float16], valid: NDArray[Any]) -> bytes:
    """Return the XXH3-128 of one clip in one stream.

    Args:
        header: see `clip_header`.
        rows: (T, D).
        valid: (T,) validity mask, as bool or uint8.
    """
    digest = xxhash.xxh3_128(header)
    digest.update(np.ascontiguousarray(rows, dtype="<f2").data)
    digest.update(np.ascontiguousarray(valid).data)
    return digest.digest()


def check_id(clip_id: str) -> None:
    """Refuse a clip id that could lead out of a folder or garble a list."""
    if (
        not clip_id
        or len(clip_id.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES
        or CONTROL.search(clip_id)
        or clip_id.startswith("/")
        or "\\" in clip_id
        or ".." in clip_id.split("/")
    ):
        raise FeatureError(
            f"clip id {clip_id[:MAX_ID_BYTES]!r}: expected 1 to {MAX_ID_BYTES} bytes of text that "
            "is no absolute path, without control characters and '..'; rename it in the manifest"
        )


def _check_ids(ids: list[bytes]) -> None:
    listing = b"\0".join(ids)
    try:
        listing.decode()
    except UnicodeDecodeError as error:
        raise FeatureError(f"its clip ids are not UTF-8 ({error})") from error
    paths = listing.startswith(b"/") or b"\0/" in listing or b".." in listing
    empty_or_nul = listing.count(b"\0") != len(ids) - 1 or not all(ids)
    if paths or empty_or_nul or SUSPICIOUS.search(listing):
        for clip_id in ids:
            check_id(clip_id.decode())


# HDF5's own interface from here on: through h5py's objects, opening a shard takes twice as long


def _text(shard: h5py.h5f.FileID, name: str) -> str:
    """Return a root attribute, which must be a short text of fixed length."""
    attribute = h5py.h5a.open(shard, name.encode())
    if (
        attribute.dtype.kind != "S"
        or attribute.shape != ()
        or attribute.get_storage_size() > MOST_BYTES
    ):
        raise FeatureError(f"its attribute {name} is not a text of at most {MOST_BYTES} bytes")
    value = np.empty((), attribute.dtype)
    attribute.read(value)
    return bytes(value[()]).decode()


def _group(parent: h5py.h5g.GroupID, name: str) -> h5py.h5g.GroupID:
    _refuse_links(parent, name)
    return h5py.h5g.open(parent, name.encode())


def _refuse_links(parent: h5py.h5g.GroupID, name: str) -> None:
    if parent.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise FeatureError(f"{name} is a link to elsewhere")


class _Plain(NamedTuple):
    """An array that is one plain stretch of this very file."""

    dataset: h5py.h5d.DatasetID
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int


def _plain(parent: h5py.h5g.GroupID, name: str, dtype: str | None, dimensions: int) -> _Plain:
    """Open an array, refusing all that is not one plain stretch of this very file."""
    _refuse_links(parent, name)
    dataset = h5py.h5d.open(parent, name.encode())
    settings = dataset.get_create_plist()
    contiguous = settings.get_layout() == h5py.h5d.CONTIGUOUS
    if not contiguous or settings.get_external_count():
        # checked first: to get the shape of a virtual array, HDF5 opens the files it names
        raise FeatureError(f"{name} is not one stretch of this file")
    shape, found = dataset.shape, dataset.dtype
    nbytes = math.prod(shape) * found.itemsize
    offset = dataset.get_offset()
    right = found.kind == "S" if dtype is None else found == np.dtype(dtype)
    if (
        not right
        or len(shape) != dimensions
        or found.itemsize > MAX_ID_BYTES
        or offset is None
        or dataset.get_storage_size() != nbytes
    ):
        raise FeatureError(f"{name} is not a plain array of {dtype or 'fixed-length text'}")
    return _Plain(dataset, offset, shape, found, nbytes)


def _load(tables: list[_Plain], size: int) -> list[NDArray[Any]]:
    """Read tables, which must lie inside the file and be no larger: that bounds what is allocated.

    Several tables in one place would allow many times the file's size.
    """
    if any(table.offset + table.nbytes > size for table in tables):
        raise FeatureError("cut short: its tables reach beyond the end of the file")
    if sum(table.nbytes for table in tables) > min(size, MAX_TABLE_BYTES):
        raise FeatureError("its tables are larger than those of a shard can be")
    arrays = [np.empty(table.shape, table.dtype) for table in tables]
    for table, array in zip(tables, arrays, strict=True):
        table.dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return arrays
