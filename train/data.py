"""From a store to padded batches in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features import Features
from train.config import TrainError


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
                if not np.isfinite(clip.streams[name]).all():
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

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return the clips number `indices` as one batch."""
        longest = int(self.lengths[indices].max())
        mask = torch.arange(longest)[None] < torch.from_numpy(self.lengths[indices])[:, None]
        streams = {
            name: torch.zeros(len(indices), longest, size) for name, size in self.sizes.items()
        }
        valid = {name: torch.zeros(len(indices), longest, dtype=torch.bool) for name in self.sizes}
        for place, index in enumerate(indices):
            length = self.lengths[index]
            for name in self.sizes:
                # copies: mapped rows are read-only, which torch cannot express
                streams[name][place, :length] = torch.tensor(self.rows[index][name]).float()
                valid[name][place, :length] = torch.tensor(self.valid[index][name])
        return Batch(streams, valid, mask)

    def batches(
        self, indices: NDArray[np.int64], size: int, shuffle: np.random.Generator | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yield (indices, batch) over `indices`: clips of like length together, to pad little."""
        noise = shuffle.uniform(0.8, 1.25, len(indices)) if shuffle else 1.0
        order = indices[np.argsort(self.lengths[indices] * noise, kind="stable")]
        chunks = [order[first : first + size] for first in range(0, len(order), size)]
        if shuffle:
            shuffle.shuffle(chunks)
        for chunk in chunks:
            yield chunk, self.batch(chunk)

    def valid_rows(self, name: str, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return every valid row (N, D) of one stream of some clips."""
        return np.concatenate(
            [self.rows[i][name][self.valid[i][name]].astype(np.float32) for i in indices]
        )

    def changes(self, name: str, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return (M, D), how much valid neighbours differ in one stream of some clips."""
        found = []
        for i in indices:
            rows, valid = self.rows[i][name].astype(np.float32), self.valid[i][name]
            found.append(np.abs(rows[1:] - rows[:-1])[valid[1:] & valid[:-1]])
        return np.concatenate(found)

    def averages(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return (clips, sum of D + streams): each stream's mean over its valid rows.

        A stream that a clip lacks gives zeros, and the last columns say which streams there were.
        """
        table = []
        for i in indices:
            there = [self.valid[i][name].any() for name in self.sizes]
            means = [
                self.rows[i][name][self.valid[i][name]].astype(np.float32).mean(0)
                if present
                else np.zeros(size, np.float32)
                for (name, size), present in zip(self.sizes.items(), there, strict=True)
            ]
            table.append(np.concatenate([*means, np.array(there, np.float32)]))
        return np.stack(table)

    def snippets(self, index: int) -> NDArray[np.float32]:
        """Return a table like `averages`, of the snippets of one clip: (T, sum of D + streams)."""
        valid = [self.valid[index][name][:, None] for name in self.sizes]
        rows = [
            np.where(there, self.rows[index][name].astype(np.float32), 0)
            for name, there in zip(self.sizes, valid, strict=True)
        ]
        return np.concatenate([*rows, *valid], axis=1, dtype=np.float32)


def _average(rows: NDArray[np.float16], crops: int) -> NDArray[np.float16]:
    """Turn (T, crops x D) into (T, D); the view that came where there is one crop."""
    if crops == 1:
        return rows
    whole = rows.reshape(len(rows), crops, -1).astype(np.float32)
    average: NDArray[np.float16] = whole.mean(1).astype(np.float16)
    return average
