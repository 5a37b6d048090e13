"""From a store to padded batches in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features import Features
from train.config import TrainError
from train.splits import Split


@dataclass(frozen=True)
class Batch:
    """Clips padded to the longest of them.

    Attributes:
        streams: stream name -> (batch, time, D).
        valid: stream name -> (batch, time), true where the stream has something to say.
        mask: (batch, time), true inside the clip.
    """

    streams: dict[str, Tensor]
    valid: dict[str, Tensor]
    mask: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return it on a device."""
        return Batch(
            {name: rows.to(device) for name, rows in self.streams.items()},
            {name: valid.to(device) for name, valid in self.valid.items()},
            self.mask.to(device),
        )


class Clips:
    """The features of some clips in memory, ready for batching.

    Args:
        features: clip id -> features; only `ids` are read.
        ids: the clips, in order.
        streams: the streams to keep.
        crops: stream -> crops of each frame that lie side by side in a row; they are averaged.

    Raises:
        TrainError: a stream is not in the store, or a clip's features are not finite numbers.
    """

    def __init__(
        self,
        features: Mapping[str, Features],
        ids: Sequence[str],
        streams: Sequence[str],
        crops: Mapping[str, int],
    ) -> None:
        self.ids = list(ids)
        self.crops = dict(crops)
        self.rows: list[dict[str, NDArray[np.float16]]] = []
        self.valid: list[dict[str, NDArray[np.bool_]]] = []
        for clip_id in self.ids:
            clip = features[clip_id]
            lacking = [name for name in streams if name not in clip.streams]
            if lacking:
                raise TrainError(
                    f"no stream {', '.join(lacking)} in the store; it has "
                    f"{', '.join(clip.streams)} (--streams)"
                )
            for name in streams:
                finite = np.isfinite(clip.streams[name]).all(1)
                if not (finite | ~clip.valid[name]).all():
                    raise TrainError(
                        f"clip {clip_id}: its {name} features are not all finite numbers; "
                        "extract the clip again"
                    )
            self.rows.append(
                {name: _average(clip.streams[name], crops.get(name, 1)) for name in streams}
            )
            self.valid.append({name: clip.valid[name] for name in streams})
        self.lengths = np.array([len(next(iter(rows.values()))) for rows in self.rows])
        self.sizes = {name: self.rows[0][name].shape[1] for name in streams}
        self._known: dict[tuple[int, str], dict[str, tuple[int, Tensor, Tensor]]] = {}
        with warnings.catch_warnings():
            # mapped rows are read-only, which torch cannot express; nothing here writes to them
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self._rows = [{n: torch.from_numpy(x) for n, x in rows.items()} for rows in self.rows]
            self._valid = [
                {n: torch.from_numpy(x) for n, x in valid.items()} for valid in self.valid
            ]

    def without(self, name: str) -> Clips:
        """Return the same clips as if none of them had the stream `name`."""
        rest = copy(self)
        rest._valid = [{**own, name: torch.zeros_like(own[name])} for own in self._valid]
        return rest

    def with_snippets_lost(self, share: float, seed: int) -> Clips:
        """Return the same clips as if a share of the snippets of each had no stream at all.

        Args:
            share: 0 to 1, rounded to whole snippets; one snippet at least is kept.
            seed: chooses the snippets.
        """
        rng = np.random.default_rng(seed)
        rest = copy(self)
        rest._valid = []
        for own, length in zip(self._valid, self.lengths, strict=True):
            lost = rng.permutation(length)[: min(round(share * length), length - 1)]
            kept = torch.ones(int(length), dtype=torch.bool)
            kept[lost] = False
            rest._valid.append({name: valid & kept for name, valid in own.items()})
        return rest

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return the clips number `indices` as one batch."""
        lengths = self.lengths[np.asarray(indices)]
        longest = int(lengths.max())
        mask = torch.arange(longest)[None] < torch.from_numpy(lengths)[:, None]
        streams = {
            name: torch.empty(len(indices), longest, size) for name, size in self.sizes.items()
        }
        valid = {name: torch.zeros(len(indices), longest, dtype=torch.bool) for name in self.sizes}
        for place, (index, length) in enumerate(zip(indices, lengths, strict=True)):
            for name, rows in streams.items():
                rows[place, :length] = self._rows[index][name]
                rows[place, length:] = 0
                valid[name][place, :length] = self._valid[index][name]
        return Batch(streams, valid, mask)

    def batches(
        self, indices: NDArray[np.int64], size: int
    ) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yield (indices, batch) over `indices`: clips of like length together, to pad little."""
        order = indices[np.argsort(self.lengths[indices], kind="stable")]
        for first in range(0, len(order), size):
            chunk = order[first : first + size]
            yield chunk, self.batch(chunk)

    def shuffled(
        self, indices: NDArray[np.int64], count: int, rng: np.random.Generator
    ) -> Iterator[NDArray[np.int64]]:
        """Yield `indices` in so many random parts, each clip once, the shortest of a part first.

        As in `batches`, clips of like length are together, but not always the same ones.
        """
        noise = rng.uniform(0.95, 1.05, len(indices))
        order = indices[np.argsort(self.lengths[indices] * noise, kind="stable")]
        parts = np.array_split(order, count)
        for number in rng.permutation(count):
            part = parts[number]
            yield part[np.argsort(self.lengths[part], kind="stable")]

    def moments(self, name: str, indices: NDArray[np.int64]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return mean and standard deviation of one stream over some clips, each (D,), float64.

        Returns:
            ``value``: of its valid rows; ``change``: of how much valid neighbours differ;
            ``centred``: of its valid rows less their clip's mean. What no clip has is left out.
        """
        result = {}
        for part in ("value", "change"):
            found = [self._moments(int(i), name)[part] for i in indices]
            counts = torch.tensor([count for count, _, _ in found], dtype=torch.float64)
            if not counts.sum():
                continue
            means = torch.stack([mean for _, mean, _ in found])
            spreads = torch.stack([spread for _, _, spread in found])
            share = (counts / counts.sum())[:, None]
            mean = (share * means).sum(0)
            variance = (share * (spreads + (means - mean) ** 2)).sum(0)
            result[part] = (mean, variance.sqrt())
            if part == "value":
                result["centred"] = (torch.zeros_like(mean), (share * spreads).sum(0).sqrt())
        return result

    def _moments(self, index: int, name: str) -> dict[str, tuple[int, Tensor, Tensor]]:
        """Return number, mean and variance of a clip's values and changes; kept for other folds."""
        if (index, name) not in self._known:
            rows, valid = self._rows[index][name].float(), self._valid[index][name]
            change = (rows[1:] - rows[:-1])[valid[1:] & valid[:-1]].abs_()
            known = {}
            for part, chosen in (("value", rows[valid]), ("change", change)):
                zeros = torch.zeros(2, self.sizes[name])
                variance, mean = torch.var_mean(chosen, 0, correction=0) if len(chosen) else zeros
                known[part] = (len(chosen), mean.double(), variance.double())
            self._known[index, name] = known
        return self._known[index, name]

    def averages(self, indices: NDArray[np.int64], lacking: float = 0.0) -> NDArray[np.float32]:
        """Return (clips, sum of 2 D + streams): the mean of each stream's values and changes.

        Args:
            indices: of the clips.
            lacking: what stands where a clip has no valid row, or no valid neighbours; the last
                columns say which streams there were.
        """
        table = []
        for i in indices:
            known = [self._moments(int(i), name) for name in self.sizes]
            parts = [stream[part] for stream in known for part in ("value", "change")]
            means = [mean if count else mean + lacking for count, mean, _ in parts]
            table.append(np.concatenate([*means, [stream["value"][0] > 0 for stream in known]]))
        return np.stack(table, dtype=np.float32)

    def snippets(self, index: int, lacking: float = 0.0) -> NDArray[np.float32]:
        """Return a table like `averages`, of the snippets of one clip: (T, sum of 2 D + streams).

        The first snippet's change is that to the second; one alone does not change.

        Args:
            index: of the clip.
            lacking: what stands where a stream has nothing to say.
        """
        columns = []
        for name in self.sizes:
            rows, valid = self.rows[index][name].astype(np.float32), self.valid[index][name]
            neighbour = np.minimum(np.abs(np.arange(len(rows)) - 1), len(rows) - 1)
            change, both = np.abs(rows - rows[neighbour]), valid & valid[neighbour]
            columns += [
                np.where(valid[:, None], rows, lacking),
                np.where(both[:, None], change, lacking),
            ]
        present = [self.valid[index][name][:, None] for name in self.sizes]
        return np.concatenate([*columns, *present], axis=1, dtype=np.float32)


def _average(rows: NDArray[np.float16], crops: int) -> NDArray[np.float16]:
    """Turn (T, crops x D) into (T, D); the view that came where there is one crop."""
    if crops == 1:
        return rows
    whole = rows.reshape(len(rows), crops, -1).astype(np.float32)
    average: NDArray[np.float16] = whole.mean(1).astype(np.float16)
    return average


def streams_to_learn(
    features: Mapping[str, Features],
    streams: Sequence[str],
    splits: Sequence[Split],
    named: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return the streams that training clips of every split have: of others, models know nothing.

    Args:
        features: clip id -> features.
        streams: all that the clips may have.
        splits: one, or one for each fold.
        named: those that a user wants; none for all that can be learned.

    Raises:
        TrainError: one that is named cannot be learned, or none can.
    """
    absent = {
        name
        for name in streams
        for split in splits
        if not any(features[clip_id].valid[name].any() for clip_id in split.train)
    }
    where = "training clip of a fold" if len(splits) > 1 else "training clip"
    if absent >= {*streams}:
        raise TrainError(
            f"no {where} has any features in {store_names(features)}: all their rows are flagged "
            "as missing; see 'avarnet features list STORE', and extract the clips again"
        )
    if lacking := [name for name in named if name in absent]:
        raise TrainError(
            f"no {where} has {', '.join(lacking)} in {store_names(features)}: a model would learn "
            "nothing of it; leave it out (--streams), or extract the clips again"
        )
    return tuple(named or (name for name in streams if name not in absent))


def store_names(store: Mapping[str, Features]) -> str:
    """Return the folders of a store."""
    return " + ".join(map(str, getattr(store, "paths", ["the store"])))
