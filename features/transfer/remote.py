"""A store at a URL: what it holds, its shards fetched, sent and deleted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from fsspec.spec import AbstractBufferedFile

from features.clip_features import Flag
from features.format.shard_index import Table, read_table
from features.format.shard_name import ShardName
from features.overview import Entry
from features.recipe import FeatureError, Recipe
from features.store import RECIPE_FILE
from features.transfer.connection import HTTP, MOST_SHARDS, Connection
from features.transfer.parallel import Meter, at_once
from features.transfer.response_limits import Write
from features.transfer.stall_timeout import StalledError
from features.transfer.upload import BLOCK, delete_unfinished, upload

TABLE_BLOCK = 2**20  # bytes read at once from a distant shard's tables
SMALL_FILE = 2**20  # most bytes of a recipe or card
TABLES_AT_ONCE = 16  # shards whose first block is kept until it is read
TRIES = 3  # of a block, before a transfer counts as cut off


class Remote:
    """A store at a URL, listed and read without fetching it.

    Attributes:
        name: the URL as it is shown, without password or key.

    Raises:
        FeatureError: it cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self._connection = Connection(url)
        self.url, self.name = self._connection.url, self._connection.name

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
            for text, size in self._connection.listed():
                if name := ShardName.parse(text):
                    found[name] = size
                    if len(found) > MOST_SHARDS:
                        raise FeatureError(f"{self.name}: lists more than {MOST_SHARDS} shards")
            sizes = {}
            for name, listed in sorted(found.items()):
                size = self._connection.size(str(name)) if listed is None else listed
                if size is None:
                    raise FeatureError(f"{self.name}/{name}: its server does not tell its size")
                sizes[name] = size
            return sizes

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

        if not HTTP & self._connection.protocols:  # where simple servers send whole files only
            end = min(end, start + BLOCK)
        for attempt in range(TRIES):
            try:
                self._connection.fetch(str(name), start, end, take)
                break
            except StalledError:
                raise
            except FeatureError as error:
                raise FeatureError(f"{self.name}/{name}: {error}") from error
            except Exception:
                if attempt == TRIES - 1 and not came:
                    raise
                time.sleep(0.5 * (attempt + 1))
                self._connection.connect()
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
                size = self._connection.size(name)
            except FileNotFoundError as error:
                cause = error.__cause__  # fsspec's http reports any failure as "not found"
                if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                    raise cause from None
                return None
            most = SMALL_FILE if size is None else size
            if most > SMALL_FILE:
                raise FeatureError(f"{self.name}/{name}: too large to be one")
            # of a server that may lie, a byte more is asked for
            more = int(bool((HTTP | {"s3"}) & self._connection.protocols))
            try:
                content = bytearray()
                self._connection.fetch(name, 0, most + more, content.extend)
            except FeatureError as error:
                raise FeatureError(f"{self.name}/{name}: {error}") from error
            if len(content) > most:
                why = "too large to be one" if size is None else f"its server says {size} bytes"
                raise FeatureError(f"{self.name}/{name}: more than {most} bytes came; {why}")
            return bytes(content)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file.

        Args:
            name: of the file.
            content: all of it.
        """
        with self.reported():
            self._connection.write(name, content)

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
            upload(self._connection, file, meter)
            if self._connection.size(file.name) != size:
                raise FeatureError(f"{self.name}/{name}: not all of it arrived; push again")

    def delete(self, name: str) -> None:
        """Delete a file there, if there is one of this name."""
        with self.reported():
            self._connection.delete(name)

    def delete_unfinished(self) -> None:
        """Delete what pushes that were cut off have left there."""
        with self.reported():
            delete_unfinished(self._connection)

    def reported(self, name: ShardName | None = None) -> AbstractContextManager[None]:
        """Turn whatever a file system raises into an error that says what to do.

        Args:
            name: of the shard that is transferred, if one is.
        """
        return self._connection.reported(str(name or ""))


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
