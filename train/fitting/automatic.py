"""Settings of a training that follow from its clips where the configuration leaves them open."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from train.config import Config

MOST_LAYERS = 6  # a receptive field of 63 snippets to each side; more were not seen to help
DETECTION_LAYERS = 3  # the farther a stage sees, the less a clip's label tells it when
SMALLEST_BATCH, LARGEST_BATCH = 4, 16
STEPS_PER_EPOCH = 40  # at least: small sets are passed over several times
FEWEST_BATCHES = 3  # of a set of clips
SNIPPETS_PER_BATCH = 6000  # at most; of long clips, fewer are enough


def with_layers(config: Config, lengths: NDArray[np.int64]) -> Config:
    """Return the settings with ``layers`` settled for clips of these lengths in snippets."""
    if config.layers:
        return config
    layers = layers_to_cover(lengths)
    if config.task == "detection":
        layers = min(layers, DETECTION_LAYERS)
    return replace(config, layers=layers)


def layers_to_cover(lengths: NDArray[np.int64]) -> int:
    """Return how many layers see across nine clips in ten, at most `MOST_LAYERS`.

    A stage of L layers sees 2^(L+1) - 1 snippets.

    >>> layers_to_cover(np.array([8, 8, 8]))
    3
    """
    long = float(np.percentile(lengths, 90))
    return min(MOST_LAYERS, max(1, math.ceil(math.log2((long + 1) / 2))))


def clips_per_batch(config: Config, clips: int, length: float) -> int:
    """Return how many clips a step takes, of so many training clips of that median length.

    >>> [clips_per_batch(Config(), *clips) for clips in ((20, 40), (3000, 40), (3000, 700))]
    [6, 16, 8]
    """
    if config.batch_size:
        return config.batch_size
    most = min(LARGEST_BATCH, clips // FEWEST_BATCHES, int(SNIPPETS_PER_BATCH / length))
    return max(SMALLEST_BATCH, most)
