"""What a network of transformers that reads sound has: what it takes, and when its outputs are."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig

from extract.backbones.base import WeightsError
from extract.backbones.hub import cache_first, published_settings
from extract.decoding.sound_placement import SAMPLE_RATE

PROCESSOR = "preprocessor_config.json"


class SoundEncoder:
    """A kind of network; `AudioBackbone` runs it.

    Args:
        name: of the checkpoint on the hub, or a folder.
        config: its architecture.
        weights: ``pretrained`` or ``random``.

    Attributes:
        model: the part of the network that is run.
        layers: its hidden layers.
        extractor: makes of waveforms what it takes.
        field, stride, centre, window: see `SoundBackbone`.
        takes: which outputs of the extractor go into the network.
        gives: which of the network's outputs is taken, where no hidden layer is.
        pooling: how a row is made of frames.
        features: values in a row.
        recipe: what decides a row's value beside the weights.
        assumed: what could not be known of the checkpoint.
    """

    model: nn.Module
    layers: nn.ModuleList
    extractor: Any
    field: int
    stride: int
    centre: float
    window: int | None = None
    takes: ClassVar[tuple[str, ...]] = ("input_values",)
    gives: ClassVar[str] = "last_hidden_state"
    pooling: ClassVar[str] = "mean over the frames centred in the snippet"
    features: int
    recipe: dict[str, Any]
    assumed = ""

    def __init__(self, name: str, config: PretrainedConfig, weights: str) -> None:
        raise NotImplementedError

    def inputs(self, windows: NDArray[np.float32]) -> dict[str, Tensor]:
        """Turn (n, samples) into what the network takes."""
        return self.prepared(windows, SAMPLE_RATE)

    def prepared(self, sound: NDArray[np.float32], rate: int) -> dict[str, Tensor]:
        """Return what the extractor makes of sound.

        Args:
            sound: (n, samples).
            rate: samples in a second.
        """
        given: Any = self.extractor(list(sound), sampling_rate=rate, return_tensors="pt")
        return {name: given[name] for name in self.takes}

    def frames(self, outputs: Tensor, samples: int) -> Tensor:
        """Turn outputs of a layer into (n, frames, features), without frames of padding alone.

        Args:
            outputs: (n, tokens, features).
            samples: of a window.
        """
        return outputs


def spectrogram_extractor(kind: Any, name: str, **settings: object) -> Any:
    """Return what makes the spectrograms that a network was trained on.

    Args:
        kind: a class of feature extractors.
        name: of the checkpoint.
        settings: as they must be, for the network to take these spectrograms.

    Raises:
        WeightsError: the checkpoint has none, or with other settings.
    """
    if not any(published_settings(name, file) for file in (PROCESSOR, "processor_config.json")):
        raise WeightsError(
            f"no {PROCESSOR} of {name} was found, which says how its spectrograms are made; give "
            "the whole checkpoint"
        )
    extractor = cache_first(lambda: kind.from_pretrained(name))
    for key, expected in settings.items():
        if (found := getattr(extractor, key, None)) != expected:
            raise WeightsError(
                f"{name}: its {PROCESSOR} gives {key} {found}; expected {expected}, which the "
                "network reads: give another checkpoint"
            )
    return extractor


def settings_of(given: object, names: str) -> dict[str, Any]:
    """Return some attributes, as plain data.

    Args:
        given: has them.
        names: of the attributes.
    """
    return {name: getattr(given, name, None) for name in names.split()}
