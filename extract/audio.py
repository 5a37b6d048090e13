"""Sound by a transformers encoder: Wav2Vec2, HuBERT, WavLM and their kin."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
)

from extract.backbones import (
    WeightsError,
    autocast,
    cache_first,
    freeze,
    load_complete,
    no_weights,
    quiet_transformers,
    seeded,
    weights_hash,
)
from extract.decode import SAMPLE_RATE

LAST = "last"  # layer, and after it the normalisation that some networks end with


class AudioBackbone:
    """A transformers encoder of waveforms.

    The base checkpoints normalise over the whole of what they are given, so that padding a batch
    would change the values: only windows of one exact length share one.

    Args:
        source: ``{"name": hub name or folder, "weights": "pretrained" | "random", "layers": which
            hidden layers to average, "last" if absent}``; see `parse_layers`.
        device: where it runs.
        precision: ``fp32`` or ``bf16``.
    """

    reads: Literal["sound"] = "sound"

    def __init__(self, source: dict[str, Any], device: torch.device, precision: str) -> None:
        model, self.extractor = _load(source)
        config: Any = model.config
        layers = source.get("layers", LAST)
        whole = weights_hash(model)
        self._layers = parse_layers(layers, config.num_hidden_layers)
        self._said: dict[int, torch.Tensor] = {}
        if self._layers:
            self._watch(model)
        self.model = freeze(model, device)
        self.device = device
        self.precision = precision
        self.features = int(config.hidden_size)
        self.stride = math.prod(config.conv_stride)
        self.field = 1
        for kernel, stride in zip(
            reversed(config.conv_kernel), reversed(config.conv_stride), strict=True
        ):
            self.field = (self.field - 1) * stride + kernel
        self.recipe = {
            "model": config.model_type,
            "features": self.features,
            "weights_sha256": whole,
            "architecture": {
                key: getattr(config, key, None)
                for key in (
                    "num_hidden_layers",
                    "num_attention_heads",
                    "feat_extract_norm",
                    "do_stable_layer_norm",
                    "hidden_act",
                    "layer_norm_eps",
                )
            },
            "preprocessing": {
                "sample_rate": SAMPLE_RATE,
                "normalize": bool(self.extractor.do_normalize),
            },
            "layer": "mean of " + ", ".join(map(str, self._layers)) if self._layers else LAST,
            "pooling": "mean over the frames centred in the snippet",
        }

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn (n, samples) into (n, frames, features): what it gives for each very window."""
        given: Any = self.extractor(list(windows), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        with torch.inference_mode(), autocast(self.device, self.precision):
            outputs = self.model(given.input_values.to(self.device)).last_hidden_state
            if self._layers:
                outputs = torch.stack([self._said[n] for n in self._layers]).float().mean(0)
        return np.asarray(outputs.float().cpu().numpy())

    def _watch(self, model: PreTrainedModel) -> None:
        """Note what the chosen layers say, and leave out those behind the last chosen one."""

        def note(number: int) -> Callable[..., None]:
            def hook(module: nn.Module, given: Any, output: Any) -> None:
                self._said[number] = output if isinstance(output, torch.Tensor) else output[0]

            return hook

        for number in self._layers:
            model.encoder.layers[number - 1].register_forward_hook(note(number))
        model.encoder.layers = model.encoder.layers[: max(self._layers)]


def parse_layers(text: str, depth: int) -> list[int]:
    """Return the hidden layers that a text names; none for ``last``.

    Args:
        text: ``last``, ``mean`` (all), ``6``, ``4-8`` or ``3,6,9``; 1 is the first.
        depth: how many layers there are.

    Raises:
        WeightsError: it names none, or more than there are.

    >>> parse_layers("4-6", 12), parse_layers("last", 12), parse_layers("3,9", 12)
    ([4, 5, 6], [], [3, 9])
    """
    if text == LAST:
        return []
    if text == "mean":
        return list(range(1, depth + 1))
    found: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        low, high = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, 0)
        if not 0 < low <= high <= depth:
            raise WeightsError(
                f"--layers {text}: expected last, mean, or numbers from 1 to {depth} (the layers "
                "of this network), such as 6, 4-8 or 3,6,9"
            )
        found |= set(range(low, high + 1))
    return sorted(found)


def _load(source: dict[str, Any]) -> tuple[PreTrainedModel, Wav2Vec2FeatureExtractor]:
    name = source["name"]
    quiet_transformers()
    try:
        config = _config(name, source["weights"])
        if not (hasattr(config, "conv_stride") and hasattr(config, "conv_kernel")):
            raise WeightsError(
                f"{name} is a {config.model_type}, which does not read waveforms; expected a "
                "Wav2Vec2, HuBERT, WavLM or another network with their convolutions"
            )
        if source["weights"] == "random":
            with seeded():
                model = AutoModel.from_config(config)
        else:
            # the mask embedding serves pretraining only; some checkpoints leave it out
            model = load_complete(AutoModel, name, spare=["masked_spec_embed"])
    except WeightsError:
        raise
    except Exception as error:  # the hub, its cache and every file format fail in their own way
        raise no_weights("audio", name, "--audio-model FOLDER", error) from error
    try:
        extractor = cache_first(lambda: Wav2Vec2FeatureExtractor.from_pretrained(name))
    except Exception:  # absent: the class's defaults are those of the published checkpoints
        extractor = Wav2Vec2FeatureExtractor()
    return model, extractor


def _config(name: str, weights: str) -> PretrainedConfig:
    """Return an architecture; with random weights, that of wav2vec2-base needs no download."""
    if name == "facebook/wav2vec2-base" and weights == "random":
        return Wav2Vec2Config()
    return cache_first(lambda: AutoConfig.from_pretrained(name))
