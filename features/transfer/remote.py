"""A store at a URL, whatever fsspec reaches: listed, read in parts, written to."""

from __future__ import annotations

import asyncio
import io
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractBufferedFile

from features.clip_features import Flag
from features.format.shard_index import Table, read_table
from features.format.shard_name import SHARD_NAME, ShardName
from features.overview import Entry
from features.recipe import FeatureError, Recipe
from features.redaction import redacted
from features.store import RECIPE_FILE
from features.store_files import open_regular, replace_file
from features.transfer.body_limits import CHUNK, MOST_BODY
from features.transfer.parallel import Meter, at_once
from features.transfer.response_limits import (
    Write,
    http_options,
    http_part,
    s3_options,
    s3_part,
    sftp_part,
)
from features.transfer.stall_timeout import Moved, StalledError, in_a_thread, result_of

PARTIAL = ".partial-"  # before a shard's name, while it is transferred
BLOCK = 8 * 2**20  # bytes transferred at once; what an interruption can lose
TABLE_BLOCK = 2**20  # bytes read at once from a distant shard's tables
SMALL_FILE = 2**20  # most bytes of a recipe or card
MOST_SHARDS = 100_000  # of a store
TABLES_AT_ONCE = 16  # shards whose first block is kept until it is read
TRIES = 3  # of a block, before a transfer counts as cut off
HTTP = {"http", "https"}
SSH = {"sftp", "ssh"}
LISTED_SHARD = re.compile(SHARD_NAME.pattern.encode())  # in a server's page
LOCAL = {"file", "local"}
APPENDABLE = {*LOCAL, *SSH}  # file systems that can append, and rename


class Remote:
    """A store at a URL, listed and read without fetching it.

    Attributes:
        name: the URL as it is shown, without password or key.

    Raises:
        FeatureError: there is no store, or it cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.name = redacted(self.url)
        self._local = threading.local()
        with self.reported():
            self._connect()

    @property
    def recipe(self) -> Recipe:
        """Recipe of the store."""
        content = self.read_small(RECIPE_FILE)
        if content is None:
            raise FeatureError(f"{self.name} is not a feature store: it has no {RECIPE_FILE}")
        try:
            return Recipe.from_json(content.decode())
        except (FeatureError, UnicodeDecodeError) as error:
            raise FeatureError(f"{self.name}/{RECIPE_FILE}: {error}") from error

    def create(self, recipe: Recipe) -> None:
        """Make the place a store of `recipe`; a store that exists there must have the same one.

        Raises:
            FeatureError: it has another one, or the place cannot be written to.
        """
        if self.url.startswith(("http://", "https://")):
            raise FeatureError(f"{self.name}: http can only be pulled from; push to another place")
        if self.read_small(RECIPE_FILE) is None:
            self.write(RECIPE_FILE, (recipe.to_json() + "\n").encode())
        elif differing := recipe.differences(self.recipe):
            raise FeatureError(
                f"{self.name} holds features of another recipe; push to another place. Here: "
                + "; ".join(differing)
            )

    def sizes(self) -> dict[ShardName, int]:
        """Return shard name -> bytes, of every sealed shard.

        Raises:
            FeatureError: the place cannot be listed, or lists too much.
        """
        with self.reported():
            found: dict[ShardName, int | None] = {}
            for text, size in self._listed():
                if name := ShardName.parse(text):
                    found[name] = size
                    if len(found) > MOST_SHARDS:
                        raise FeatureError(f"{self.name}: lists more than {MOST_SHARDS} shards")
            sizes = {}
            for name, told in sorted(found.items()):
                size = self._size(str(name)) if told is None else told
                if size is None:
                    raise FeatureError(f"{self.name}/{name}: its server does not tell its size")
                sizes[name] = size
            return sizes

    def _listed(self) -> Iterable[tuple[str, int | None]]:
        """Return the names of files there, and their sizes where they are told."""
        fs, root = self._fs, self._root
        if HTTP & self._protocols:
            page, moved = bytearray(), Moved()
            whole = http_part(fs, f"{root}/", 0, MOST_BODY + 1, page.extend, moved, ranged=False)
            try:
                result_of(asyncio.run_coroutine_threadsafe(whole, fs.loop), moved)
            except FeatureError as error:
                raise FeatureError(f"{self.name}/: {error}") from error
            if len(page) > MOST_BODY:
                raise FeatureError(f"{self.name}/: its list is longer than {MOST_BODY} bytes")
            return [(found[0].decode(), None) for found in LISTED_SHARD.finditer(page)]
        if SSH & self._protocols:
            files = fs.ftp.listdir_iter(root)
            return result_of(
                in_a_thread(
                    lambda: [(f.filename, f.st_size) for f in islice(files, MOST_SHARDS + 100)]
                )
            )
        entries = result_of(in_a_thread(lambda: fs.ls(f"{root}/", detail=True)))
        return [(e["name"].rstrip("/").rpartition("/")[2], e.get("size")) for e in entries]

    def _size(self, name: str) -> int | None:
        """Return the bytes of a file as its server tells them, if it does."""
        fs, path = self._fs, f"{self._root}/{name}"
        size = result_of(in_a_thread(lambda: fs.size(path)))
        return None if size is None else int(size)

    def tables(self, sizes: Mapping[ShardName, int] | None = None) -> dict[ShardName, Table]:
        """Return shard name -> its tables, reading no rows.

        Args:
            sizes: what `sizes` returned, if it was asked before.

        Raises:
            FeatureError: a shard's tables are damaged, or of another recipe than the store's.
        """
        shards = list((self.sizes() if sizes is None else sizes).items())
        fingerprint = self.recipe.fingerprint
        tables = {}
        for first in range(0, len(shards), TABLES_AT_ONCE):
            files = [_RemoteShard(self, *s) for s in shards[first : first + TABLES_AT_ONCE]]
            # HDF5 reads one file at a time, the network need not: most tables are in that block
            at_once(_RemoteShard.fetch_first_block, files)
            for file in files:
                try:
                    table = read_table(file, file.size)
                    table.check()
                except FeatureError as error:
                    raise FeatureError(f"{self.name}/{file.name}: {error}") from error
                if table.recipe.fingerprint != fingerprint:
                    raise FeatureError(f"{self.name}/{file.name}: of another recipe than its store")
                tables[file.name] = table
        return tables

    def entries(self) -> Iterator[Entry]:
        """Yield every clip of the store, once."""
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

    def read(self, name: ShardName, start: int, end: int) -> bytes:
        """Return some bytes of a shard, trying again where the network falters.

        Args:
            name: of the shard.
            start: the first byte.
            end: the byte after the last.

        Raises:
            FeatureError: another number of bytes came.
        """
        content = bytearray()
        while len(content) < end - start:
            self.fetch(name, start + len(content), end, content.extend)
        return bytes(content)

    def fetch(self, name: ShardName, start: int, end: int, write: Write) -> None:
        """Hand on some bytes of a shard, or the first of them where the network falters.

        Args:
            name: of the shard.
            start: the first byte.
            end: the byte after the last.
            write: takes them, one after another.

        Raises:
            FeatureError: another number of bytes came.
        """
        came = 0

        def take(chunk: bytes) -> None:
            nonlocal came
            came += len(chunk)
            write(chunk)

        if not HTTP & self._protocols:  # where simple servers send whole files only
            end = min(end, start + BLOCK)
        for attempt in range(TRIES):
            try:
                self._fetch_part(f"{self._root}/{name}", start, end, take)
                break
            except StalledError:
                raise
            except FeatureError as error:
                raise FeatureError(f"{self.name}/{name}: {error}") from error
            except Exception:
                if attempt == TRIES - 1 and not came:
                    raise
                time.sleep(0.5 * (attempt + 1))
                self._connect()
                if came:
                    return
        if came != end - start:
            raise FeatureError(
                f"{self.name}/{name}: {came} bytes came where {end - start} were asked for; it "
                "was changed meanwhile, or is cut short"
            )

    def read_small(self, name: str) -> bytes | None:
        """Return a small file, or None if there is none of this name.

        Raises:
            FeatureError: it is too large, or more of it comes than its server says.
        """
        with self.reported():
            try:
                size = self._size(name)
            except FileNotFoundError as error:
                cause = error.__cause__  # fsspec's http reports any failure as "not found"
                if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                    raise cause from None
                return None
            most = SMALL_FILE if size is None else size
            if most > SMALL_FILE:
                raise FeatureError(f"{self.name}/{name}: too large to be one")
            # of a server that may lie, a byte more is asked for
            more = int(bool((HTTP | {"s3"}) & self._protocols))
            try:
                content = self._part(f"{self._root}/{name}", 0, most + more)
            except FeatureError as error:
                raise FeatureError(f"{self.name}/{name}: {error}") from error
            if len(content) > most:
                said = "too large to be one" if size is None else f"its server says {size} bytes"
                raise FeatureError(f"{self.name}/{name}: more than {most} bytes came; {said}")
            return content

    def write(self, name: str, content: bytes) -> None:
        """Write a small file.

        Args:
            name: of the file.
            content: all of it.
        """
        with self.reported():
            fs, root, here = self._fs, self._root, bool(LOCAL & self._protocols)

            def put() -> None:
                fs.makedirs(root, exist_ok=True)
                if here:
                    replace_file(Path(root, name), content)
                    return
                fs.pipe_file(f"{root}/{name}", content)

            result_of(in_a_thread(put), nbytes=len(content))

    def send(self, name: ShardName, file: Path, meter: Meter) -> None:
        """Send one sealed shard, resuming what an earlier try left at the other end.

        Args:
            name: of the shard.
            file: where it is.
            meter: counts its bytes.

        Raises:
            FeatureError: the transfer was cut off, or what arrived is damaged.
        """
        size = file.stat().st_size
        with self.reported(name):
            if APPENDABLE & self._protocols:
                self._append(file, meter)
            elif "s3" in self._protocols:
                self._upload_parts(file, meter)
            else:
                fs, path = self._fs, f"{self._root}/{file.name}"
                result_of(in_a_thread(lambda: fs.put_file(str(file), path)), nbytes=size)
                meter.add(size)
            if self._size(file.name) != size:
                raise FeatureError(f"{self.name}/{name}: not all of it arrived; push again")

    def delete(self, name: str) -> None:
        """Delete a file there, if there is one of this name."""
        with self.reported():
            fs, path = self._fs, f"{self._root}/{name}"
            with suppress(FileNotFoundError):
                result_of(in_a_thread(lambda: fs.rm_file(path)))

    def delete_unfinished(self) -> None:
        """Delete what pushes that were cut off have left there."""
        with self.reported():
            for name, _ in self._listed():
                if name.startswith(PARTIAL):
                    self.delete(name)
            if "s3" in self._protocols:
                bucket, key, _ = self._fs.split_path(f"{self._root}/")
                for upload in self._uploads(bucket, key):
                    target = {"Bucket": bucket, "Key": upload["Key"]}
                    self._call_s3("abort_multipart_upload", **target, UploadId=upload["UploadId"])

    def _uploads(self, bucket: str, prefix: str) -> list[Any]:
        """Return the multipart uploads to S3 that were begun and not completed."""
        try:
            found = self._call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
        except StalledError:
            raise
        except Exception as error:
            if "NoSuchUpload" not in str(error):  # how some servers report none
                raise
            return []
        return list(found.get("Uploads", []))

    def _append(self, file: Path, meter: Meter) -> None:
        """Send to a file system: to a partial file, which is read back and renamed."""
        moved, connection = Moved(), (self._fs, self._root)

        def append() -> None:
            self._local.fs, self._local.root = connection
            self._append_all(file, meter, moved)

        result_of(in_a_thread(append), moved)

    def _append_all(self, file: Path, meter: Meter, moved: Moved) -> None:
        fs, root, size = self._fs, self._root, file.stat().st_size
        partial = f"{root}/{PARTIAL}{file.name}"
        if LOCAL & self._protocols:
            os.close(open_regular(Path(partial), os.O_WRONLY | os.O_CREAT))
        done = fs.size(partial) if fs.exists(partial) else 0
        if done > size:
            fs.rm_file(partial)
            done = 0
        meter.skip(done)
        fs.open(partial, "ab").close()
        # of two pushes at once, each writes the same bytes in the same place, also when the other
        # one has renamed the file: to append would damage what is sealed
        with open(file, "rb") as source, fs.open(partial, "r+b") as target:
            source.seek(done)
            target.seek(done)
            while block := source.read(CHUNK):
                target.write(block)
                target.flush()
                moved.add(len(block))
                meter.add(len(block))
        with open(file, "rb") as source, suppress(FileNotFoundError):  # the other was faster

            def compare(block: bytes) -> None:
                moved.add(len(block))
                if source.read(len(block)) != block:
                    fs.rm_file(partial)
                    raise FeatureError(
                        f"{self.name}/{file.name}: what arrived there is damaged; push again"
                    )

            for at in range(0, size, BLOCK):
                self._fetch_part(partial, at, min(at + BLOCK, size), compare)
            fs.mv(partial, f"{root}/{file.name}")

    def _upload_parts(self, file: Path, meter: Meter) -> None:
        """Send to S3 as a multipart upload, keeping the parts of an earlier one cut off."""
        fs = self._fs
        bucket, key, _ = fs.split_path(f"{self._root}/{file.name}")
        target = {"Bucket": bucket, "Key": key}
        uploads = [up["UploadId"] for up in self._uploads(bucket, key) if up["Key"] == key]
        if uploads:
            target["UploadId"] = uploads[0]
            listed = self._call_s3("list_parts", **target).get("Parts", [])
        else:
            target["UploadId"] = self._call_s3("create_multipart_upload", **target)["UploadId"]
            listed = []
        uploaded = {part["PartNumber"]: part for part in listed}
        parts = []
        with open(file, "rb") as source:
            number = 0
            while block := source.read(BLOCK):
                number += 1
                part = uploaded.get(number)
                if part and part["Size"] == len(block):
                    meter.skip(len(block))
                else:
                    part = self._call_s3("upload_part", block, **target, PartNumber=number)
                    meter.add(len(block))
                parts.append({"PartNumber": number, "ETag": part["ETag"]})
        self._call_s3("complete_multipart_upload", **target, MultipartUpload={"Parts": parts})
        fs.invalidate_cache(self._root)

    def _call_s3(self, method: str, body: bytes | None = None, **settings: Any) -> Any:
        """Call a method of S3's, and wait for as long as bytes of its body move."""
        moved, fs = Moved(), self._fs
        if body is not None:
            settings["Body"] = _CountedBody(body, moved)
        call = fs._call_s3(method, **settings)
        return result_of(asyncio.run_coroutine_threadsafe(call, fs.loop), moved)

    def _part(self, path: str, start: int, end: int) -> bytes:
        content = bytearray()
        self._fetch_part(path, start, end, content.extend)
        return bytes(content)

    def _fetch_part(self, path: str, start: int, end: int, write: Write) -> None:
        """Hand on some bytes of a file, or fewer, where it ends before."""
        fs, moved = self._fs, Moved()
        if HTTP & self._protocols:
            part = http_part(fs, path, start, end, write, moved)
            result_of(asyncio.run_coroutine_threadsafe(part, fs.loop), moved)
        elif "s3" in self._protocols:
            part = s3_part(fs, path, start, end, write, moved)
            result_of(asyncio.run_coroutine_threadsafe(part, fs.loop), moved)
        elif SSH & self._protocols:
            result_of(in_a_thread(lambda: sftp_part(fs, path, start, end, write, moved)), moved)
        elif LOCAL & self._protocols:

            def read() -> bytes:
                with os.fdopen(open_regular(Path(path)), "rb") as file:
                    file.seek(start)
                    return file.read(end - start)

            write(result_of(in_a_thread(read), nbytes=end - start))
        else:
            content = in_a_thread(lambda: fs.cat_file(path, start=start, end=end))
            write(bytes(result_of(content, nbytes=end - start)))

    def _connect(self) -> None:
        """Make this thread's own connection: not all of fsspec's can be shared by threads."""
        scheme, found, _ = self.url.partition("://")
        if not found:  # in a folder's name, fsspec would look for file:, data: and ::
            self._local.fs = fsspec.filesystem("file", skip_instance_cache=True)
            self._local.root = os.path.abspath(os.path.expanduser(self.url))
            return
        if SSH & {part.partition("://")[0] for part in self.url.split("::")}:
            # fsspec's own way, and its chains of file systems, take any server's key
            if "::" in self.url:
                raise FeatureError(f"{self.name}: give the plain address, sftp://HOST/FOLDER")
            from features.transfer.sftp import CheckedSFTP  # takes a while

            settings = CheckedSFTP._get_kwargs_from_urls(self.url)
            self._local.fs = CheckedSFTP(**settings, skip_instance_cache=True)
            self._local.root = CheckedSFTP._strip_protocol(self.url)
            return
        self._local.fs, self._local.root = fsspec.url_to_fs(
            self.url, skip_instance_cache=True, **_options(scheme)
        )
        if scheme == "s3":
            self._local.fs.retries = 1

    @property
    def _protocols(self) -> set[str]:
        protocol = self._fs.protocol
        return {protocol} if isinstance(protocol, str) else set(protocol)

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
    def reported(self, name: ShardName | None = None) -> Iterator[None]:
        """Turn whatever a file system raises into an error that says what to do.

        Args:
            name: of the shard that is transferred, if one is.
        """
        try:
            yield
        except FeatureError:
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            reason = redacted(reason, self.url)
            # what a library says with a password in it shall not be seen in a traceback either
            cause = error if self.name == self.url else None
            if name:
                raise FeatureError(
                    f"{self.name}: the transfer of {name} was cut off ({reason}); run the same "
                    "command again to resume where it stopped"
                ) from cause
            raise FeatureError(f"{self.name}: cannot be reached or read ({reason})") from cause


def _options(scheme: str) -> dict[str, Any]:
    """Return what fsspec's file system for a scheme is made with."""
    if scheme in HTTP:
        return http_options(
            {**fsspec.config.conf.get("http", {}), **fsspec.config.conf.get(scheme, {})}
        )
    return s3_options() if scheme == "s3" else {}


class _CountedBody(io.BytesIO):
    """Bytes to be sent, counted when they are taken."""

    def __init__(self, body: bytes, moved: Moved) -> None:
        super().__init__(body)
        self._moved = moved

    def read(self, size: int | None = -1, /) -> bytes:
        block = super().read(size)
        self._moved.add(len(block))
        return block


class _RemoteShard(AbstractBufferedFile):  # type: ignore[misc]
    """A distant shard as a file, for HDF5: blocks of it are fetched as they are asked for."""

    def __init__(self, remote: Remote, name: ShardName, size: int) -> None:
        super().__init__(
            None, str(name), block_size=TABLE_BLOCK, cache_type="blockcache", size=size
        )
        self.name = name
        self._remote = remote

    def fetch_first_block(self) -> None:
        self.cache._fetch(0, 1)

    def _fetch_range(self, start: int, end: int) -> bytes:
        end = min(end, self.size)
        with self._remote.reported():
            return self._remote.read(self.name, start, end)
