"""Sound by the audio half of a CLAP, which learned sounds together with their captions.

CLAP (Wu et al., ICASSP 2023; HTS-AT of Chen et al., ICASSP 2022) gives one row for a window.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly
from torch import Tensor, nn
from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor, PretrainedConfig

from extract.backbones.base import seeded
from extract.backbones.hub import load_complete
from extract.backbones.sound_encoder import SoundEncoder, settings_of, spectrogram_extractor
from extract.decoding.sound_placement import SAMPLE_RATE


class ClapAudio(SoundEncoder):
    """The audio half of a CLAP: the projected row of a window.

    Its sound has 48 kHz, to which that of 16 kHz is brought; what is above 8 kHz stays empty.

    Args:
        name, config, weights: see `SoundEncoder`.
    """

    takes = ("input_features", "is_longer")
    gives = "audio_embeds"
    pooling = "a window centred on the snippet"

    def __init__(self, name: str, config: PretrainedConfig, weights: str) -> None:
        given: Any = getattr(config, "audio_config", config)
        self.extractor = spectrogram_extractor(ClapFeatureExtractor, name)
        self._rate = self.extractor.sampling_rate
        if weights == "random":
            with seeded():
                self.model = ClapAudioModelWithProjection(given)
        else:
            self.model = load_complete(ClapAudioModelWithProjection, name)
        self.layers = nn.ModuleList()
        self.stride = 0
        self.window = self.extractor.nb_max_samples * SAMPLE_RATE // self._rate
        # of shorter sound there is not one spectrum
        self.field = math.ceil(self.extractor.fft_window_size * SAMPLE_RATE / self._rate)
        self.centre = self.field / 2
        self.features = int(given.projection_dim)
        if self._rate > SAMPLE_RATE:
            self.assumed = (
                f"{name} has learned from sound of {self._rate} Hz; here sound has {SAMPLE_RATE}, "
                f"so what is higher than {SAMPLE_RATE // 2} Hz is missing for it"
            )
        self.recipe = {
            "model": "clap",
            "architecture": settings_of(
                given,
                "depths num_attention_heads window_size spec_size patch_size patch_stride "
                "enable_fusion fusion_type hidden_act projection_hidden_act layer_norm_eps",
            ),
            "preprocessing": settings_of(
                self.extractor,
                "sampling_rate feature_size hop_length max_length_s fft_window_size frequency_min "
                "frequency_max truncation padding",
            ),
        }

    def inputs(self, windows: NDArray[np.float32]) -> dict[str, Tensor]:
        """Turn (n, samples) into what the network takes, one by one.

        The extractor draws lots: which of several windows it takes for longer than it is. Where
        there is one, and no longer one than it takes, there is nothing to draw.
        """
        sound = resample_poly(windows, self._rate, SAMPLE_RATE, axis=1)
        each = [self.prepared(one[None], self._rate) for one in sound]
        return {name: torch.cat([given[name] for given in each]) for name in self.takes}

    def frames(self, outputs: Tensor, samples: int) -> Tensor:
        """Turn (n, features) into (n, 1, features).

        Args:
            outputs, samples: see `SoundEncoder.frames`.
        """
        return outputs[:, None]
