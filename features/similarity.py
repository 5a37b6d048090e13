"""Clips, and moments in them, that are like another: retrieval over what is cached already.

A clip is one vector in each stream, the mean of its valid rows. Likeness is the cosine between two
such vectors, after the store's own mean has been taken off and every value divided by its own
deviation: the rows of frozen networks share a direction, and a few large values would decide all.

Reading all rows would take gigabytes at each search, so the means are kept in the user's cache
folder, one file for a shard's stream. It is named after the digests of the rows it was made of, so
it is never out of date, and a folder that cannot be written to costs time alone.
"""

from __future__ import annotations

import math
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from features.clip_features import Features
from features.format.shard import Shard
from features.joined_store import Joined
from features.recipe import FeatureError
from features.store import Store

MOMENT = re.compile(r"(.+)@(\d+\.?\d*)-(\d+\.?\d*)", re.DOTALL)  # CLIP@START-END
SHORTLIST = 100  # clips in which the best moment is looked for
# worked on at once, so that they stay in the processor's cache; on busy cores, products of larger
# blocks took two to ten times as long
BLOCK_CLIPS = 256
ROUNDING = 1e-6  # of a value, in float32; a smaller deviation is none
CHECKSUM_BYTES = 16
WHOLE = slice(None)
Progress = Callable[[int, int], None]  # (clips done, clips in all)


class Hit(NamedTuple):
    """A clip that was found.

    Attributes:
        clip: its id.
        similarity: cosine of the whole clip, -1 to 1.
        start, end: its moment that is most like what was asked for, in seconds; all of it if it is
            no longer than that.
        moment: cosine of that moment.
    """

    clip: str
    similarity: float
    start: float
    end: float
    moment: float


def search(
    store: Store | Joined,
    like: str,
    streams: Sequence[str] | None = None,
    n: int = 10,
    progress: Progress = lambda *_: None,
) -> list[Hit]:
    """Find the clips most like a clip, or like a moment of one; see `Searcher.like`.

    To ask more than once, keep a `Searcher`.
    """
    return Searcher(store, progress).like(like, streams, n)


class Searcher:
    """A store made ready for searches: the first of them reads it, further ones take milliseconds.

    Args:
        store: or several, joined.
        progress: called with (clips done, clips in all) while means are made that are not kept yet.

    Attributes:
        damaged: what cannot be read, and so is not found: clip id, or shard's path -> reason. It
            grows when a search meets another one.

    Raises:
        FeatureError: the store has no clips.
    """

    def __init__(self, store: Store | Joined, progress: Progress = lambda *_: None) -> None:
        if not len(store):
            raise FeatureError(f"{store.paths[0]}: no clips to search in")
        self.store = store
        self._ids = list(store)
        self._means: dict[str, tuple[list[NDArray[np.float32]], NDArray[np.int64]]] = {}
        self._spaces: dict[tuple[str, bool], _Space] = {}
        parts = store.stores if isinstance(store, Joined) else (store,)
        self.damaged = {str(file): why for part in parts for file, why in part.unreadable.items()}
        shards = [shard for part in parts for shard in part.shards]
        of_shard = dict(zip(shards, self._all_means(shards, progress), strict=True))
        for part in parts:
            place = dict(zip(part, part.numbers.tolist(), strict=True))
            numbers = np.array([place[clip_id] for clip_id in self._ids])
            for stream in part.recipe.streams:
                arrays = [of_shard[shard][stream] for shard in part.shards]
                self._means[stream] = arrays, numbers

    def like(self, query: str, streams: Sequence[str] | None = None, n: int = 10) -> list[Hit]:
        """Return the clips most like a clip, best first, without that clip itself.

        Whole clips are ranked as wholes. Where a moment is asked for, the `SHORTLIST` clips that
        are most like it as wholes are ranked by their own best moment of its length.

        Args:
            query: a clip's id, or ``CLIP@START-END`` in seconds.
            streams: to compare; all if None. The similarity is the mean over those of them that
                both clips have; a clip that has none is not found.
            n: at most so many.

        Raises:
            FeatureError: there is no such clip, moment or stream, or nothing in it is valid.
        """
        for stream in streams or ():
            if stream not in self._means:
                raise FeatureError(
                    f"{self.store.paths[0]} has no stream {stream!r}; it has "
                    f"{', '.join(self._means)}"
                )
        clip_id, moment = self._parse(query)
        clip = self.store[clip_id]
        vectors = {}
        for stream in streams or self._means:
            mean = _mean(clip.streams[stream][moment], clip.valid[stream][moment])
            if mean is not None:
                vectors[stream] = self._space(stream).place(mean)
        if not vectors:
            raise FeatureError(
                f"{query}: it has nothing valid in {' or '.join(streams or self._means)}; ask for "
                "another stream, clip or moment"
            )
        length = len(range(len(clip))[moment])
        by_moment = moment != WHOLE
        return self._rank(vectors, length, by_moment, n, leave_out=clip_id)

    def nearest(
        self, stream: str, vector: NDArray[Any], seconds: float = 2.0, n: int = 10
    ) -> list[Hit]:
        """Return the clips whose rows point most nearly where a vector does, best first.

        This is for vectors that are no rows of the store, such as those of texts: nothing is taken
        off on either side, so the similarity is the plain cosine that such networks are trained
        for. Clips are ranked by their best moment, as in `like`.

        Args:
            stream: to compare with.
            vector: (values,) of the stream's width.
            seconds: length of a moment.
            n: at most so many.
        """
        space = self._space(stream, plain=True)
        length = max(1, round(seconds / self.store.snippet_seconds))
        return self._rank({stream: space.place(vector)}, length, True, n, plain=True)

    def _all_means(
        self, shards: list[Shard], progress: Progress
    ) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Yield the means of each shard, making those that are not kept; see `_make_means`."""
        kept = [_load_means(shard) for shard in shards]
        done = 0
        total = sum(len(s) for s, means in zip(shards, kept, strict=True) if means is None)
        for shard, means in zip(shards, kept, strict=True):
            if means is None:
                means, damaged = _make_means(shard)
                self.damaged |= damaged
                if not damaged:  # else they are made again once that is mended
                    _keep_means(shard, means)
                    means = _load_means(shard) or means  # mapped, they take no memory
                done += len(shard)
                progress(done, total)
            yield means

    def _space(self, stream: str, plain: bool = False) -> _Space:
        if (stream, plain) not in self._spaces:
            self._spaces[stream, plain] = _Space(*self._means[stream], plain)
        return self._spaces[stream, plain]

    def _parse(self, query: str) -> tuple[str, slice]:
        """Return a clip's id, and the snippets of it that are meant."""
        path = self.store.paths[0]
        if query in self.store:
            return query, WHOLE
        found = MOMENT.fullmatch(query)
        clip_id = found[1] if found else query.rpartition("@")[0] or query
        if clip_id not in self.store:
            near = ", ".join(get_close_matches(clip_id, self._ids))
            hint = f"did you mean {near}?" if near else f"'avarnet features list {path}' has all"
            raise FeatureError(f"{path} has no clip {clip_id!r}; {hint}")
        if not found:
            raise FeatureError(
                f"{query!r}: expected CLIP@START-END in seconds, such as {clip_id}@0-2.5"
            )
        clip, step = self.store[clip_id], self.store.snippet_seconds
        start, end = float(found[2]), float(found[3])
        if not start < end <= max(len(clip) * step, clip.duration):
            raise FeatureError(
                f"{query!r}: expected a START before its END, both within the clip's "
                f"{clip.duration:.2f} seconds"
            )
        # all snippets that the moment touches; 0.3 / 0.1 is not quite 3
        return clip_id, slice(math.floor(start / step + 1e-6), math.ceil(end / step - 1e-6))

    def _rank(
        self,
        vectors: Mapping[str, NDArray[np.float32]],
        length: int,
        by_moment: bool,
        n: int,
        plain: bool = False,
        leave_out: str | None = None,
    ) -> list[Hit]:
        """Return the best clips, each with its best moment of `length` snippets."""
        spaces = {stream: self._space(stream, plain) for stream in vectors}
        whole = _together([spaces[stream].cosines(vectors[stream]) for stream in vectors])
        if leave_out is not None:
            whole[self._ids.index(leave_out)] = np.nan
        step = self.store.snippet_seconds
        hits = []
        for number in _best(whole, max(n, SHORTLIST) if by_moment else n):
            clip_id = self._ids[number]
            try:
                clip = self.store[clip_id]
            except FeatureError as error:
                self.damaged[clip_id] = str(error)
                continue
            first, cosine = _best_moment(clip, vectors, spaces, length)
            end = min((first + length) * step, clip.duration)
            hits.append(Hit(clip_id, float(whole[number]), first * step, end, cosine))
        if by_moment:
            hits.sort(key=lambda hit: -hit.moment)
        return hits[:n]


class _Space:
    """The clips of one stream as vectors that can be compared.

    Args:
        means: of each shard, (clips, values); see `_make_means`.
        numbers: of each clip that is searched in, its place among those of all shards.
        plain: leave the vectors as they are; else take off their mean and divide by their
            deviation.
    """

    def __init__(
        self, means: list[NDArray[np.float32]], numbers: NDArray[np.int64], plain: bool
    ) -> None:
        self._means = means
        self._numbers = numbers
        width = means[0].shape[1]
        self._centre, self._scale = np.zeros(width, np.float32), np.ones(width, np.float32)
        if not plain:
            self._centre, self._scale = _standard(means)
        norms = [np.linalg.norm(self.place(block), axis=1) for block in _blocks(means)]
        self._norms = np.concatenate(norms)[numbers]
        self._norms[self._norms == 0] = np.nan  # it points nowhere

    def place(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Return rows, or a single one, where they can be compared."""
        placed: NDArray[np.float32] = (
            rows.astype(np.float32, copy=False) - self._centre
        ) * self._scale
        return placed

    def cosines(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (clips,) cosines with a vector that was placed; NaN where a clip has no rows."""
        weights = _unit(vector) * self._scale
        # the clips are not placed, which would take longer than this: the vector is, a second time
        products = np.concatenate([block @ weights for block in _blocks(self._means)])
        cosines: NDArray[np.float32] = products[self._numbers] - self._centre @ weights
        cosines /= self._norms
        return cosines


def _standard(
    means: list[NDArray[np.float32]],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (values,) mean, and one over the deviation; zero for a value that never changes."""

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
    return centre, scale.astype(np.float32)


def _blocks(arrays: list[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    for array in arrays:
        for at in range(0, len(array), BLOCK_CLIPS):
            yield array[at : at + BLOCK_CLIPS]


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a vector of length 1; NaN if it points nowhere."""
    unit: NDArray[np.float32] = vector / (np.linalg.norm(vector) or np.float32(np.nan))
    return unit


def _together(cosines: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the mean over the streams, of those that are not NaN; NaN if all are."""
    known = [~np.isnan(one) for one in cosines]
    total = sum(np.where(there, one, 0) for there, one in zip(known, cosines, strict=True))
    count = np.sum(known, axis=0)
    mean: NDArray[np.float32] = np.full(len(count), np.nan, np.float32)
    np.divide(total, count, out=mean, where=count > 0)
    return mean


def _best(cosines: NDArray[np.float32], n: int) -> list[int]:
    """Return the places of the n largest, the largest first, without what is NaN."""
    some = np.argpartition(-cosines, min(n, len(cosines)) - 1)[:n]  # NaN counts as the largest
    order = some[np.argsort(-cosines[some], kind="stable")]
    places: list[int] = order[~np.isnan(cosines[order])].tolist()
    return places


def _best_moment(
    clip: Features,
    vectors: Mapping[str, NDArray[np.float32]],
    spaces: Mapping[str, _Space],
    length: int,
) -> tuple[int, float]:
    """Return the first snippet of the moment of `length` that is most like, and its cosine."""
    length = min(length, len(clip))
    cosines = []
    for stream, vector in vectors.items():
        valid = clip.valid[stream]
        # sums of all rows before each one; the sum of a moment's rows points where their mean does
        sums = np.zeros((len(clip) + 1, len(vector)))
        sums[1:][valid] = spaces[stream].place(clip.streams[stream][valid])
        np.cumsum(sums, axis=0, out=sums)
        moments = sums[length:] - sums[:-length]
        norms = np.linalg.norm(moments, axis=1)
        norms[norms == 0] = np.nan
        cosines.append(moments @ _unit(vector) / norms)
    both = np.nan_to_num(_together(cosines), nan=-1.0)
    first = int(both.argmax())
    return first, float(both[first])


def _mean(rows: NDArray[np.float16], valid: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Return the mean of the rows that are valid; None without any, or if it is no number."""
    if not valid.any():
        return None
    mean: NDArray[np.float64] = (rows if valid.all() else rows[valid]).mean(0, dtype=np.float64)
    return mean if np.isfinite(mean).all() else None


def _make_means(shard: Shard) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """Return stream -> (clips, values), the means of their valid rows, and the clips damaged.

    A row of NaN stands for a clip that has no valid ones.
    """
    means = {
        stream: np.full((len(shard), extent.features), np.nan, np.float32)
        for stream, extent in shard.table.extents.items()
    }
    damaged = {}
    for index, clip_id in enumerate(shard.ids):
        try:
            clip = shard.read(index)
        except FeatureError as error:
            damaged[clip_id] = str(error)
            continue
        for stream, rows in clip.streams.items():
            mean = _mean(rows, clip.valid[stream])
            if mean is not None:
                means[stream][index] = mean
    return means, damaged


def _file(shard: Shard, stream: str) -> Path:
    """Return where a shard's means are kept: the digests are of all that they are made of."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    digest = xxhash.xxh3_128(np.ascontiguousarray(shard.table.digests[stream]).data)
    return Path(cache) / "avarnet" / "means" / digest.hexdigest()


def _load_means(shard: Shard) -> dict[str, NDArray[np.float32]] | None:
    """Map the means that were kept; None if some are missing, or not as they were written."""
    means = {}
    for stream, extent in shard.table.extents.items():
        try:
            content = np.asarray(np.memmap(_file(shard, stream), np.uint8, "r"))
        except (OSError, ValueError):  # a ValueError if it is empty
            return None
        values, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:].tobytes()
        fits = len(values) == len(shard) * extent.features * np.float32().nbytes
        if not fits or xxhash.xxh3_128_digest(values.data) != checksum:
            return None
        means[stream] = values.view(np.float32).reshape(len(shard), extent.features)
    return means


def _keep_means(shard: Shard, means: dict[str, NDArray[np.float32]]) -> None:
    """Write means where `_load_means` finds them, if that is possible."""
    for stream, values in means.items():
        file = _file(shard, stream)
        temporary = file.with_name(f".{uuid.uuid4().hex}")
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "wb") as disk:
                    disk.write(values.data)
                    disk.write(xxhash.xxh3_128_digest(values.data))
                temporary.replace(file)
            finally:
                temporary.unlink(missing_ok=True)
