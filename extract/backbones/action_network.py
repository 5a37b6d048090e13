"""Motion by a network that has learned actions, from a window of frames around each snippet.

torchvision's video models (S3D, R3D, R(2+1)D, MViT, Swin) and transformers' VideoMAE.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, VideoMAEConfig, VideoMAEImageProcessor, VideoMAEModel

from extract.backbones.base import WeightsError, autocast, freeze, on_device, seeded, weights_hash
from extract.backbones.checkpoint import check_folder, fit, read_tensors
from extract.backbones.hub import cache_first, load_complete, no_weights, quiet_transformers
from extract.preprocessing import FrameWindow

# frames, and how many of them a second, with which torchvision's weights were evaluated; of S3D,
# that was on 128 frames, which are 8.5 s
SAMPLING = {
    **dict.fromkeys(("r3d_18", "mc3_18", "r2plus1d_18", "s3d"), (16, 15.0)),
    **dict.fromkeys(("mvit_v1_b", "mvit_v2_s"), (16, 7.5)),
    **dict.fromkeys(("swin3d_t", "swin3d_s", "swin3d_b"), (32, 15.0)),
}
VIDEOMAE_RATE = 7.5  # every fourth of 30 frames a second
HEADS = ("fc", "classifier", "head")  # what torchvision calls the layer of the classes
TOGETHER = 8  # windows that a GPU reads at once, whose activations would fill it
CHOOSE = "--stream action=NETWORK=FILE, or action=FOLDER of a VideoMAE"


class Action:
    """A `FrameBackbone` of windows: the layer before the classes, or the mean of the last patches.

    Args:
        source: ``{"name": torchvision's name of a video model, or "NAME=FILE" with its weights; or
            hub name or folder of a VideoMAE, "weights": "pretrained" | "random"}``.
        device: where it runs.
        precision: ``fp32`` or ``bf16``.
    """

    reads: Literal["frames"] = "frames"
    model: nn.Module
    prepare: FrameWindow
    features: int
    recipe: dict[str, Any]
    _scale: tuple[list[float], list[float]]  # mean and deviation of red, green and blue
    _channels_first: bool  # before the frames, in what the network takes
    _rate: float  # frames a second

    def __init__(self, source: dict[str, Any], device: torch.device, precision: str) -> None:
        name, random = source["name"], source.get("weights") == "random"
        network, _, file = name.partition("=")
        quiet_transformers()
        try:
            if network in SAMPLING:
                self._torchvision(network, file, random)
            else:
                self._videomae(name, random)
        except WeightsError as error:
            raise WeightsError(f"action network: {error}") from error
        except Exception as error:  # the hub, its cache and every file format fail in their own way
            raise no_weights("action", name, CHOOSE, error) from error
        self.model = freeze(self.model, device)
        self.device, self.precision = device, precision
        self._mean = torch.tensor(self._scale[0], device=device)
        self._std = torch.tensor(self._scale[1], device=device)
        window = self.prepare
        self.recipe |= {
            "features": self.features,
            "preprocessing": {
                "resize": list(window.resize),
                "crop": list(window.crop),
                "antialias": window.antialias,
                "mean": list(self._scale[0]),
                "std": list(self._scale[1]),
            },
            "frames": len(window.instants),
            "frames_a_second": self._rate,
            "window": "around the middle of the snippet, moved into the clip at its ends",
        }

    def __call__(self, prepared: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Turn windows of (frames, H, W, 3), which `prepare` has made, into (n, features)."""
        size = 1 if self.device.type == "cpu" else TOGETHER
        rows = []
        for first in range(0, len(prepared), size):
            pixels = on_device(prepared[first : first + size], self.device)
            with torch.inference_mode(), autocast(self.device, self.precision):
                values = (pixels / 255 - self._mean) / self._std  # (n, frames, H, W, 3)
                order = (0, 4, 1, 2, 3) if self._channels_first else (0, 1, 4, 2, 3)
                output = self.model(values.permute(order))
                if not isinstance(output, torch.Tensor):
                    output = output.last_hidden_state.float().mean(1)
            rows.append(output.float().cpu())
        return np.asarray(torch.cat(rows).numpy())

    def _torchvision(self, name: str, file: str, random: bool) -> None:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        with seeded():
            model = torchvision.models.get_model(name, weights=None)
        if file and random:
            raise WeightsError(f"give the weights in {file} or --weights random, not both")
        if file:
            fitted = fit(
                read_tensors(Path(file)), model.state_dict(), f"torchvision's {name}", file
            )
            model.load_state_dict(fitted, strict=False)  # the counters of batches are left out
        elif not random:
            try:
                model.load_state_dict(weights.get_state_dict(progress=False, check_hash=True))
            except OSError as error:
                raise WeightsError(
                    f"the weights of {name} could not be fetched ({error}). Download "
                    f"{weights.url}, and give the file: --stream action={name}=FILE. To try the "
                    "pipeline only: --weights random (seeded, no knowledge in them)"
                ) from error
        self.recipe = {"model": name, "weights_sha256": weights_hash(model)}
        head = next(head for head in HEADS if hasattr(model, head))
        *_, classes = (
            layer for layer in getattr(model, head).modules() if hasattr(layer, "weight")
        )
        self.features = int(classes.weight.shape[1])
        setattr(model, head, nn.Identity())
        self.model, self._channels_first = model, True
        transform = weights.transforms()
        self._scale = list(transform.mean), list(transform.std)
        frames, self._rate = SAMPLING[name]
        self.prepare = FrameWindow(
            tuple(transform.resize_size),
            tuple(transform.crop_size),
            antialias=False,
            instants=_instants(frames, self._rate),
        )

    def _videomae(self, name: str, random: bool) -> None:
        expected = f"expected a VideoMAE, or one of torchvision's {', '.join(SAMPLING)}"
        if Path(name).is_dir():
            check_folder(Path(name))
        elif "/" not in name:
            raise WeightsError(f"there is no {name}; {expected}")
        config = cache_first(lambda: AutoConfig.from_pretrained(name))
        if not isinstance(config, VideoMAEConfig):
            raise WeightsError(f"{name} is a {config.model_type}; {expected}")
        if random:
            with seeded():
                self.model = VideoMAEModel(config)
        else:
            self.model = load_complete(VideoMAEModel, name)
        processor: Any = cache_first(lambda: VideoMAEImageProcessor.from_pretrained(name))
        edge = dict(processor.size).get("shortest_edge")
        crop = processor.crop_size
        steps = (
            processor.do_resize,
            processor.do_center_crop,
            processor.do_rescale,
            processor.do_normalize,
        )
        if not (edge and all(steps) and crop["height"] == crop["width"] == config.image_size):
            raise WeightsError(
                f"{name} expects frames prepared in another way than the published VideoMAEs: the "
                "shortest edge brought to size, a square cut out of the centre, and normalised "
                "values; give another checkpoint"
            )
        self.recipe = {
            "model": "videomae",
            "weights_sha256": weights_hash(self.model),
            "architecture": {
                key: getattr(config, key)
                for key in (
                    "num_attention_heads",
                    "hidden_act",
                    "layer_norm_eps",
                    "patch_size",
                    "tubelet_size",
                    "use_mean_pooling",
                )
            },
        }
        self.features, self._channels_first = int(config.hidden_size), False
        self._rate = VIDEOMAE_RATE
        self._scale = list(processor.image_mean), list(processor.image_std)
        self.prepare = FrameWindow(
            (edge,),
            (crop["height"], crop["width"]),
            antialias=True,
            instants=_instants(config.num_frames, self._rate),
        )


def _instants(frames: int, rate: float) -> tuple[float, ...]:
    """Return so many instants at a rate around zero."""
    return tuple((number - (frames - 1) / 2) / rate for number in range(frames))
