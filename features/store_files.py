"""The files of a store's folder: no link is followed, no pipe opened.

The folder may come from a stranger, and nothing outside it is read, written or passed on for that.
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path

from features.recipe import FeatureError

MOST_TEXT = 2**28  # bytes of a log or journal
CLOSED = "this user may not read it (permission denied); let its owner run 'chmod a+r' on it"


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file of a store, and return its descriptor.

    A new file is shared with those who share its folder, see `share`.

    Args:
        path: the last name in it is not followed if it is a link.
        flags: see `os.open`.

    Raises:
        FeatureError: it is a link, a pipe, a device or a folder.
        OSError: as of `os.open`.
    """
    try:
        # without the last one, opening a pipe would wait for whoever writes to it
        opened = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise _irregular(path) from error
        raise
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise _irregular(path)
    if flags & os.O_CREAT:
        share(opened, path.parent)
    return opened


def share(descriptor: int, folder: Path) -> None:
    """Give a file or folder of one's own the group of a folder that its group may write to.

    The group may then write to it as well, whatever the umask, and go on with what it is for.

    Args:
        descriptor: of the file or folder. A path may be another user's link by now.
        folder: that it is in.
    """
    with suppress(OSError):  # one is not in this group, or the file system knows none
        status, around = os.fstat(descriptor), os.stat(folder)
        is_folder = stat.S_ISDIR(status.st_mode)
        own = status.st_uid == os.geteuid() and (is_folder or status.st_nlink == 1)
        if own and around.st_mode & stat.S_IWGRP:
            if status.st_gid != around.st_gid:
                os.fchown(descriptor, -1, around.st_gid)
            bits = stat.S_IRGRP | stat.S_IWGRP | (stat.S_IXGRP | stat.S_ISGID if is_folder else 0)
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode) | bits)


def size_of(path: Path) -> int:
    """Return the bytes of a file of a store.

    Raises:
        FeatureError: it is a link, a pipe, a device or a folder.
        OSError: there is none.
    """
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise _irregular(path)
    return status.st_size


def read_file(path: Path, most: int = MOST_TEXT) -> bytes:
    """Return what is in a file of a store.

    Args:
        path: of the file.
        most: bytes of it.

    Raises:
        FeatureError: it is longer, or no file; see `open_regular`.
        OSError: there is none, or it cannot be read.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        # room for all that is asked for is taken before the first byte is read
        short = os.fstat(file.fileno()).st_size <= most
        content = file.read(most + 1) if short else b""
    if not short or len(content) > most:
        raise FeatureError(f"{path}: too long; such a file of a store has at most {most} bytes")
    return content


def share_folder(path: Path) -> None:
    """Share a folder of a store, see `share`."""
    with suppress(OSError):  # it is gone, or a link
        made = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        share(made, path.parent)
        os.close(made)


def append_line(path: Path, line: str) -> None:
    """Write a line at the end of a file of a store, which is made if absent.

    Args:
        path: of the file.
        line: without its end.

    Raises:
        FeatureError: it is no file; see `open_regular`.
        OSError: it cannot be written.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with os.fdopen(open_regular(path, flags), "a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def replace_file(path: Path, content: bytes) -> None:
    """Put a file into a store, whole or not at all, in place of whatever has its name.

    Args:
        path: of the file.
        content: of it.

    Raises:
        OSError: it cannot be written.
    """
    new = path.with_name(f".{path.name.lstrip('.')}-{uuid.uuid4().hex}")
    try:
        with os.fdopen(open_regular(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(content)
        new.replace(path)
    except BaseException as error:
        with suppress(OSError):
            new.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # users know no other name
        raise


def _irregular(path: Path) -> FeatureError:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        mode = 0
    kinds = ((stat.S_ISLNK, "a link"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISDIR, "a folder"))
    what = next((kind for test, kind in kinds if test(mode)), "a device")
    return FeatureError(
        f"{path}: not a regular file but {what}, which is not opened in a store; delete it, or put "
        "a copy of the file in its place"
    )
