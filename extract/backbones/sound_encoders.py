"""The networks of sound that transformers has: what each kind takes, and when its outputs are.

Wav2Vec2 and its kin read the waveform. AST (Gong et al., Interspeech 2021) and the encoder of
Whisper (Radford et al., ICML 2023) read its spectrogram, which the checkpoint's own feature
extractor makes.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    ASTFeatureExtractor,
    ASTModel,
    AutoModel,
    PretrainedConfig,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
)
from transformers.utils import is_speech_available

from extract.backbones.base import WeightsError, seeded
from extract.backbones.hub import cache_first, load_complete, published_settings
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


class Waveforms(SoundEncoder):
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


class Ast(SoundEncoder):
    """AST: a frame is the mean, over all frequencies, of the patches of one time.

    Args:
        name, config, weights: see `SoundEncoder`.
    """

    FRAME, HOP = 400, 160  # samples of 16 kHz, in which its spectra are taken

    def __init__(self, name: str, config: PretrainedConfig, weights: str) -> None:
        given: Any = config
        self.extractor = spectrogram_extractor(ASTFeatureExtractor, name)
        _expect(
            name,
            self.extractor,
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


class Whisper(SoundEncoder):
    """The encoder of Whisper: a frame every 20 ms, of half a minute that is filled up with silence.

    Args:
        name, config, weights: see `SoundEncoder`.
    """

    takes = ("input_features",)

    def __init__(self, name: str, config: PretrainedConfig, weights: str) -> None:
        given: Any = config
        self.extractor = spectrogram_extractor(WhisperFeatureExtractor, name)
        _expect(
            name,
            self.extractor,
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


def spectrogram_extractor(kind: Any, name: str) -> Any:
    """Return what makes the spectrograms that a network was trained on.

    Args:
        kind: a class of feature extractors.
        name: of the checkpoint.
    """
    if not any(published_settings(name, file) for file in (PROCESSOR, "processor_config.json")):
        raise WeightsError(
            f"no {PROCESSOR} of {name} was found, which says how its spectrograms are made; give "
            "the whole checkpoint"
        )
    return cache_first(lambda: kind.from_pretrained(name))


def _expect(name: str, extractor: Any, **settings: object) -> None:
    """Refuse spectrograms that are not those which a network takes.

    Args:
        name: of its checkpoint.
        extractor: makes them.
        settings: as they must be.
    """
    for key, expected in settings.items():
        if (found := getattr(extractor, key, None)) != expected:
            raise WeightsError(
                f"{name}: its {PROCESSOR} gives {key} {found}; expected {expected}, which the "
                "network reads: give another checkpoint"
            )


def settings_of(given: object, names: str) -> dict[str, Any]:
    """Return some attributes, as plain data.

    Args:
        given: has them.
        names: of the attributes.
    """
    return {name: getattr(given, name, None) for name in names.split()}
