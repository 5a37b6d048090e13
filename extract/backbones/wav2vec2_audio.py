"""Sound by a network that reads the waveform: Wav2Vec2, HuBERT, WavLM and their kin."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import AutoModel, PretrainedConfig, Wav2Vec2FeatureExtractor

from extract.backbones.base import WeightsError, seeded
from extract.backbones.hub import cache_first, load_complete, published_settings
from extract.backbones.sound_encoder import PROCESSOR, SoundEncoder, settings_of
from extract.decoding.sound_placement import SAMPLE_RATE


class Wav2Vec2Audio(SoundEncoder):
    """Wav2Vec2, HuBERT, WavLM: an output frame sees `field` samples.

    The base checkpoints normalise over the whole of what they are given, so that padding a batch
    would change the values: only windows of one exact length share one.

    Args:
        name, config, weights: see `SoundEncoder`.
    """

    def __init__(self, name: str, config: PretrainedConfig, weights: str) -> None:
        given: Any = config
        if not (hasattr(given, "conv_stride") and hasattr(given, "conv_kernel")):
            raise WeightsError(
                f"{name} is a {given.model_type}, which does not read sound in a known way; "
                "expected an AST, a Whisper, or a Wav2Vec2, HuBERT, WavLM or another network with "
                "their convolutions"
            )
        if weights == "random":
            with seeded():
                model = AutoModel.from_config(config, dtype=torch.float32)
        else:
            # the mask embedding serves pretraining only; some checkpoints leave it out
            model = load_complete(AutoModel, name, spare=["masked_spec_embed"])
        self.extractor, self.assumed = _waveform_extractor(name)
        self.model, self.layers = model, model.encoder.layers
        self.stride = math.prod(given.conv_stride)
        self.field = 1
        for kernel, stride in zip(
            reversed(given.conv_kernel), reversed(given.conv_stride), strict=True
        ):
            self.field = (self.field - 1) * stride + kernel
        self.centre = self.field / 2
        self.features = int(given.hidden_size)
        self.recipe = {
            "model": given.model_type,
            "architecture": settings_of(
                given,
                "num_hidden_layers num_attention_heads feat_extract_norm do_stable_layer_norm "
                "hidden_act layer_norm_eps",
            ),
            "preprocessing": {
                "sample_rate": SAMPLE_RATE,
                "normalize": bool(self.extractor.do_normalize),
            },
        }


def _waveform_extractor(name: str) -> tuple[Wav2Vec2FeatureExtractor, str]:
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
