"""Frames that wait until there are enough of them for a network's batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from extract.backbones.base import FrameBackbone
from extract.clip_assembly import ClipAssembly
from extract.decoding.messages import Frame
from extract.device import running_on

FRAMES_PER_BATCH = 16
FRAMES_PER_GPU_BATCH = 64


class FrameBatches:
    """Runs the networks of frames, batch by batch.

    A clip's rows do not depend on what it is read together with: on a CPU its frames share no batch
    with those of others; on a GPU, where short batches are slow, they do, and every batch is filled
    up to one size, as a network's arithmetic depends on how many frames it gets, not on which.

    Args:
        networks: stream -> its network.
        device: where they run.
        size: frames in a batch.
    """

    def __init__(
        self, networks: Mapping[str, FrameBackbone], device: torch.device, size: int
    ) -> None:
        self._networks, self._device = networks, device
        self._shared = device.type != "cpu"
        self._size = size
        # (stream, clip: 0 if clips share batches) -> the frames of its next batch
        self._pending: dict[tuple[str, int], list[tuple[ClipAssembly[Any], Frame]]] = {}

    def add(self, clip: ClipAssembly[Any], frame: Frame) -> None:
        """Take a frame, and run its network if its batch is full.

        Args:
            clip: gets the frame's row.
            frame: as the reading process sent it.
        """
        key = frame.stream, 0 if self._shared else id(clip)
        batch = self._pending.setdefault(key, [])
        batch.append((clip, frame))
        clip.pending_frames += 1
        if len(batch) == self._size:
            self._run_batch(key)

    def drop(self, clip: ClipAssembly[Any]) -> None:
        """Forget the pending frames of a clip."""
        for key, batch in list(self._pending.items()):
            self._pending[key] = [(owner, frame) for owner, frame in batch if owner is not clip]
            if not self._pending[key]:
                del self._pending[key]
        clip.pending_frames = 0

    def finish(self, clip: ClipAssembly[Any] | None = None) -> None:
        """Run the last batches of a clip of which no more frames come; of all clips if None.

        Batches that clips share wait for the frames of others.
        """
        for stream, owner in list(self._pending):
            if clip is None or owner == id(clip):
                self._run_batch((stream, owner))

    def _run_batch(self, key: tuple[str, int]) -> None:
        batch = self._pending.pop(key)
        pixels = [frame.pixels for _, frame in batch]
        if self._shared:
            pixels += [np.zeros_like(pixels[0])] * (self._size - len(pixels))
        with running_on(self._device):
            rows = self._networks[key[0]](pixels)
        for (clip, frame), row in zip(batch, rows, strict=False):
            clip.add_row(frame, row)
