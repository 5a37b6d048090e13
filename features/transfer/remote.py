"""A store at a URL, whatever fsspec reaches: listed, read in parts, written to."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractBufferedFile

from features.clip_features import Flag
from features.format.shard_index import Table, read_table
from features.format.shard_name import ShardName
from features.overview import Entry
from features.recipe import FeatureError, Recipe
from features.redaction import redacted
from features.store import RECIPE_FILE
from features.transfer.parallel import Meter, at_once

PARTIAL = ".partial-"  # before a shard's name, while it travels
BLOCK = 8 * 2**20  # bytes that travel at once; what a cut can lose
TABLE_BLOCK = 2**20  # bytes read at once from a distant shard's tables
SMALL_FILE = 2**20  # most bytes of a recipe or card
TRIES = 3  # of a block, before a transfer counts as cut off
SSH = {"sftp", "ssh"}
APPENDABLE = {"file", "local", *SSH}  # file systems that can append, and rename
# s3fs and the library below it try 25 times, for minutes; `Remote.read` tries again by itself
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "config_kwargs": {"retries": {"total_max_attempts": 1}},
        "use_listings_cache": False,
    }
}


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
        """Return shard name -> bytes, of every sealed shard."""
        with self.reported():
            found = {}
            for entry in self._fs.ls(f"{self._root}/", detail=True):
                name = ShardName.parse(entry["name"].rstrip("/").rpartition("/")[2])
                if name:
                    size = entry.get("size")
                    found[name] = int(self._fs.size(entry["name"]) if size is None else size)
            return dict(sorted(found.items()))

    def tables(self, sizes: Mapping[ShardName, int] | None = None) -> dict[ShardName, Table]:
        """Return shard name -> its tables, reading no rows.

        Args:
            sizes: what `sizes` returned, if it was asked before.

        Raises:
            FeatureError: a shard's tables are damaged, or of another recipe than the store's.
        """
        files = [_RemoteShard(self, *shard) for shard in (sizes or self.sizes()).items()]
        fingerprint = self.recipe.fingerprint
        # HDF5 reads one file at a time, the network need not: most tables are in the first block
        at_once(_RemoteShard.fetch_first_block, files)
        tables = {}
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

    def read(self, name: ShardName, start: int, end: int, size: int) -> bytes:
        """Return some bytes of a shard, trying again where the network falters.

        Some simple HTTP servers send whole files only: then all from `start` on is returned.

        Args:
            name: of the shard.
            start: the first byte.
            end: the byte after the last.
            size: of the whole shard.

        Raises:
            FeatureError: another number of bytes came.
        """
        for attempt in range(TRIES):
            try:
                content = self._range(f"{self._root}/{name}", start, end)
                break
            except FeatureError:
                raise
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
            f"{self.name}/{name}: {len(content)} bytes came where {end - start} were asked for; it "
            "was changed meanwhile, or is cut short"
        )

    def read_small(self, name: str) -> bytes | None:
        """Return a small file, or None if there is none of this name."""
        with self.reported():
            path = f"{self._root}/{name}"
            try:
                size = self._fs.size(path)
            except FileNotFoundError as error:
                cause = error.__cause__  # fsspec's http reports any failure as "not found"
                if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                    raise cause from None
                return None
            if size is None or size > SMALL_FILE:
                raise FeatureError(f"{self.name}/{name}: too large to be one")
            content: bytes = self._fs.cat_file(path)
            return content

    def write(self, name: str, content: bytes) -> None:
        """Write a small file.

        Args:
            name: of the file.
            content: all of it.
        """
        with self.reported():
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{name}", content)

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
                self._fs.put_file(str(file), f"{self._root}/{file.name}")
                meter.add(size)
            if self._fs.size(f"{self._root}/{file.name}") != size:
                raise FeatureError(f"{self.name}/{name}: not all of it arrived; push again")

    def _append(self, file: Path, meter: Meter) -> None:
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
                    raise FeatureError(
                        f"{self.name}/{file.name}: what arrived there is damaged; push again"
                    )
        self._fs.mv(partial, f"{self._root}/{file.name}")

    def _upload_parts(self, file: Path, meter: Meter) -> None:
        """Send to S3 as a multipart upload, keeping the parts of an earlier one cut off."""
        bucket, key, _ = self._fs.split_path(f"{self._root}/{file.name}")
        target = {"Bucket": bucket, "Key": key}
        try:
            started = self._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
        except Exception as error:
            if "NoSuchUpload" not in str(error):  # how some servers report none
                raise
            started = {}
        uploads = [up["UploadId"] for up in started.get("Uploads", []) if up["Key"] == key]
        if uploads:
            target["UploadId"] = uploads[0]
            listed = self._fs.call_s3("list_parts", **target).get("Parts", [])
        else:
            target["UploadId"] = self._fs.call_s3("create_multipart_upload", **target)["UploadId"]
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
                    part = self._fs.call_s3("upload_part", **target, PartNumber=number, Body=block)
                    meter.add(len(block))
                parts.append({"PartNumber": number, "ETag": part["ETag"]})
        self._fs.call_s3("complete_multipart_upload", **target, MultipartUpload={"Parts": parts})
        self._fs.invalidate_cache(self._root)

    def _range(self, path: str, start: int, end: int) -> bytes:
        if SSH & self._protocols:
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
            self.url,
            skip_instance_cache=True,
            **OPTIONS.get(scheme, {}),
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
            name: of the shard that travels, if one does.
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
            return self._remote.read(self.name, start, end, self.size)[: end - start]
