"""Clips, and moments in them, that are like another: retrieval over what is cached already.

A clip is one vector in each stream, the mean of its valid rows. Likeness is the cosine between two
such vectors, after the store's own mean has been taken off and every value divided by its own
deviation: the rows of frozen networks share a direction, and a few large values would decide all.

Reading all rows would take gigabytes at each search, so the means are kept: see `clip_means`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.clip_features import Features
from features.clip_means import keep_means, load_means, make_means, mean_row
from features.format.shard import Shard
from features.joined_store import Joined
from features.recipe import FeatureError
from features.store import Store
from features.vector_space import VectorSpace, mean_cosine, unit

MOMENT = re.compile(r"(.+)@(\d+\.?\d*)-(\d+\.?\d*)", re.DOTALL)  # CLIP@START-END
# similarity; in EfficientNet's rows of surv-fight, copies that were cut, brightened or mirrored
# have 0.89 and more, cropped to 90 % 0.74 to 0.92, clips of two recordings 0.77 at most
NEAR_DUPLICATE = 0.8
PAIRS_AT_ONCE = 2**22
SHORTLIST = 100  # clips in which the best moment is looked for
WHOLE = slice(None)
Progress = Callable[[int, int], None]  # (clips done, clips in all)


class Hit(NamedTuple):
    """A clip that was found.

    Attributes:
        clip: its id.
        similarity: cosine of the whole clip, -1 to 1.
        start, end: its moment that is most like the query, in seconds; all of the clip if it is no
            longer than that.
        moment: cosine of that moment.
    """

    clip: str
    similarity: float
    start: float
    end: float
    moment: float


class Pair(NamedTuple):
    """Two clips and the cosine between them."""

    clip: str
    other: str
    similarity: float


def search(
    store: Store | Joined,
    like: str,
    streams: Sequence[str] | None = None,
    n: int = 10,
    progress: Progress = lambda *_: None,
) -> list[Hit]:
    """Find the clips most like a clip, or like a moment of one; see `Searcher.like`.

    To search more than once, keep a `Searcher`.

    Args:
        store: or several, joined.
        like: a clip's id, or ``CLIP@START-END`` in seconds.
        streams: to compare; all if None.
        n: how many clips to return, at most.
        progress: called with (clips done, clips in all) while means are made that are not kept yet.

    Raises:
        FeatureError: the store has no clips, or nothing in it is what `like` names.
    """
    return Searcher(store, progress).like(like, streams, n)


class _Query(NamedTuple):
    """A clip, or a moment of one, that others are compared with."""

    clip: str
    snippets: slice


class _Moment(NamedTuple):
    """Where a clip is most like a query."""

    first: int  # snippet
    cosine: float


class _StreamMeans(NamedTuple):
    """The mean rows of one stream."""

    by_shard: list[NDArray[np.float32]]  # (clips, values) of each shard
    places: NDArray[np.int64]  # (clips,) where each clip stands among those of all shards


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
        self._means: dict[str, _StreamMeans] = {}
        self._spaces: dict[tuple[str, bool], VectorSpace] = {}  # (stream, plain) -> its space
        parts = store.stores if isinstance(store, Joined) else (store,)
        self.damaged = {str(file): why for part in parts for file, why in part.unreadable.items()}
        shards = [shard for part in parts for shard in part.shards]
        of_shard = dict(zip(shards, self._all_means(shards, progress), strict=True))
        for part in parts:
            place = dict(zip(part, part.numbers.tolist(), strict=True))
            places = np.array([place[clip_id] for clip_id in self._ids])
            for stream in part.recipe.streams:
                arrays = [of_shard[shard][stream] for shard in part.shards]
                self._means[stream] = _StreamMeans(arrays, places)

    def like(self, query: str, streams: Sequence[str] | None = None, n: int = 10) -> list[Hit]:
        """Return the clips most like a clip, best first, without that clip itself.

        Whole clips are ranked as wholes. Where a moment is asked for, the `SHORTLIST` clips that
        are most like it as wholes are ranked by their own best moment of its length.

        Args:
            query: a clip's id, or ``CLIP@START-END`` in seconds.
            streams: to compare; all if None. The similarity is the mean over those of them that
                both clips have; a clip that has none is not found.
            n: how many clips to return, at most.

        Raises:
            FeatureError: the clip, moment or stream does not exist, or nothing in it is valid.
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
            mean = mean_row(clip.streams[stream][moment], clip.valid[stream][moment])
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
            n: how many clips to return, at most.
        """
        space = self._space(stream, plain=True)
        length = max(1, round(seconds / self.store.snippet_seconds))
        return self._rank({stream: space.place(vector)}, length, True, n, plain=True)

    def near_duplicates(
        self,
        sides: Mapping[str, str],
        least: float = NEAR_DUPLICATE,
        progress: Progress = lambda *_: None,
    ) -> list[Pair]:
        """Return clips of different sides that are nearly the same, the most alike pair first.

        Whole clips are compared, as in `like`. The means of all clips are in memory.

        Args:
            sides: clip id -> its side of a split; others are not compared.
            least: similarity of a pair.
            progress: called with (clips done, clips in all).
        """
        chosen = np.array([n for n, i in enumerate(self._ids) if i in sides], np.int64)
        side = np.unique([sides[self._ids[n]] for n in chosen], return_inverse=True)[1]
        units = [self._space(stream).units()[chosen] for stream in self._means]
        found, at_once = [], max(1, PAIRS_AT_ONCE // max(1, len(chosen)))
        for first in range(0, len(chosen), at_once):
            rows = slice(first, first + at_once)
            cosines = [(own[rows] @ own[first:].T).ravel() for own in units]
            alike = mean_cosine(cosines).reshape(-1, len(chosen) - first)
            apart = side[rows, None] != side[first:]
            for row, column in np.argwhere(np.triu(apart & (alike >= least))):
                one, other = (self._ids[chosen[first + place]] for place in (row, column))
                found.append(Pair(one, other, float(alike[row, column])))
            progress(min(first + at_once, len(chosen)), len(chosen))
        return sorted(found, key=lambda pair: -pair.similarity)

    def _all_means(
        self, shards: list[Shard], progress: Progress
    ) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Yield the means of each shard, making those that are not kept."""
        kept = [load_means(shard) for shard in shards]
        done = 0
        total = sum(len(s) for s, means in zip(shards, kept, strict=True) if means is None)
        for shard, means in zip(shards, kept, strict=True):
            if means is None:
                means, damaged = make_means(shard)
                self.damaged |= damaged
                if not damaged:  # else they are made again once the shard is repaired
                    keep_means(shard, means)
                    means = load_means(shard) or means  # mapped, they take no memory
                done += len(shard)
                progress(done, total)
            yield means

    def _space(self, stream: str, plain: bool = False) -> VectorSpace:
        if (stream, plain) not in self._spaces:
            self._spaces[stream, plain] = VectorSpace(*self._means[stream], plain)
        return self._spaces[stream, plain]

    def _parse(self, query: str) -> _Query:
        """Read a clip's id, or ``CLIP@START-END``."""
        path = self.store.paths[0]
        if query in self.store:
            return _Query(query, WHOLE)
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
        first, last = math.floor(start / step + 1e-6), math.ceil(end / step - 1e-6)
        return _Query(clip_id, slice(first, last))

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
        whole = mean_cosine([spaces[stream].cosines(vectors[stream]) for stream in vectors])
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
            moment = _best_moment(clip, vectors, spaces, length)
            hits.append(
                Hit(
                    clip_id,
                    similarity=float(whole[number]),
                    start=moment.first * step,
                    end=min((moment.first + length) * step, clip.duration),
                    moment=moment.cosine,
                )
            )
        if by_moment:
            hits.sort(key=lambda hit: -hit.moment)
        return hits[:n]


def _best(cosines: NDArray[np.float32], n: int) -> list[int]:
    """Return the places of the n largest, the largest first, without what is NaN."""
    some = np.argpartition(-cosines, min(n, len(cosines)) - 1)[:n]  # NaN counts as the largest
    order = some[np.argsort(-cosines[some], kind="stable")]
    places: list[int] = order[~np.isnan(cosines[order])].tolist()
    return places


def _best_moment(
    clip: Features,
    vectors: Mapping[str, NDArray[np.float32]],
    spaces: Mapping[str, VectorSpace],
    length: int,
) -> _Moment:
    """Return the moment of `length` snippets that is most like the vectors."""
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
        cosines.append(moments @ unit(vector) / norms)
    both = np.nan_to_num(mean_cosine(cosines), nan=-1.0)
    first = int(both.argmax())
    return _Moment(first, float(both[first]))
