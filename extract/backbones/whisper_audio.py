"""Sound by the encoder of Whisper, which reads its spectrogram (Radford et al., ICML 2023)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, WhisperFeatureExtractor, WhisperForAudioClassification

from extract.backbones.base import seeded
from extract.backbones.hub import load_complete
from extract.backbones.sound_encoder import SoundEncoder, settings_of, spectrogram_extractor
from extract.decoding.sound_placement import SAMPLE_RATE


class WhisperAudio(SoundEncoder):
    """The encoder of Whisper: a frame every 20 ms, of half a minute that is filled up with silence.

    Args:
        name, config, weights: see `SoundEncoder`.
    """

    takes = ("input_features",)

    def __init__(self, name: str, config: PretrainedConfig, weights: str) -> None:
        given: Any = config
        self.extractor = spectrogram_extractor(
            WhisperFeatureExtractor,
            name,
            sampling_rate=SAMPLE_RATE,
            feature_size=given.num_mel_bins,
            nb_max_frames=2 * given.max_source_positions,
            dither=0.0,  # random numbers
        )
        if weights == "random":
            with seeded():
                whole: Any = WhisperForAudioClassification(config)
        else:
            # of the classes that have the encoder, the one without a decoder
            head = ["projector.", "classifier.", "layer_weights"]
            whole = load_complete(WhisperForAudioClassification, name, spare=head)
        model = whole.encoder
        self.model, self.layers = model, model.layers
        hop = self.extractor.hop_length
        self.stride = 2 * hop
        self.field = self.extractor.n_fft + 4 * hop  # two convolutions of three spectra each
        self.centre = 0.0  # spectra are centred: the first one sees its half mirrored
        self.window = self.extractor.n_samples
        self.features = int(given.d_model)
        self.recipe = {
            "model": given.model_type,
            "architecture": settings_of(
                given,
                "encoder_layers encoder_attention_heads activation_function scale_embedding",
            ),
            "preprocessing": settings_of(
                self.extractor,
                "sampling_rate feature_size hop_length chunk_length n_fft padding_value",
            ),
        }

    def frames(self, outputs: Tensor, samples: int) -> Tensor:
        """See `SoundEncoder.frames`; a frame counts if its centre is in the sound.

        Args:
            outputs, samples: see there.
        """
        return outputs[:, : math.ceil(samples / self.stride)]
