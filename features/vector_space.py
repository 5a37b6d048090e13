"""The mean rows of clips as vectors that can be compared by their cosines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# worked on at once, so that they stay in the processor's cache; on busy cores, products of larger
# blocks took two to ten times as long
BLOCK_CLIPS = 256
ROUNDING = 1e-6  # of a value, in float32; a smaller deviation counts as zero


class _Standard(NamedTuple):
    """How vectors are made comparable."""

    centre: NDArray[np.float32]  # (values,) taken off
    scale: NDArray[np.float32]  # (values,) one over the deviation; 0 where a value never changes


class VectorSpace:
    """The clips of one stream as vectors that can be compared.

    Args:
        means: of each shard, (clips, values); see `clip_means`.
        places: (clips,) where each clip that is searched in stands among those of all shards.
        plain: leave the vectors as they are; else take off their mean and divide by their
            deviation.
    """

    def __init__(
        self, means: list[NDArray[np.float32]], places: NDArray[np.int64], plain: bool
    ) -> None:
        self._means = means
        self._places = places
        width = means[0].shape[1]
        self._centre, self._scale = np.zeros(width, np.float32), np.ones(width, np.float32)
        if not plain:
            self._centre, self._scale = _standard(means)
        norms = [np.linalg.norm(self.place(block), axis=1) for block in _blocks(means)]
        self._norms = np.concatenate(norms)[places]
        self._norms[self._norms == 0] = np.nan  # it points nowhere

    def place(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Return rows, or a single one, as vectors of the space."""
        placed: NDArray[np.float32] = (
            rows.astype(np.float32, copy=False) - self._centre
        ) * self._scale
        return placed

    def units(self) -> NDArray[np.float32]:
        """Return (clips, values), all vectors at length 1; NaN where a clip has no rows."""
        placed: NDArray[np.float32] = self.place(np.concatenate(self._means)[self._places])
        placed /= self._norms[:, None]
        return placed

    def cosines(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (clips,) cosines with a vector of the space; NaN where a clip has no rows."""
        weights = unit(vector) * self._scale
        # placing all clips would take longer than this: the vector is scaled a second time instead
        products = np.concatenate([block @ weights for block in _blocks(self._means)])
        cosines: NDArray[np.float32] = products[self._places] - self._centre @ weights
        cosines /= self._norms
        return cosines


def _standard(means: list[NDArray[np.float32]]) -> _Standard:
    """Compute the mean and the deviation of all clips, block by block."""

    def blocks() -> Iterator[NDArray[np.float32]]:
        for block in _blocks(means):
            known = ~np.isnan(block[:, 0])
            yield block if known.all() else block[known]

    width = means[0].shape[1]
    count, total, squares = 0, np.zeros(width), np.zeros(width)
    for block in blocks():
        count += len(block)
        total += block.sum(0)
    centre = (total / max(1, count)).astype(np.float32)
    for block in blocks():
        squares += np.square(block - centre).sum(0)
    deviation = np.sqrt(squares / max(1, count))
    changes = deviation > ROUNDING * np.abs(centre)
    scale = np.divide(1, deviation, out=np.zeros(width), where=changes)
    return _Standard(centre, scale.astype(np.float32))


def _blocks(arrays: list[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    for array in arrays:
        for at in range(0, len(array), BLOCK_CLIPS):
            yield array[at : at + BLOCK_CLIPS]


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a vector of length 1; NaN if it points nowhere."""
    scaled: NDArray[np.float32] = vector / (np.linalg.norm(vector) or np.float32(np.nan))
    return scaled


def mean_cosine(cosines: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return (clips,) the mean over the streams of the cosines that are not NaN."""
    known = [~np.isnan(one) for one in cosines]
    total = sum(np.where(some, one, 0) for some, one in zip(known, cosines, strict=True))
    count = np.sum(known, axis=0)
    mean: NDArray[np.float32] = np.full(len(count), np.nan, np.float32)
    np.divide(total, count, out=mean, where=count > 0)
    return mean
