"""Workers of this process as copies of one that has imported the networks' libraries.

Each worker of a job imports them anew else, for 4 to 12 s of a core. Commands that run in processes
of their own start their workers as users' do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing import forkserver
from unittest.mock import patch

import dask
import distributed.utils

METHOD = "distributed.worker.multiprocessing-method"
# its own: processes that other tests fork have limits of memory, which torch would exceed
SERVER = forkserver.ForkServer()
SERVER.set_forkserver_preload(
    [
        "extract.job.client",
        "extract.backbones.timm_image",
        "extract.backbones.transformers_audio",
        "transformers.models.wav2vec2.modeling_wav2vec2",
    ]
)


@contextmanager
def forked_workers() -> Iterator[None]:
    """Let the workers that this process starts be forked."""
    with ExitStack() as stack:
        if sys.platform == "linux":
            stack.enter_context(dask.config.set({METHOD: "forkserver"}))
            connect = SERVER.connect_to_new_process
            stack.enter_context(patch.object(forkserver, "connect_to_new_process", connect))
            # else Dask chooses what other tests' server imports
            stack.enter_context(patch.object(distributed.utils, "_forkserver_preload_set", True))
        yield


def spawned_workers() -> AbstractContextManager[None]:
    """Let workers be started as users start them."""
    return dask.config.set({METHOD: "spawn"})
