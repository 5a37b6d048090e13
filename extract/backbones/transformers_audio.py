"""Sound by a transformers encoder: Wav2Vec2, HuBERT, WavLM and their kin; AST, Whisper, CLAP."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, PretrainedConfig, Wav2Vec2Config

from extract.backbones.base import WeightsError, autocast, freeze, weights_hash
from extract.backbones.checkpoint import check_folder
from extract.backbones.hub import cache_first, no_weights, quiet_transformers
from extract.backbones.sound_encoder import SoundEncoder

# by transformers' name for them; others read waveforms. Only the one in use is imported: the others
# take half a second of every process that loads networks
KINDS = {
    "audio-spectrogram-transformer": "ast_audio:AstAudio",
    "whisper": "whisper_audio:WhisperAudio",
    "clap": "clap_audio:ClapAudio",
    "clap_audio_model": "clap_audio:ClapAudio",
}
WAVEFORMS = "wav2vec2_audio:Wav2Vec2Audio"
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
] + [
    "microsoft/wavlm-base",
    "microsoft/wavlm-base-plus",
    "microsoft/wavlm-large",
    "MIT/ast-finetuned-audioset-10-10-0.4593",
    "openai/whisper-tiny",
    "openai/whisper-base",
    "openai/whisper-small",
    "openai/whisper-large-v3",
    "laion/clap-htsat-fused",
    "laion/clap-htsat-unfused",
    "laion/larger_clap_general",
]
LAST = "last"  # layer, and after it the normalisation that some networks end with


class AudioBackbone:
    """A `SoundBackbone`: a transformers encoder.

    Args:
        source: ``{"name": hub name or folder, "weights": "pretrained" | "random", "layers": which
            hidden layers to average, "last" if absent}``; see `parse_layers`.
        device: where it runs.
        precision: ``fp32`` or ``bf16``.
    """

    reads: Literal["sound"] = "sound"

    def __init__(self, source: dict[str, Any], device: torch.device, precision: str) -> None:
        self._encoder = encoder = _load(source)
        model, self.extractor, self.assumed = encoder.model, encoder.extractor, encoder.assumed
        whole = weights_hash(model)
        layers = source.get("layers", LAST)
        if layers != LAST and not encoder.layers:
            raise WeightsError(
                f"--layers {layers}: {source['name']} has one row for a window; expected last"
            )
        self._layers = parse_layers(layers, len(encoder.layers))
        self._outputs: dict[int, torch.Tensor] = {}
        if self._layers:
            self._watch(encoder.layers)
        convolutions: Any = getattr(model, "encoder", None)
        if precision == "bf16" and hasattr(convolutions, "pos_conv_embed"):
            convolutions.pos_conv_embed = _InFloat32(convolutions.pos_conv_embed)
        self.model = freeze(model, device)
        self.device = device
        self.precision = precision
        self.features = encoder.features
        self.stride, self.field = encoder.stride, encoder.field
        self.centre, self.window = encoder.centre, encoder.window
        self.recipe = {
            **encoder.recipe,
            "features": self.features,
            "weights_sha256": whole,
            "layer": "mean of " + ", ".join(map(str, self._layers)) if self._layers else LAST,
            "pooling": encoder.pooling,
        }

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn (n, samples) into (n, frames, features): what it gives for each very window."""
        inputs = self._encoder.inputs(windows)
        given = {name: value.to(self.device) for name, value in inputs.items()}
        with torch.inference_mode(), autocast(self.device, self.precision):
            outputs = getattr(self.model(**given), self._encoder.gives)
            if self._layers:
                outputs = torch.stack([self._outputs[n] for n in self._layers]).float().mean(0)
        frames = self._encoder.frames(outputs.float(), windows.shape[1])
        return np.asarray(frames.cpu().numpy())

    def _watch(self, layers: nn.ModuleList) -> None:
        """Note the outputs of the chosen layers, and leave out those behind the last chosen one."""

        def note(number: int) -> Callable[..., None]:
            def hook(module: nn.Module, given: Any, output: Any) -> None:
                self._outputs[number] = output if isinstance(output, torch.Tensor) else output[0]

            return hook

        for number in self._layers:
            layers[number - 1].register_forward_hook(note(number))
        del layers[max(self._layers) :]


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


def _load(source: dict[str, Any]) -> SoundEncoder:
    name = source["name"]
    quiet_transformers()
    try:
        if Path(name).is_dir():
            check_folder(Path(name))
        if name == "facebook/wav2vec2-base" and source["weights"] == "random":
            config: PretrainedConfig = Wav2Vec2Config()  # needs no download
        else:
            config = cache_first(lambda: AutoConfig.from_pretrained(name))
        kind = KINDS.get(config.model_type, WAVEFORMS)
        encoder: type[SoundEncoder] = resolve_name(f"extract.backbones.{kind}")
        return encoder(name, config, source["weights"])
    except WeightsError as error:
        raise WeightsError(f"audio network: {error}") from error
    except Exception as error:  # the hub, its cache and every file format fail in their own way
        raise no_weights("audio", name, "--audio-model FOLDER", error, USUAL) from error
