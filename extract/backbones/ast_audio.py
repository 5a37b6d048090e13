"""Sound by AST, which reads its spectrogram (Gong et al., Interspeech 2021)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from transformers import ASTFeatureExtractor, ASTModel, PretrainedConfig
from transformers.utils import is_speech_available

from extract.backbones.base import seeded
from extract.backbones.hub import load_complete
from extract.backbones.sound_encoder import SoundEncoder, settings_of, spectrogram_extractor
from extract.decoding.sound_placement import SAMPLE_RATE


class AstAudio(SoundEncoder):
    """AST: a frame is the mean, over all frequencies, of the patches of one time.

    Args:
        name, config, weights: see `SoundEncoder`.
    """

    FRAME, HOP = 400, 160  # samples of 16 kHz, in which its spectra are taken

    def __init__(self, name: str, config: PretrainedConfig, weights: str) -> None:
        given: Any = config
        self.extractor = spectrogram_extractor(
            ASTFeatureExtractor,
            name,
            sampling_rate=SAMPLE_RATE,
            max_length=given.max_length,
            num_mel_bins=given.num_mel_bins,
        )
        if weights == "random":
            with seeded():
                model: Any = ASTModel(config)
        else:
            model = load_complete(ASTModel, name)
        self.model = model
        self.layers = model.layers if hasattr(model, "layers") else model.encoder.layer
        self._bands, self._columns = model.embeddings.get_shape(config)
        self.stride = given.time_stride * self.HOP
        self.field = (given.patch_size - 1) * self.HOP + self.FRAME
        self.centre = self.field / 2
        self.window = (self._columns - 1) * self.stride + self.field
        self.features = int(given.hidden_size)
        self.recipe = {
            "model": given.model_type,
            "architecture": settings_of(
                given,
                "num_hidden_layers num_attention_heads hidden_act layer_norm_eps patch_size "
                "frequency_stride time_stride",
            ),
            "preprocessing": settings_of(
                self.extractor, "sampling_rate num_mel_bins max_length do_normalize mean std"
            )
            # the extractor uses torchaudio where it is installed, whose last digits are others
            | {"spectra": "torchaudio" if is_speech_available() else "transformers"},
        }

    def frames(self, outputs: Tensor, samples: int) -> Tensor:
        """See `SoundEncoder.frames`; a column counts if its centre is in the sound.

        Args:
            outputs, samples: see there.
        """
        patches = outputs[:, -self._bands * self._columns :]  # after the tokens of the whole
        columns = patches.reshape(len(patches), self._bands, self._columns, -1).mean(1)
        return columns[:, : math.ceil((samples - self.centre) / self.stride)]
