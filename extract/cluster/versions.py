"""Whether the workers of a cluster have the same version of this program."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import distributions
from typing import NamedTuple

from dask.distributed import Client

from features.recipe import READING_CHANGES
from manifests import AvarnetError

# what `versions` returns, and the machine: an expression that a worker of any version can evaluate
VERSIONS = (
    "(next((d.version for d in __import__('importlib.metadata').metadata.distributions("
    "name='avarnet')), 'unknown'), "
    "max(getattr(__import__('features.recipe').recipe, 'READING_CHANGES', {1: ''})), "
    "__import__('extract').__name__, __import__('platform').node())"
)


class ClusterError(AvarnetError):
    """A cluster that cannot be used; the message gives the way out."""


class Versions(NamedTuple):
    """Of this program: of the package, and of the code that reads files."""

    package: str
    reading: int

    def __str__(self) -> str:
        return f"avarnet {self.package} (version {self.reading} of the reading code)"


def versions() -> Versions:
    """Return the versions that are at work in this process."""
    package = next((d.version for d in distributions(name="avarnet")), "unknown")
    return Versions(package, max(READING_CHANGES))


def other_versions(theirs: Versions, ours: Versions) -> str:
    """Return how a worker's versions differ from ours, and the way out; "" if they do not.

    Args:
        theirs: the worker's.
        ours: those of the job.
    """
    if theirs == ours:
        return ""
    return (
        f"{theirs}, and this machine has {ours}: features of two versions are not mixed. Install "
        "the same one on both, start the workers anew and run the same command again"
    )


def need_same_versions(client: Client, workers: Collection[str]) -> None:
    """Refuse workers of another version of this program.

    Args:
        client: of their cluster.
        workers: their addresses.

    Raises:
        ClusterError: one of them has another version, or none.
    """
    found = client.run(eval, VERSIONS, workers=list(workers), on_error="return")
    for worker, theirs in found.items():
        if isinstance(theirs, OSError):
            continue  # it is gone already
        if isinstance(theirs, Exception):
            raise ClusterError(
                f"worker {worker} cannot import avarnet's packages ({theirs}); install "
                "avarnet[extract] there"
            )
        package, reading, _, machine = theirs
        if differing := other_versions(Versions(package, reading), versions()):
            raise ClusterError(f"worker {worker} on {machine} has {differing}")
