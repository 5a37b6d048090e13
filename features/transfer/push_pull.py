"""Handing stores around: push and pull over whatever fsspec reaches, shard by shard.

A shard's name says its content, so only missing shards travel, what arrives is held against its
name, and a transfer that was cut off goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import io
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import numpy as np

from features.card import CARD_FILE
from features.clip_features import Features, Flag
from features.format.shard import SHARD_NAME, Shard, file_hash, sync_folder, write_error
from features.format.shard_index import Table, clip_digest, read_table
from features.overview import Entry
from features.recipe import FeatureError, Recipe
from features.store import RECIPE_FILE, Store, create, read_recipe
from features.writer import pack

PARTIAL = ".partial-"  # before a shard's name, while it travels
BLOCK = 8 * 2**20  # bytes that travel at once; what a cut can lose
TABLE_BLOCK = 2**20  # bytes read at once from a distant shard's tables
SMALL_FILE = 2**20  # most bytes of a recipe or card
AT_ONCE = 4  # transfers
TRIES = 3  # of a block, before a transfer counts as cut off
CLIPS_AHEAD = 64  # clips fetched before they are written
APPENDABLE = ("file", "local", "sftp", "ssh")  # what can go on with a file, and rename it
# s3fs and the library below it try 25 times, for minutes; `Remote.read` tries again by itself
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "config_kwargs": {"retries": {"total_max_attempts": 1}},
        "use_listings_cache": False,
    }
}
T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


@dataclass
class Transfer:
    """What a push or a pull did.

    Attributes:
        shards: those that travelled, whole.
        clips: those that travelled alone (`pull` with ``trim``).
        already: how many shards (or clips) were there before.
        missing: clips asked for that the distant store lacks.
        nbytes: that travelled.
        seconds: it took.
    """

    shards: list[str] = field(default_factory=list)
    clips: list[str] = field(default_factory=list)
    already: int = 0
    missing: list[str] = field(default_factory=list)
    nbytes: int = 0
    seconds: float = 0.0


def push(store: Path, url: str, progress: Progress = lambda *_: None) -> Transfer:
    """Send the shards of a store that the store at `url` lacks.

    Args:
        store: the store's folder.
        url: a folder, ``s3://``, ``sftp://``, ``hf://`` or any other that fsspec writes to.
        progress: called with (bytes done, bytes in all), from several threads.

    Raises:
        FeatureError: the store there has another recipe, cannot be reached or written; or a shard
            here is damaged.
    """
    started = time.monotonic()
    here, recipe = _sealed(store), read_recipe(store)
    remote = Remote(url)
    remote.begin(recipe)
    there = remote.sizes()
    lacking = [file for file in here if there.get(file.name) != file.stat().st_size]
    transfer = Transfer([file.name for file in lacking], already=len(here) - len(lacking))
    meter = _Meter(sum(file.stat().st_size for file in lacking), progress)
    _at_once(lambda file: remote.send(file, meter), lacking, meter)
    if (store / CARD_FILE).exists():
        remote.write(CARD_FILE, (store / CARD_FILE).read_bytes())
    transfer.nbytes, transfer.seconds = meter.moved, time.monotonic() - started
    return transfer


def pull(
    url: str,
    store: Path,
    ids: Collection[str] | None = None,
    trim: bool = False,
    progress: Progress = lambda *_: None,
) -> Transfer:
    """Fetch shards that the store in the folder `store` lacks; it is made if absent.

    Args:
        url: the distant store: a folder, ``s3://``, ``sftp://``, ``http(s)://``, ``hf://``.
        store: the folder here.
        ids: fetch only the shards that hold one of these clips.
        trim: of these, fetch only the clips' own bytes, and seal them in shards of their own.
        progress: called with (bytes done, bytes in all), from several threads.

    Raises:
        FeatureError: the store here has another recipe; the distant one cannot be reached, or what
            arrived is not what its name says.
        WriteError: the store here cannot be written.
    """
    started = time.monotonic()
    remote = Remote(url)
    create(store, remote.recipe)
    sizes = remote.sizes()
    here = Store(store)
    transfer = Transfer()
    meter = _Meter(0, progress)
    if ids is None:
        tables = {}
        wanted = list(sizes)
    else:
        tables = remote.tables()
        asked = {clip_id.encode("utf-8", "surrogatepass") for clip_id in ids}
        known = {clip_id for table in tables.values() for clip_id in table.ids}
        transfer.missing = sorted(clip_id.decode(errors="replace") for clip_id in asked - known)
        lacking = {clip_id for clip_id in asked & known if clip_id.decode() not in here}
        wanted = [name for name, table in tables.items() if not lacking.isdisjoint(table.ids)]
        transfer.already = len(asked & known) - len(lacking)
    if trim and ids is not None:
        chosen = _first_places(tables, lacking)
        meter.grow(sum(_clip_bytes(tables[name], index) for name, index in chosen))
        arrived = remote.clips(tables, chosen, meter)

        def noted() -> Iterator[tuple[str, Features]]:
            for clip_id, features in arrived:
                transfer.clips.append(clip_id)
                yield clip_id, features

        pack(store, noted(), remote.recipe)
    else:
        travelling = [name for name in wanted if not (store / name).exists()]
        if ids is None:
            transfer.already = len(wanted) - len(travelling)
        meter.grow(sum(sizes[name] for name in travelling))
        _at_once(lambda name: remote.fetch(name, sizes[name], store, meter), travelling, meter)
        transfer.shards = travelling
    if ids is None and (card := remote.read_small(CARD_FILE)):
        (store / CARD_FILE).write_bytes(card)
    transfer.nbytes, transfer.seconds = meter.moved, time.monotonic() - started
    return transfer


class Remote:
    """A store at a URL, listed and read without fetching it.

    Raises:
        FeatureError: there is none, or it cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._local = threading.local()
        self._sizes: dict[str, int] = {}
        with self._reported():
            self._connect()

    @property
    def recipe(self) -> Recipe:
        """Recipe of the store there."""
        content = self.read_small(RECIPE_FILE)
        if content is None:
            raise FeatureError(f"{self.url} is no feature store: it has no {RECIPE_FILE}")
        try:
            return Recipe.from_json(content.decode())
        except (FeatureError, UnicodeDecodeError) as error:
            raise FeatureError(f"{self.url}/{RECIPE_FILE}: {error}") from error

    def begin(self, recipe: Recipe) -> None:
        """Make the place a store of `recipe`, or see that it is one."""
        if self.url.startswith(("http://", "https://")):
            raise FeatureError(f"{self.url}: http can only be pulled from; push to another place")
        if self.read_small(RECIPE_FILE) is None:
            self.write(RECIPE_FILE, (recipe.to_json() + "\n").encode())
        elif differing := recipe.differences(self.recipe):
            raise FeatureError(
                f"{self.url} holds features of another recipe; push to another place. Here: "
                + "; ".join(differing)
            )

    def sizes(self) -> dict[str, int]:
        """Return shard name -> bytes, of every sealed shard."""
        with self._reported():
            found = {}
            for entry in self._fs.ls(f"{self._root}/", detail=True):
                name = entry["name"].rstrip("/").rpartition("/")[2]
                if SHARD_NAME.fullmatch(name):
                    size = entry.get("size")
                    found[name] = int(self._fs.size(entry["name"]) if size is None else size)
            self._sizes = dict(sorted(found.items()))
            return self._sizes

    def tables(self) -> dict[str, Table]:
        """Return shard name -> its tables, reading no rows.

        Raises:
            FeatureError: a shard's tables are damaged, or of another recipe than the store's.
        """
        sizes, fingerprint = self.sizes(), self.recipe.fingerprint
        files = [_RangeFile(self, name, size) for name, size in sizes.items()]
        _at_once(_RangeFile.begin, files)  # HDF5 reads one file at a time; the network need not
        tables = {}
        for file in files:
            try:
                table = read_table(file, file.size)
                table.check()
            except FeatureError as error:
                raise FeatureError(f"{self.url}/{file.name}: {error}") from error
            if table.recipe.fingerprint != fingerprint:
                raise FeatureError(f"{self.url}/{file.name}: of another recipe than its store")
            tables[file.name] = table
        return tables

    def entries(self) -> Iterator[Entry]:
        """Yield every clip there, once."""
        seen: set[bytes] = set()
        for table in self.tables().values():
            for index, clip_id in enumerate(table.ids):
                if clip_id not in seen:
                    seen.add(clip_id)
                    yield Entry(
                        clip_id.decode(),
                        int(table.rows[index]),
                        float(table.duration[index]),
                        Flag(int(table.flags[index])),
                    )

    def read(self, name: str, start: int, end: int, size: int) -> bytes:
        """Return the bytes of a file from `start` to `end`, or to its end where that comes anyway.

        A network that falters is tried again. Some simple HTTP servers know no parts of files and
        send the whole of it, `size` bytes: then all the rest is returned.
        """
        for attempt in range(TRIES):
            try:
                content = self._range(f"{self._root}/{name}", start, end)
                break
            except Exception:
                if attempt == TRIES - 1:
                    raise
                time.sleep(0.5 * (attempt + 1))
                self._connect()
        if len(content) == end - start:
            return content
        if len(content) == size:
            return content[start:]
        raise FeatureError(
            f"{self.url}/{name}: {len(content)} bytes came where {end - start} were asked for; it "
            "was changed meanwhile, or is cut short there"
        )

    def read_small(self, name: str) -> bytes | None:
        """Return a small file, or None if it is not there."""
        with self._reported():
            path = f"{self._root}/{name}"
            try:
                size = self._fs.size(path)
            except FileNotFoundError as error:
                cause = error.__cause__  # fsspec's http says "not found" of any failure
                if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                    raise cause from None
                return None
            if size is None or size > SMALL_FILE:
                raise FeatureError(f"{self.url}/{name}: too large to be one")
            content: bytes = self._fs.cat_file(path)
            return content

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        with self._reported():
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{name}", content)

    def fetch(self, name: str, size: int, folder: Path, meter: _Meter) -> None:
        """Fetch one shard into `folder`, going on with what an earlier try left there."""
        partial = folder / f"{PARTIAL}{name}"
        try:
            with open(partial, "ab") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise FeatureError(f"{partial}: another pull is fetching this shard") from None
                except OSError:
                    pass  # a file system without locks
                if file.tell() > size:
                    file.truncate(0)
                meter.skip(file.tell())
                while (at := file.tell()) < size:
                    with self._reported(name, at, size):
                        block = self.read(name, at, min(at + BLOCK, size), size)
                    file.write(block)
                    file.flush()
                    meter.add(len(block))
                os.fsync(file.fileno())
            self._admit(partial, name)
            partial.rename(folder / name)
            sync_folder(folder)
        except OSError as error:
            raise write_error(folder, error) from error

    def _admit(self, partial: Path, name: str) -> None:
        """Refuse, and delete, a shard that is not what its name says."""
        try:
            if file_hash(partial) != name[17:33]:
                raise FeatureError("what arrived is not what its name says: it is damaged there")
            if Shard(partial).recipe.fingerprint != name[:16]:
                raise FeatureError("of another recipe than its name says")
        except FeatureError as error:
            partial.unlink()
            raise FeatureError(f"{self.url}/{name}: {error}") from error

    def clips(
        self, tables: Mapping[str, Table], places: list[tuple[str, int]], meter: _Meter
    ) -> Iterator[tuple[str, Features]]:
        """Yield single clips, given as (shard name, number), fetching only their own bytes."""
        for first in range(0, len(places), CLIPS_AHEAD):
            some = places[first : first + CLIPS_AHEAD]
            yield from _at_once(
                lambda place: self._clip(tables[place[0]], *place, meter), some, meter
            )

    def _clip(self, table: Table, name: str, index: int, meter: _Meter) -> tuple[str, Features]:
        clip_id = table.ids[index].decode()
        first, count = int(table.first_row[index]), int(table.rows[index])
        streams, valid = {}, {}
        for stream, at in table.extents.items():
            row = 2 * at.features
            rows = self._part(name, at.rows_at + first * row, count * row)
            there = self._part(name, at.valid_at + first, count)
            meter.add(len(rows) + len(there))
            streams[stream] = np.frombuffer(rows, "<f2").reshape(count, at.features)
            valid[stream] = np.frombuffer(there, np.uint8)
            digest = clip_digest(table.header(index), streams[stream], valid[stream])
            if digest != table.digests[stream][index].tobytes() or valid[stream].max() > 1:
                raise FeatureError(f"{self.url}/{name}: clip {clip_id} is damaged there")
        source = table.source[index].tobytes()
        return clip_id, Features(
            streams,
            {stream: there.view(np.bool_) for stream, there in valid.items()},
            table.recipe.snippet_seconds,
            float(table.duration[index]),
            Flag(int(table.flags[index])),
            source.hex() if source.strip(b"\0") else "",
        )

    def _part(self, name: str, start: int, count: int) -> bytes:
        with self._reported():
            return self.read(name, start, start + count, self._sizes[name])[:count]

    def send(self, file: Path, meter: _Meter) -> None:
        """Send one sealed shard, going on with what an earlier try left there."""
        if file_hash(file) != file.name[17:33]:
            raise FeatureError(f"{file}: damaged; run 'avarnet features verify' on its store")
        size = file.stat().st_size
        with self._reported(file.name, 0, size):
            if set(APPENDABLE) & set(_protocols(self._fs)):
                self._append(file, meter)
            elif "s3" in _protocols(self._fs):
                self._upload_parts(file, meter)
            else:
                self._fs.put_file(str(file), f"{self._root}/{file.name}")
                meter.add(size)
            if self._fs.size(f"{self._root}/{file.name}") != size:
                raise FeatureError("not all of it arrived; push again")

    def _append(self, file: Path, meter: _Meter) -> None:
        """Send to a file system: append to a partial file, read it back, rename it."""
        partial = f"{self._root}/{PARTIAL}{file.name}"
        done = self._fs.size(partial) if self._fs.exists(partial) else 0
        if done > file.stat().st_size:
            self._fs.rm_file(partial)
            done = 0
        meter.skip(done)
        with open(file, "rb") as source, self._fs.open(partial, "ab" if done else "wb") as target:
            source.seek(done)
            while block := source.read(BLOCK):
                target.write(block)
                target.flush()
                meter.add(len(block))
        with open(file, "rb") as source:
            for at in range(0, file.stat().st_size, BLOCK):
                block = source.read(BLOCK)
                if self._range(partial, at, at + len(block)) != block:
                    self._fs.rm_file(partial)
                    raise FeatureError("what arrived there is damaged; push again")
        self._fs.mv(partial, f"{self._root}/{file.name}")

    def _upload_parts(self, file: Path, meter: _Meter) -> None:
        """Send to S3 as a multipart upload, keeping the parts of an earlier one cut off."""
        bucket, key, _ = self._fs.split_path(f"{self._root}/{file.name}")
        where = {"Bucket": bucket, "Key": key}
        try:
            begun = self._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
        except Exception as error:
            if "NoSuchUpload" not in str(error):  # what some servers say when there is none
                raise
            begun = {}
        uploads = [up["UploadId"] for up in begun.get("Uploads", []) if up["Key"] == key]
        if uploads:
            where["UploadId"] = uploads[0]
            listed = self._fs.call_s3("list_parts", **where).get("Parts", [])
        else:
            where["UploadId"] = self._fs.call_s3("create_multipart_upload", **where)["UploadId"]
            listed = []
        there = {part["PartNumber"]: part for part in listed}
        parts = []
        with open(file, "rb") as source:
            number = 0
            while block := source.read(BLOCK):
                number += 1
                part = there.get(number)
                if part and part["Size"] == len(block):
                    meter.skip(len(block))
                else:
                    part = self._fs.call_s3("upload_part", **where, PartNumber=number, Body=block)
                    meter.add(len(block))
                parts.append({"PartNumber": number, "ETag": part["ETag"]})
        self._fs.call_s3("complete_multipart_upload", **where, MultipartUpload={"Parts": parts})
        self._fs.invalidate_cache(self._root)

    def _range(self, path: str, start: int, end: int) -> bytes:
        if {"sftp", "ssh"} & set(_protocols(self._fs)):
            with self._fs.open(path, "rb") as file:
                # sends all its requests at once; a plain read waits for each 32 KiB
                content: bytes = b"".join(file.readv([(start, end - start)]))
                return content
        content = self._fs.cat_file(path, start=start, end=end)
        return bytes(content)

    def _connect(self) -> None:
        """Make this thread's own connection: not all of fsspec's can be shared by threads."""
        scheme, found, _ = self.url.partition("://")
        if not found:  # in a folder's name, fsspec would look for file:, data: and ::
            self._local.fs = fsspec.filesystem("file", skip_instance_cache=True)
            self._local.root = os.path.abspath(os.path.expanduser(self.url))
            return
        self._local.fs, self._local.root = fsspec.url_to_fs(
            self.url,
            skip_instance_cache=True,
            **OPTIONS.get(scheme, {}),
        )
        if scheme == "s3":
            self._local.fs.retries = 1

    @property
    def _fs(self) -> Any:
        if not hasattr(self._local, "fs"):
            self._connect()
        return self._local.fs

    @property
    def _root(self) -> str:
        self._fs  # noqa: B018 - connects
        root: str = self._local.root
        return root.rstrip("/")

    @contextmanager
    def _reported(self, name: str = "", at: int = 0, size: int = 0) -> Iterator[None]:
        """Turn whatever a file system raises into an error that says what to do."""
        try:
            yield
        except FeatureError:
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if name:
                raise FeatureError(
                    f"{self.url}: the transfer of {name} was cut off ({reason}); run the same "
                    "command again to go on where it stopped"
                ) from error
            raise FeatureError(f"{self.url}: cannot be reached or read ({reason})") from error


class _RangeFile(io.RawIOBase):
    """The beginning of a distant shard as a file; more is fetched as HDF5 asks for it."""

    def __init__(self, remote: Remote, name: str, size: int) -> None:
        self.name, self.size = name, size
        self._remote, self._blocks, self._at = remote, dict[int, bytes](), 0

    def begin(self) -> None:
        """Fetch the first block, where the tables of most shards are."""
        self._block(0)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * TABLE_BLOCK
            with self._remote._reported():
                end = min(start + TABLE_BLOCK, self.size)
                block = self._remote.read(self.name, start, end, self.size)
            self._blocks[number] = block[: end - start]
        return self._blocks[number]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        number, skip = divmod(self._at, TABLE_BLOCK)
        if self._at >= self.size:
            return 0
        block = self._block(number)[skip : skip + len(view)]
        view[: len(block)] = block
        self._at += len(block)
        return len(block)


class _Meter:
    """Counts what travels, over several threads."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.moved = 0
        self._done, self._total, self._progress = 0, total, progress
        self._lock = threading.Lock()
        self._stopped = False
        progress(0, total)

    def stop(self) -> None:
        """Make every transfer end at its next block."""
        self._stopped = True

    def grow(self, nbytes: int) -> None:
        self._total += nbytes
        self._progress(self._done, self._total)

    def skip(self, nbytes: int) -> None:
        """Count what an earlier try moved."""
        if self._stopped:
            raise FeatureError("interrupted")
        with self._lock:
            self._done += nbytes
            self._progress(self._done, self._total)

    def add(self, nbytes: int) -> None:
        with self._lock:
            self.moved += nbytes
        self.skip(nbytes)


def _sealed(store: Path) -> list[Path]:
    return sorted(f for f in store.glob("[!.]*.h5") if SHARD_NAME.fullmatch(f.name) and f.is_file())


def _at_once(work: Callable[[T], R], items: Iterable[T], meter: _Meter | None = None) -> list[R]:
    """Do several transfers at once; the first error is raised when the others have ended."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            wait(futures)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            if meter:
                meter.stop()
            raise
    return [future.result() for future in futures]


def _first_places(tables: Mapping[str, Table], wanted: set[bytes]) -> list[tuple[str, int]]:
    """Return where each wanted clip is, as (shard name, number in it)."""
    places: dict[bytes, tuple[str, int]] = {}
    for name, table in tables.items():
        for index, clip_id in enumerate(table.ids):
            if clip_id in wanted:
                places.setdefault(clip_id, (name, index))
    return list(places.values())


def _clip_bytes(table: Table, index: int) -> int:
    count = int(table.rows[index])
    return sum(count * (2 * at.features + 1) for at in table.extents.values())


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
