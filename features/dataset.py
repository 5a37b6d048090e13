"""Clips of a store for a training loop of one's own: what torch's `DataLoader` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from features.clip_features import Features
from features.recipe import FeatureError

if TYPE_CHECKING:
    from torch import Tensor


class HasId(Protocol):
    """What names a clip of a store, as `manifests.Clip` does."""

    @property
    def id(self) -> str: ...


class ClipSnippets(NamedTuple):
    """One clip, in arrays of its own.

    Attributes:
        clip: as it was given.
        streams: stream name -> (T, D) float32; rows that are not valid are zeros.
        valid: stream name -> (T,) bool, true where the stream has something to say.
    """

    clip: str | HasId
    streams: dict[str, NDArray[np.float32]]
    valid: dict[str, NDArray[np.bool_]]


class SnippetBatch(NamedTuple):
    """Clips padded with zeros to the longest of them.

    Attributes:
        clips: as they were given.
        streams: stream name -> (batch, time, D) float32.
        valid: stream name -> (batch, time) bool, true where the stream has something to say.
        mask: (batch, time) bool, true inside the clip.
    """

    clips: list[str | HasId]
    streams: dict[str, Tensor]
    valid: dict[str, Tensor]
    mask: Tensor


class SnippetDataset:
    """Some clips of a store, to be read by number: a dataset as torch's `DataLoader` takes it.

    >>> dataset = SnippetDataset(store, clips)                                # doctest: +SKIP
    >>> DataLoader(dataset, 16, shuffle=True, collate_fn=dataset.collate)     # doctest: +SKIP

    Worker processes open the store anew (``spawn``) or share its memory (``fork``). Torch is
    imported by `collate` alone.

    Args:
        store: clip id -> features.
        clips: which, and in which order: ids, or what has one, such as the clips of a manifest.
        streams: those to read; all of the first clip if none are given.

    Raises:
        FeatureError: a clip, or a stream of the first one, is not in the store.
    """

    def __init__(
        self,
        store: Mapping[str, Features],
        clips: Sequence[str | HasId],
        streams: Sequence[str] = (),
    ) -> None:
        lacking = [i for i in map(_id, clips) if i not in store]
        if lacking:
            raise FeatureError(
                f"clips that are not in the store: {len(lacking)} of {len(clips)} "
                f"({', '.join(lacking[:3])}); leave them out"
            )
        self.store, self.clips = store, list(clips)
        known = store[_id(self.clips[0])].streams if self.clips else {}
        self.streams = list(streams or known)
        if absent := [name for name in self.streams if name not in known]:
            raise FeatureError(
                f"no stream {', '.join(absent)} in the store; it has {', '.join(known)}"
            )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> ClipSnippets:
        clip = self.clips[number]
        features = self.store[_id(clip)]
        valid = {name: features.valid[name].copy() for name in self.streams}
        streams = {
            name: np.where(own[:, None], features.streams[name], np.float16(0)).astype(np.float32)
            for name, own in valid.items()
        }
        return ClipSnippets(clip, streams, valid)

    @staticmethod
    def collate(items: Sequence[ClipSnippets]) -> SnippetBatch:
        """Return clips as one batch: the `collate_fn` of a `DataLoader`."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        def padded(arrays: list[NDArray[np.generic]]) -> Tensor:
            return pad_sequence([torch.from_numpy(a) for a in arrays], batch_first=True)

        names = items[0].streams
        lengths = [len(next(iter(item.valid.values()))) for item in items]
        return SnippetBatch(
            [item.clip for item in items],
            {name: padded([item.streams[name] for item in items]) for name in names},
            {name: padded([item.valid[name] for item in items]) for name in names},
            padded([np.ones(length, bool) for length in lengths]),
        )


def _id(clip: str | HasId) -> str:
    return clip if isinstance(clip, str) else clip.id
