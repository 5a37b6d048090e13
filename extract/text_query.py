"""From a text to the row that it is compared with: the search for what is seen in a clip."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.backbones.base import WeightsError, load_backbone
from extract.device import pick_device
from features import Recipe


def read_text(text: str, stream: str, recipe: Recipe, device: str = "auto") -> NDArray[np.float32]:
    """Return (values,), which points where the rows of a stream do that fit a text.

    Args:
        text: what is to be seen.
        stream: one whose settings in `recipe` have a key ``text``.
        recipe: of a store.
        device: ``auto`` (CUDA, then Apple's MPS, then the CPU) or a torch device.

    Raises:
        WeightsError: the network cannot be loaded, or is not the one that made the stream.
    """
    source = recipe.source.get(stream, {})
    network: Any = load_backbone(stream, source, pick_device(device), "fp32")
    wanted = recipe.streams[stream].get("weights_sha256")
    if network.recipe.get("weights_sha256") != wanted or not hasattr(network, "read_text"):
        raise WeightsError(
            f"the network found for the stream {stream} is not the one that made it, so texts that "
            f"it reads cannot be compared; give the checkpoint whose weights have SHA-256 {wanted}"
        )
    row: NDArray[np.float32] = network.read_text(text)
    return row
