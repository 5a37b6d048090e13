"""A process of its own for native decoders, which crash, hang and balloon on damaged files.

Requests and answers are pickles, which only the two ends of the pipes write.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

MEMORY_BYTES = 2 * 2**30  # that such a process may take
PIPE_BYTES = 2**20  # a frame or five: with the usual 64 KiB, each waits for Python several times
# not -m: what a main module defines cannot be unpickled elsewhere
# what libraries print, also when they are imported, must not come between the answers
PROGRAM = """
import os, sys
answers = os.dup(1)
os.dup2(2, 1)
from extract.decoding.isolated_process import run_child
run_child(answers, sys.argv[1], *map(int, sys.argv[2:]))
"""


class IsolatedProcess:
    """A running process, as its parent sees it. It ends when its parent does.

    Args:
        module: whose ``main(connection)`` it runs, with a `Connection` to this process.
        memory_bytes: that it may take (on Linux).
        inherited: further file descriptors that it gets.
    """

    def __init__(self, module: str, memory_bytes: int, inherited: Sequence[int] = ()) -> None:
        # not by multiprocessing: a Dask worker's process may not have such children
        # -P: with -c, modules of the current folder (a user's extract.py) would hide ours
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, module, str(memory_bytes), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            pass_fds=inherited,
            bufsize=PIPE_BYTES,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # a user's pipes may be limited
                fcntl.fcntl(self._answers, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, request: object) -> None:
        """Send a request.

        Raises:
            OSError: the process has ended.
        """
        pickle.dump(request, self._requests)
        self._requests.flush()

    def receive(self) -> Any:
        """Return the next answer.

        Raises:
            EOFError: the process has ended, perhaps in the middle of an answer.
        """
        try:
            return pickle.load(self._answers)
        except Exception as error:
            raise EOFError("the process has ended") from error

    def wait(self) -> str:
        """Wait for its end, and return how it ended: "" if by itself."""
        code = self._process.wait()
        return f"crashed ({signal.Signals(-code).name if code < 0 else code})" if code else ""

    def kill(self) -> None:
        """Have it ended at once."""
        self._process.kill()

    def close(self) -> None:
        """Kill it, wait for its end and close its pipes."""
        self.kill()
        self.wait()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()


class Connection:
    """The parent, as seen from the process.

    Args:
        requests: the stream that they come by.
        answers: the stream that takes them.
        memory_bytes: that this process may take.
    """

    def __init__(self, requests: BinaryIO, answers: BinaryIO, memory_bytes: int) -> None:
        self._requests, self._answers = requests, answers
        self.memory_bytes = memory_bytes

    def receive(self) -> Any:
        """Return the next request.

        Raises:
            EOFError: there are no more.
        """
        return pickle.load(self._requests)

    def send(self, answer: object) -> None:
        """Send an answer, or a part of it."""
        pickle.dump(answer, self._answers, protocol=5)
        self._answers.flush()


def run_child(answers: int, module: str, memory_bytes: int, parent: int) -> None:
    """Run a module's `main` in this process, which an `IsolatedProcess` has started.

    Args:
        answers: the file descriptor that takes them.
        module: see `IsolatedProcess`.
        memory_bytes: that this process may take, besides what its imports took.
        parent: the parent's process id.
    """
    main = importlib.import_module(module).main
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent deals with Ctrl-C
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    requests = os.fdopen(os.dup(0), "rb")
    with contextlib.suppress(OSError):  # there is no such limit but on Linux
        # libraries map hundreds of MB that they never touch: those are not counted
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        limit = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    main(Connection(requests, os.fdopen(answers, "wb"), memory_bytes))


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, whatever native code is doing."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
