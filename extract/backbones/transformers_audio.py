"""Sound by a transformers encoder: Wav2Vec2, HuBERT, WavLM and their kin."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
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

from extract.backbones.base import WeightsError, autocast, freeze, seeded, weights_hash
from extract.backbones.checkpoint import check_folder
from extract.backbones.hub import (
    cache_first,
    load_complete,
    no_weights,
    published_settings,
    quiet_transformers,
)
from extract.decoding.sound_placement import SAMPLE_RATE

PROCESSOR = "preprocessor_config.json"
# names on the hub that are often meant, for those who mistype one
USUAL = [
    f"facebook/{name}"
    for name in (
        "wav2vec2-base",
        "wav2vec2-base-960h",
        "wav2vec2-large",
        "wav2vec2-large-960h",
        "wav2vec2-large-xlsr-53",
        "wav2vec2-xls-r-300m",
        "hubert-base-ls960",
        "hubert-large-ll60k",
        "data2vec-audio-base",
    )
] + [f"microsoft/{name}" for name in ("wavlm-base", "wavlm-base-plus", "wavlm-large")]
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
        model, self.extractor, self.assumed = _load(source)
        config: Any = model.config
        layers = source.get("layers", LAST)
        whole = weights_hash(model)
        self._layers = parse_layers(layers, config.num_hidden_layers)
        self._said: dict[int, torch.Tensor] = {}
        if self._layers:
            self._watch(model)
        if precision == "bf16" and hasattr(model.encoder, "pos_conv_embed"):
            model.encoder.pos_conv_embed = _InFloat32(model.encoder.pos_conv_embed)
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


class _InFloat32(nn.Module):
    """A part of a network that takes no part in `autocast`.

    For grouped convolutions over time, as those of the positions are, cuDNN has nothing fast in
    bfloat16: on an H100 they took longer than all other layers together.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            result: torch.Tensor = self.part(x.float())
        return result


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


def _load(source: dict[str, Any]) -> tuple[PreTrainedModel, Wav2Vec2FeatureExtractor, str]:
    """Return the network, what prepares its sound, and what had to be assumed of that."""
    name = source["name"]
    quiet_transformers()
    try:
        if Path(name).is_dir():
            check_folder(Path(name))
        config = _config(name, source["weights"])
        if not (hasattr(config, "conv_stride") and hasattr(config, "conv_kernel")):
            raise WeightsError(
                f"{name} is a {config.model_type}, which does not read waveforms; expected a "
                "Wav2Vec2, HuBERT, WavLM or another network with their convolutions"
            )
        if source["weights"] == "random":
            with seeded():
                model = AutoModel.from_config(config, dtype=torch.float32)
        else:
            # the mask embedding serves pretraining only; some checkpoints leave it out
            model = load_complete(AutoModel, name, spare=["masked_spec_embed"])
        extractor, assumed = _extractor(name)
    except WeightsError as error:
        raise WeightsError(f"audio network: {error}") from error
    except Exception as error:  # the hub, its cache and every file format fail in their own way
        raise no_weights("audio", name, "--audio-model FOLDER", error, USUAL) from error
    return model, extractor, assumed


def _extractor(name: str) -> tuple[Wav2Vec2FeatureExtractor, str]:
    """Return what prepares the sound for a network, and what had to be assumed of it."""
    if not published_settings(name, PROCESSOR):
        return Wav2Vec2FeatureExtractor(), (
            f"no {PROCESSOR} of {name} was found: its sound is taken to be normalised "
            "(do_normalize=True), as most such networks were trained, but not all"
        )
    extractor = cache_first(lambda: Wav2Vec2FeatureExtractor.from_pretrained(name))
    if extractor.sampling_rate != SAMPLE_RATE or not isinstance(extractor.do_normalize, bool):
        raise WeightsError(
            f"{name}: its {PROCESSOR} says sampling_rate {extractor.sampling_rate} and "
            f"do_normalize {extractor.do_normalize}; expected {SAMPLE_RATE} and true or false"
        )
    return extractor, ""


def _config(name: str, weights: str) -> PretrainedConfig:
    """Return an architecture; with random weights, that of wav2vec2-base needs no download."""
    if name == "facebook/wav2vec2-base" and weights == "random":
        return Wav2Vec2Config()
    return cache_first(lambda: AutoConfig.from_pretrained(name))
