"""The two frozen networks: timm's MobileViT for frames, transformers' Wav2Vec2 for sound."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import math
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import timm
import timm.data
import torch
from huggingface_hub import constants as hub
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from extract.decode import SAMPLE_RATE
from extract.reader import Preparation

RANDOM_SEED = 0  # of `--weights random`
HUB_TIMEOUT = 5  # seconds
WINDOW_SECONDS = 20.0  # of sound that Wav2Vec2 reads at once
OVERLAP_SECONDS = 4.0  # in which one window's rows fade into the next one's


# glibc gives the memory of every large activation back to the kernel and asks for it again at the
# next layer; keeping up to 1 GiB makes MobileViT up to twice as fast on a CPU
if sys.platform == "linux":
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(parameter, 2**30)


class WeightsError(Exception):
    """A network whose weights cannot be had; the message gives the ways out."""


class VideoBackbone:
    """A timm MobileViT: RGB frames to one row each, preprocessed as the model was trained.

    Args:
        source: ``{"name": timm model or folder, "weights": "pretrained" | "random",
            "file": weights file or None}``.
        device: where it runs.
        precision: ``fp32`` or ``bf16``.
    """

    def __init__(self, source: dict[str, Any], device: torch.device, precision: str) -> None:
        name = source["name"]
        if Path(name).is_dir():
            name = f"local-dir:{name}"
        options: dict[str, Any] = {"num_classes": 0, "pretrained": source["weights"] != "random"}
        if source.get("file"):
            options["pretrained_cfg_overlay"] = {"file": source["file"]}

        def load() -> nn.Module:
            with _seeded():
                model: nn.Module = timm.create_model(name, **options)
                return model

        try:
            model = _cache_first(load)
        except Exception as error:  # the hub, its cache and every file format fail in their own way
            if options["pretrained"]:
                raise _no_weights("video", source, error) from error
            raise WeightsError(
                f"timm has no model {name!r}; give one of timm.list_models('mobilevit*')"
            ) from error
        self.model = _freeze(model, device).to(memory_format=torch.channels_last)
        self.device = device
        self.precision = precision
        self.features = int(model.num_features)
        self.config = timm.data.resolve_data_config(model=model)
        self.prepare = _preparation(self.config)
        self._mean = torch.tensor(self.config["mean"], device=device)[:, None, None]
        self._std = torch.tensor(self.config["std"], device=device)[:, None, None]
        architecture = model.pretrained_cfg["architecture"]
        self.recipe = {
            "model": architecture,
            "features": self.features,
            "weights_sha256": _weights_hash(model),
            "preprocessing": {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in sorted(self.config.items())
            },
            "frame": "middle of the snippet",
        }

    def __call__(self, frames: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return (len(frames), features) for frames that `prepare` has brought to size."""
        batch = torch.from_numpy(np.stack(frames))
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        # (n, H, W, 3) seen as (n, 3, H, W): channels last, which convolutions like best
        pixels = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        with torch.inference_mode(), _autocast(self.device, self.precision):
            rows = self.model((pixels / 255 - self._mean) / self._std)
        return np.asarray(rows.float().cpu().numpy())


def _preparation(config: dict[str, Any]) -> Preparation:
    """Return what timm's transform for evaluation does before it makes tensors."""
    _, height, width = config["input_size"]
    interpolation = str(config["interpolation"]).upper()
    if (
        config["crop_mode"] != "center"
        or height != width
        or interpolation not in Image.Resampling.__members__
    ):
        raise WeightsError(
            f"the video network wants its frames of {height} x {width} with crop mode "
            f"{config['crop_mode']} and {interpolation.lower()} interpolation; expected a square "
            "cut out of the centre: give another --video-model"
        )
    scale = math.floor(height / config["crop_pct"])
    return Preparation(scale, (height, width), Image.Resampling[interpolation])


class AudioBackbone:
    """A transformers Wav2Vec2: a 16 kHz mono waveform to one row per snippet.

    The base checkpoints normalise over the whole of what they are given, so that padding a batch
    would change the values: every window goes alone, at its own length, without padding. Sound
    longer than a window is read in windows that overlap and fade into each other.

    Args:
        source: ``{"name": hub name or folder, "weights": "pretrained" | "random"}``.
        device: where it runs.
        precision: ``fp32`` or ``bf16``.
    """

    def __init__(self, source: dict[str, Any], device: torch.device, precision: str) -> None:
        model, self.extractor = _load_wav2vec2(source)
        self.model = _freeze(model, device)
        self.device = device
        self.precision = precision
        config: Any = model.config
        self.features = int(config.hidden_size)
        self.stride = math.prod(config.conv_stride)  # samples from one output frame to the next
        self.field = 1  # samples that one output frame of the convolutions sees
        for kernel, stride in zip(
            reversed(config.conv_kernel), reversed(config.conv_stride), strict=True
        ):
            self.field = (self.field - 1) * stride + kernel
        self.recipe = {
            "model": "wav2vec2",
            "features": self.features,
            "weights_sha256": _weights_hash(model),
            "architecture": {
                key: getattr(config, key)
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
            "layer": "last",
            "pooling": "mean over the frames centred in the snippet",
            "window_seconds": WINDOW_SECONDS,
            "overlap_seconds": OVERLAP_SECONDS,
        }

    def __call__(
        self, waveform: NDArray[np.float32], first: int, snippets: int, snippet_seconds: float
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the rows of a clip's sound and where they are valid.

        Args:
            waveform: (samples,) at 16 kHz.
            first: where it begins on the clip's clock, in samples; not negative.
            snippets: T, how many snippets the clip has.
            snippet_seconds: their length.

        Returns:
            (T, features) rows, each the mean of the output frames centred in its snippet, and (T,)
            validity: False where there was no sound.
        """
        step = snippet_seconds * SAMPLE_RATE  # samples per snippet
        last = first + len(waveform)
        rows = np.zeros((snippets, self.features), np.float32)
        weight = np.zeros(snippets, np.float32)
        begin, end = int(first / step), min(snippets, math.ceil(last / step))
        length = round(WINDOW_SECONDS / snippet_seconds)
        overlap = round(OVERLAP_SECONDS / snippet_seconds)
        for start, stop in windows(begin, end, length, overlap):
            low, high = max(first, round(start * step)), min(last, round(stop * step))
            if high - low < self.field:
                continue
            outputs = self._read(waveform[low - first : high - first])
            centres = low + self.stride * np.arange(len(outputs)) + self.field / 2
            snippet = np.minimum((centres / step).astype(np.int64), snippets - 1)
            count = np.bincount(snippet, minlength=snippets)
            total = np.zeros_like(rows)
            np.add.at(total, snippet, outputs)
            heard = count > 0
            fade = _fade(np.arange(snippets), start, stop, begin, end, overlap) * heard
            rows[heard] += fade[heard, None] * total[heard] / count[heard, None]
            weight += fade
        valid = weight > 0
        rows[valid] /= weight[valid, None]
        return rows, valid

    def _read(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (frames, features): what the network gives for this very window."""
        values = self.extractor(window, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values
        with torch.inference_mode(), _autocast(self.device, self.precision):
            outputs = self.model(values.to(self.device)).last_hidden_state[0]
        return np.asarray(outputs.float().cpu().numpy())


def windows(begin: int, end: int, length: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yield windows [start, stop) that cover [begin, end): all of `length`, or one shorter one.

    Neighbours share at least `overlap`.

    >>> list(windows(0, 10, 6, 2))
    [(0, 6), (4, 10)]
    >>> list(windows(0, 3, 6, 2))
    [(0, 3)]
    """
    start = begin
    while start + length < end:
        yield start, start + length
        start += length - overlap
    if begin < end:
        yield max(begin, end - length), end


def _fade(
    snippet: NDArray[np.int64], start: int, stop: int, begin: int, end: int, overlap: int
) -> NDArray[np.float32]:
    """Return the weight of the window [start, stop) in each snippet: ramps where others overlap."""
    rise = (snippet - start + 1) / (overlap + 1) if start > begin else np.ones(len(snippet))
    fall = (stop - snippet) / (overlap + 1) if stop < end else np.ones(len(snippet))
    inside = (snippet >= start) & (snippet < stop)
    return np.where(inside, np.minimum(1, np.minimum(rise, fall)), 0).astype(np.float32)


def _load_wav2vec2(source: dict[str, Any]) -> tuple[nn.Module, Wav2Vec2FeatureExtractor]:
    name = source["name"]
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        if source["weights"] == "random":
            config = _config(name)
            with _seeded():
                model = Wav2Vec2Model(config)
        else:
            model, report = _cache_first(
                lambda: Wav2Vec2Model.from_pretrained(name, output_loading_info=True)
            )
            # the mask embedding serves pretraining only; some checkpoints leave it out
            lost = sorted(set(report["missing_keys"]) - {"masked_spec_embed"})
            if lost:
                raise WeightsError(
                    f"the checkpoint {name} lacks {len(lost)} weights of Wav2Vec2 ({lost[0]}, ...) "
                    "and would be random there; give a complete Wav2Vec2 checkpoint"
                )
    except WeightsError:
        raise
    except Exception as error:  # the hub, its cache and every file format fail in their own way
        raise _no_weights("audio", source, error) from error
    try:
        extractor = _cache_first(lambda: Wav2Vec2FeatureExtractor.from_pretrained(name))
    except Exception:  # absent: the class's defaults are those of the published checkpoints
        extractor = Wav2Vec2FeatureExtractor()
    return model, extractor


def _config(name: str) -> Wav2Vec2Config:
    """Return an architecture for random weights; that of wav2vec2-base needs no download."""
    if name == "facebook/wav2vec2-base":
        return Wav2Vec2Config()
    return _cache_first(lambda: Wav2Vec2Config.from_pretrained(name))


def _cache_first(load: Callable[[], Any]) -> Any:
    """Load from disk or the hub's cache; ask the hub only if that fails and it answers at all.

    Left to themselves, the hub's clients retry for a minute on a node without internet.
    """
    told_offline = hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = True
    try:
        return load()
    except Exception:
        if told_offline or not _hub_answers():
            raise
    finally:
        hub.HF_HUB_OFFLINE = told_offline
    return load()


def _hub_answers() -> bool:
    try:
        urllib.request.urlopen(hub.ENDPOINT, timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _no_weights(stream: str, source: dict[str, Any], error: Exception) -> WeightsError:
    wanted = source.get("file") or source["name"]
    files = "--video-weights FILE" if stream == "video" else "--audio-model FOLDER"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return WeightsError(
        f"no weights for the {stream} network: {wanted} could not be loaded ({first}).\n"
        "Three ways out:\n"
        "  1. on a machine with internet, run the same command once: the weights stay in the hub's "
        "cache (copy ~/.cache/huggingface to here);\n"
        f"  2. give a local checkpoint: {files};\n"
        "  3. to try the pipeline only: --weights random (seeded, no knowledge in them)."
    )


def _freeze(model: nn.Module, device: torch.device) -> nn.Module:
    return model.eval().requires_grad_(False).to(device)


def _weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of every weight, whatever file it came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _seeded() -> Iterator[None]:
    """Fixed random numbers inside, the caller's own ones untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        yield


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
