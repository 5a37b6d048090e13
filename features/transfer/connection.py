"""One folder of a server, whatever fsspec reaches: its files listed, read in parts, written."""

from __future__ import annotations

import asyncio
import io
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec

from features.format.shard_name import SHARD_NAME
from features.recipe import FeatureError
from features.redaction import redacted
from features.several import several
from features.store_files import open_regular, replace_file
from features.transfer.body_limits import MOST_BODY
from features.transfer.response_limits import (
    Write,
    http_options,
    http_part,
    s3_options,
    s3_part,
    sftp_part,
)
from features.transfer.stall_timeout import Moved, in_a_thread, result_of

MOST_SHARDS = 100_000  # of a store
HTTP = {"http", "https"}
SSH = {"sftp", "ssh"}
LOCAL = {"file", "local"}
LISTED_SHARD = re.compile(SHARD_NAME.pattern.encode())  # in a server's page


class Connection:
    """A folder at a URL.

    Args:
        url: of the folder.

    Attributes:
        name: the URL as it is shown, without password or key.

    Raises:
        FeatureError: it cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.name = redacted(self.url)
        self._local = threading.local()
        with self.reported():
            self.connect()

    def connect(self) -> None:
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
    def fs(self) -> Any:
        """This thread's file system of fsspec."""
        if not hasattr(self._local, "fs"):
            self.connect()
        return self._local.fs

    @property
    def root(self) -> str:
        """The folder as `fs` knows it."""
        self.fs  # noqa: B018 - connects
        root: str = self._local.root
        return root.rstrip("/")

    @property
    def protocols(self) -> set[str]:
        """The names of the protocol."""
        return set(several(self.fs.protocol))

    def use(self, fs: Any, root: str) -> None:
        """Let this thread use the connection of another one, which waits meanwhile.

        Args:
            fs: its `fs`.
            root: its `root`.
        """
        self._local.fs, self._local.root = fs, root

    def listed(self) -> Iterable[tuple[str, int | None]]:
        """Return the names of files there, and their sizes where they are known.

        Raises:
            FeatureError: the list is too long.
        """
        fs, root = self.fs, self.root
        if HTTP & self.protocols:
            page, moved = bytearray(), Moved()
            whole = http_part(fs, f"{root}/", 0, MOST_BODY + 1, page.extend, moved, ranged=False)
            try:
                result_of(asyncio.run_coroutine_threadsafe(whole, fs.loop), moved)
            except FeatureError as error:
                raise FeatureError(f"{self.name}/: {error}") from error
            if len(page) > MOST_BODY:
                raise FeatureError(f"{self.name}/: its list is longer than {MOST_BODY} bytes")
            return [(found[0].decode(), None) for found in LISTED_SHARD.finditer(page)]
        if SSH & self.protocols:
            files = fs.ftp.listdir_iter(root)
            return result_of(
                in_a_thread(
                    lambda: [(f.filename, f.st_size) for f in islice(files, MOST_SHARDS + 100)]
                )
            )
        entries = result_of(in_a_thread(lambda: fs.ls(f"{root}/", detail=True)))
        return [(e["name"].rstrip("/").rpartition("/")[2], e.get("size")) for e in entries]

    def size(self, name: str) -> int | None:
        """Return the bytes of a file as its server has them, if it says so."""
        fs, path = self.fs, f"{self.root}/{name}"
        size = result_of(in_a_thread(lambda: fs.size(path)))
        return None if size is None else int(size)

    def fetch(self, name: str, start: int, end: int, write: Write) -> None:
        """Hand on some bytes of a file, or fewer, where it ends before.

        Args:
            name: of the file.
            start: the first byte.
            end: the byte after the last.
            write: takes them, one after another.
        """
        fs, path, moved = self.fs, f"{self.root}/{name}", Moved()
        if HTTP & self.protocols:
            part = http_part(fs, path, start, end, write, moved)
            result_of(asyncio.run_coroutine_threadsafe(part, fs.loop), moved)
        elif "s3" in self.protocols:
            part = s3_part(fs, path, start, end, write, moved)
            result_of(asyncio.run_coroutine_threadsafe(part, fs.loop), moved)
        elif SSH & self.protocols:
            result_of(in_a_thread(lambda: sftp_part(fs, path, start, end, write, moved)), moved)
        elif LOCAL & self.protocols:

            def read() -> bytes:
                with os.fdopen(open_regular(Path(path)), "rb") as file:
                    file.seek(start)
                    return file.read(end - start)

            write(result_of(in_a_thread(read), nbytes=end - start))
        else:
            content = in_a_thread(lambda: fs.cat_file(path, start=start, end=end))
            write(bytes(result_of(content, nbytes=end - start)))

    def write(self, name: str, content: bytes) -> None:
        """Write a small file.

        Args:
            name: of the file.
            content: all of it.
        """
        fs, root, local = self.fs, self.root, bool(LOCAL & self.protocols)

        def put() -> None:
            fs.makedirs(root, exist_ok=True)
            if local:
                replace_file(Path(root, name), content)
                return
            fs.pipe_file(f"{root}/{name}", content)

        result_of(in_a_thread(put), nbytes=len(content))

    def delete(self, name: str) -> None:
        """Delete a file, if there is one of this name."""
        fs, path = self.fs, f"{self.root}/{name}"
        with suppress(FileNotFoundError):
            result_of(in_a_thread(lambda: fs.rm_file(path)))

    def call_s3(self, method: str, body: bytes | None = None, **settings: Any) -> Any:
        """Call a method of S3's, and wait for as long as bytes of its body move.

        Args:
            method: its name.
            body: what to send.
            settings: the method's own.
        """
        moved, fs = Moved(), self.fs
        if body is not None:
            settings["Body"] = _CountedBody(body, moved)
        call = fs._call_s3(method, **settings)
        return result_of(asyncio.run_coroutine_threadsafe(call, fs.loop), moved)

    @contextmanager
    def reported(self, name: str = "") -> Iterator[None]:
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
