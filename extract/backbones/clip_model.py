"""Frames by the picture half of a CLIP, whose rows can be compared with texts.

CLIP (Radford et al., ICML 2021) learned a network of pictures and one of texts together, such that
a picture and its caption point into the same direction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import normalize
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
)

from extract.backbones.base import WeightsError, autocast, freeze, on_device, seeded, weights_hash
from extract.backbones.checkpoint import check_folder
from extract.backbones.hub import (
    cache_first,
    load_complete,
    no_weights,
    published_settings,
    quiet_transformers,
)
from extract.preprocessing import Preparation

MODEL = "openai/clip-vit-base-patch32"  # if none is named
USUAL = [
    "openai/clip-vit-base-patch32",
    "openai/clip-vit-base-patch16",
    "openai/clip-vit-large-patch14",
    "openai/clip-vit-large-patch14-336",
]
PROCESSOR = "preprocessor_config.json"
CHECKPOINT = "--stream clip=FOLDER, or --text-model FOLDER to search"


class Clip:
    """A `TextBackbone`: a CLIP of transformers, the middle frame of a snippet.

    Args:
        source: ``{"name": hub name or folder, `MODEL` if absent, "weights": "pretrained" |
            "random", pretrained if absent}``.
        device: where it runs.
        precision: ``fp32`` or ``bf16``.
    """

    reads: Literal["frames"] = "frames"

    def __init__(self, source: dict[str, Any], device: torch.device, precision: str) -> None:
        self._name = source.get("name", MODEL)
        model, processor, self.assumed = _load(self._name, source.get("weights", "pretrained"))
        weights = weights_hash(model)  # of both halves
        self.model: Any = freeze(model, device)
        self.device = device
        self.precision = precision
        self.features = int(model.config.projection_dim)
        self.prepare = _preparation(processor)
        self._mean = torch.tensor(processor.image_mean, device=device)[:, None, None]
        self._std = torch.tensor(processor.image_std, device=device)[:, None, None]
        self.recipe = {
            "model": "clip",
            "features": self.features,
            "weights_sha256": weights,
            "architecture": {
                key: getattr(model.config.vision_config, key)
                for key in ("patch_size", "num_attention_heads", "hidden_act", "layer_norm_eps")
            },
            "preprocessing": {
                "scale": self.prepare.scale,
                "crop": list(self.prepare.crop),
                "interpolation": Image.Resampling(self.prepare.interpolation).name.lower(),
                "mean": list(processor.image_mean),
                "std": list(processor.image_std),
            },
            "frame": "middle of the snippet",
            "pooling": "projected, scaled to length 1",
            "text": "the text half of the same weights",
        }

    def __call__(self, prepared: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Turn frames of (H, W, 3), which `prepare` has brought to size, into (n, features)."""
        batch = on_device(prepared, self.device).permute(0, 3, 1, 2)
        with torch.inference_mode(), autocast(self.device, self.precision):
            seen = self.model.vision_model(pixel_values=(batch / 255 - self._mean) / self._std)
            rows = self.model.visual_projection(seen.pooler_output)
        return np.asarray(normalize(rows.float(), dim=-1).cpu().numpy())

    def read_text(self, text: str) -> NDArray[np.float32]:
        """Return (features,), of length 1; what is too long for the network is cut off."""
        words = self.model.config.text_config
        try:
            tokenizer = cache_first(lambda: AutoTokenizer.from_pretrained(self._name))
            # where its files are missing, transformers makes one that knows no words
            if len(tokenizer) != words.vocab_size:
                raise ValueError(f"it knows {len(tokenizer)} tokens, not {words.vocab_size}")
        except Exception as error:  # as in `_load`
            raise no_weights("text", f"the tokenizer of {self._name}", CHECKPOINT, error) from error
        longest = words.max_position_embeddings
        tokens = tokenizer([text], truncation=True, max_length=longest, return_tensors="pt")
        with torch.inference_mode():
            read = self.model.text_model(**tokens.to(self.device))
            row = self.model.text_projection(read.pooler_output)[0]
        return np.asarray(normalize(row.float(), dim=-1).cpu().numpy())


def _load(name: str, weights: str) -> tuple[CLIPModel, CLIPImageProcessor, str]:
    """Return the network, what prepares its frames, and what had to be assumed of that."""
    quiet_transformers()
    try:
        if Path(name).is_dir():
            check_folder(Path(name))
        # with random weights, the default network needs no download
        default = name == MODEL and weights == "random"
        config = CLIPConfig() if default else cache_first(lambda: AutoConfig.from_pretrained(name))
        if not isinstance(config, CLIPConfig):
            raise WeightsError(f"{name} is a {config.model_type}; expected a CLIP")
        if weights == "random":
            with seeded():
                model = CLIPModel(config)
        else:
            model = load_complete(CLIPModel, name)
        if not published_settings(name, PROCESSOR):
            return (
                model,
                CLIPImageProcessor(),
                f"no {PROCESSOR} of {name} was found: its frames are taken to be prepared as "
                "those of the published CLIPs (224 x 224)",
            )
        processor = cache_first(lambda: CLIPImageProcessor.from_pretrained(name))
    except WeightsError as error:
        raise WeightsError(f"clip network: {error}") from error
    except Exception as error:  # the hub, its cache and every file format fail in their own way
        raise no_weights("clip", name, CHECKPOINT, error, USUAL) from error
    return model, processor, ""


def _preparation(processor: Any) -> Preparation:
    """Return what the checkpoint's own processor does before it makes numbers of a picture."""
    edge = dict(processor.size).get("shortest_edge")
    standard = (
        processor.do_resize,
        processor.do_center_crop,
        processor.do_rescale,
        processor.do_normalize,
    )
    if not (edge and all(standard) and abs(processor.rescale_factor * 255 - 1) < 1e-6):
        raise WeightsError(
            "the network CLIP expects frames prepared in another way than the published ones; "
            "expected the shortest edge brought to size, a cut out of the centre, and values from "
            "0 to 1 that are normalised: give another checkpoint"
        )
    crop = processor.crop_size
    return Preparation(edge, (crop["height"], crop["width"]), Image.Resampling(processor.resample))
