"""A file as mapped memory, which holds no descriptor: a store may have more shards than those.

From Python 3.13 on, ``mmap.mmap(..., trackfd=False)`` does the same.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.store_files import open_regular

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
MAP_FAILED = ctypes.c_void_p(-1).value


class _Map:
    """Mapped memory, as numpy takes it; unmapped when the last array on it is gone."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {
            "data": (address, True),  # read-only
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }
        # not at the end of the process, when there still are arrays
        weakref.finalize(self, LIBC.munmap, address, size).atexit = False


def map_file(path: Path) -> NDArray[np.uint8]:
    """Return the bytes of a file, mapped and read-only.

    Raises:
        FeatureError: it is a link, a pipe, a device or a folder.
        OSError: there is none, it is empty or cannot be mapped.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        address = LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == MAP_FAILED:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(path))
    finally:
        os.close(descriptor)
    return np.asarray(_Map(address, size))
