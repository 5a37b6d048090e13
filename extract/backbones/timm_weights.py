"""A timm image model with every weight from where the user says, or the reason why not."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import timm
import timm.data
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image
from torch import nn
from transformers import AutoConfig

from extract.backbones.base import WeightsError, seeded
from extract.backbones.checkpoint import (
    check_folder,
    fit,
    is_transformers_mobilevit,
    mobilevit_by_timm,
    read_json,
    read_tensors,
)
from extract.backbones.hub import cache_first, no_weights

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CHOOSE = "--video-weights FILE"
# transformers' MobileViT by what tells its sizes -> timm's name
SIZES = {
    (144, 192, 240): "mobilevit_s",
    (96, 120, 144): "mobilevit_xs",
    (64, 80, 96): "mobilevit_xxs",
}
WIDTHS = {w / 100: f"mobilevitv2_{w:03}" for w in (50, 75, 100, 125, 150, 175, 200)}
# of its settings, those that no tensor's shape shows; timm has these alone
FIXED = {"hidden_act": ("silu", "swish"), "layer_norm_eps": (1e-5,), "output_stride": (32,)}
FIXED |= {"patch_size": (2,), "num_attention_heads": (4,), "conv_kernel_size": (3,)}


class Origin(NamedTuple):
    """Where a network comes from.

    Attributes:
        name: as timm takes it.
        file: its weights; None if timm finds them.
    """

    name: str
    file: Path | None


def load_timm(source: Mapping[str, Any]) -> tuple[Any, dict[str, Any], str]:
    """Return a network, how its frames are prepared, and what had to be assumed for that.

    Args:
        source: ``{"name": timm model, folder, or name on the hub, "weights": "pretrained" |
            "random", "file": weights file or None}``. A folder and what is on the hub are in
            timm's format, or a MobileViT of transformers.

    Returns:
        The network; what ``timm.data.resolve_data_config`` gives; one line, or nothing.

    Raises:
        WeightsError: the network cannot be loaded, or its checkpoint lacks some of its weights.
    """
    name, file = str(source["name"]), source.get("file")
    if file and not Path(file).is_file():
        raise WeightsError(
            f"{file}: no such file; give the weights of the video network by {CHOOSE}"
        )
    pretrained = source["weights"] != "random"
    try:
        origin = _find(name, Path(file) if file else None, pretrained)

        def make() -> nn.Module:
            with seeded():
                made: nn.Module = timm.create_model(origin.name, num_classes=0)
                return made

        model = cache_first(make)  # settings of a network on the hub come from there
        config = timm.data.resolve_data_config(model=model)
        if not pretrained:
            return model, config, ""
        if origin.file:
            return _from_file(model, config, origin)
        known = timm.get_pretrained_cfg(origin.name) if ":" not in origin.name else None
        if known is not None and not known.has_weights:
            raise WeightsError(f"timm has no weights for {name}; give them by {CHOOSE}")
        return cache_first(lambda: _from_timm(origin.name, model)), config, ""
    except WeightsError as error:
        raise WeightsError(f"video network: {error}") from error
    except Exception as error:  # the hub, its cache and every file format fail in their own way
        if pretrained:
            raise no_weights("video", file or name, CHOOSE, error) from error
        why = str(error).splitlines()[0]
        raise WeightsError(f"timm cannot make the model {name!r}: {why}") from error


def _find(name: str, file: Path | None, pretrained: bool) -> Origin:
    """Say where a network is, in timm's words."""
    if Path(name).is_dir():
        folder = Path(name)
        check_folder(folder)
        if not (folder / CONFIG).is_file():
            raise WeightsError(
                f"{name} has no {CONFIG}; expected a folder in the hub's format, or the name of "
                f"timm's model with --video-model and its weights with {CHOOSE}"
            )
        if (known := _mobilevit(folder)) is None:
            return Origin(f"local-dir:{name}", file)
        files = [folder / weights for weights in WEIGHTS if (folder / weights).is_file()]
        if not (file or files) and pretrained:
            raise WeightsError(f"{name} has no weights; expected {' or '.join(WEIGHTS)} in it")
        return Origin(known, file or (files[0] if files else None))
    repository = name.removeprefix("hf-hub:").removeprefix("hf_hub:")
    if repository != name or ("/" in name and name.count("/") == 1 and name[0] not in "./~"):
        folder = Path(_of_hub(repository, CONFIG)).parent
        if (known := _mobilevit(folder)) is None:
            return Origin(f"hf-hub:{repository}", file)
        return Origin(known, file or (_weights_of_hub(repository) if pretrained else None))
    if "/" in name:
        raise WeightsError(f"{name}: no such folder; give a folder in the hub's format, or a name")
    if not timm.is_model(name.partition(".")[0]):
        raise WeightsError(_unknown(name))
    return Origin(name, file)


def _unknown(name: str) -> str:
    known = timm.list_models()
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, 3)
    hint = f"did you mean {' or '.join(close)}? All are in" if close else "its models are in"
    return f"timm has no model {name!r}: {hint} timm.list_models(), such as mobilevit_s"


def _of_hub(repository: str, file: str) -> str:
    name, _, revision = repository.partition("@")
    path: str = cache_first(lambda: hf_hub_download(name, file, revision=revision or None))
    return path


def _weights_of_hub(repository: str) -> Path:
    try:
        path = Path(_of_hub(repository, WEIGHTS[0]))
    except EntryNotFoundError:
        path = Path(_of_hub(repository, WEIGHTS[1]))
    with suppress(EntryNotFoundError):
        _of_hub(repository, PROCESSOR)  # which is looked for beside it
    return path


def _mobilevit(folder: Path) -> str | None:
    """Return timm's name of the MobileViT of transformers in a folder, or None if it has none.

    Raises:
        WeightsError: it has one that timm has not.
    """
    kind = str(read_json(folder / CONFIG).get("model_type"))
    if kind not in ("mobilevit", "mobilevitv2"):
        return None
    # by transformers, as the file leaves out what is a default there
    config: Any = AutoConfig.from_pretrained(folder)
    other = {k: v for k in FIXED if (v := getattr(config, k, FIXED[k][0])) not in FIXED[k]}
    if kind == "mobilevit":
        name = SIZES.get(tuple(config.hidden_sizes))
    else:
        name = WIDTHS.get(config.width_multiplier)
    if other or name is None:
        raise WeightsError(
            f"{folder}: a {kind} whose "
            + (", ".join(f"{k} is {v}" for k, v in other.items()) if other else "sizes differ")
            + " from those that were published, and timm has no such network"
        )
    return name


def _from_file(
    model: nn.Module, config: dict[str, Any], origin: Origin
) -> tuple[nn.Module, dict[str, Any], str]:
    """Fill a network from a file; see `load_timm`."""
    assert origin.file is not None
    tensors, assumed = read_tensors(origin.file), ""
    if is_transformers_mobilevit(tensors):
        blue_first, config, assumed = _transformers_preparation(origin.file, config)
        tensors = mobilevit_by_timm(tensors, blue_first)
    what = str(getattr(model, "pretrained_cfg", {}).get("architecture", origin.name))
    try:
        found = fit(tensors, model.state_dict(), what, str(origin.file))
    except WeightsError as error:
        # timm knows other layouts of some networks, such as that of their authors
        if (other := _by_timms_filter(origin.name, tensors)) is None:
            raise error from None
        return other, config, assumed
    model.load_state_dict(found, strict=False)
    return model, config, assumed


def _by_timms_filter(name: str, tensors: dict[str, torch.Tensor]) -> nn.Module | None:
    overlay = {"state_dict": dict(tensors), "source": "", "custom_load": False}
    try:
        with seeded(), _complete(name) as filled:
            model: nn.Module = timm.create_model(
                name, num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay
            )
    except Exception:  # whatever a filter does with names that it does not know
        return None
    getattr(model, "pretrained_cfg", {}).pop("state_dict", None)  # it would keep them
    return model if filled else None


def _from_timm(name: str, random: nn.Module) -> nn.Module:
    """Load what timm itself finds: on the hub, in its cache, or in a folder.

    Args:
        name: of the network.
        random: the same network with its seeded random weights.
    """
    with seeded(), _complete(name) as filled:
        model: nn.Module = timm.create_model(name, num_classes=0, pretrained=True)
    if not filled:  # by the model's own way, from a format that is not torch's
        before = random.state_dict()
        same = [
            key
            for key, tensor in model.state_dict().items()
            if tensor.is_floating_point()
            and tensor.numel() > 1
            and tensor.unique().numel() > 1
            and torch.equal(tensor, before[key])
        ]
        if same:
            raise WeightsError(
                f"the checkpoint of {name} leaves {len(same)} tensors random, such as {same[0]}; "
                f"give its whole weights by {CHOOSE}"
            )
    return model


@contextmanager
def _complete(name: str) -> Iterator[list[str]]:
    """Let modules load complete checkpoints only: timm's loading leaves the rest random.

    Yields:
        What has been loaded: empty where it came by another way than ``load_state_dict``.

    Raises:
        WeightsError: a tensor of a module is not in its checkpoint.
    """
    filled: list[str] = []
    load = nn.Module.load_state_dict

    def load_all(module: nn.Module, state: Mapping[str, Any], *_: Any, **__: Any) -> Any:
        tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
        found = fit(tensors, module.state_dict(), name, "its checkpoint")
        filled.append(type(module).__name__)
        return load(module, found, strict=False)

    nn.Module.load_state_dict = load_all  # type: ignore[method-assign, assignment]
    try:
        yield filled
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]


def _transformers_preparation(
    weights: Path, config: dict[str, Any]
) -> tuple[bool, dict[str, Any], str]:
    """Return how frames are prepared for a MobileViT of transformers.

    Args:
        weights: its file; what it expects is in a file beside it.
        config: timm's, for the network.

    Returns:
        Whether it reads blue first; the config; what was assumed as no file says it.
    """
    path = weights.parent / PROCESSOR
    if not path.is_file():
        return (
            True,
            config,
            f"no {PROCESSOR} is beside {weights}: it is taken to read its pictures as Apple's "
            "MobileViT does, blue first, and their size as timm's does",
        )
    settings = read_json(path)
    # the names of before 2023, and the edges of squares as numbers, are in Apple's own files
    blue_first = settings.get("do_flip_channel_order", settings.get("do_flip_channels", True))
    crop, edge = settings.get("crop_size", 256), settings.get("size", 288)
    if isinstance(crop, dict):
        crop = crop.get("height") if crop.get("height") == crop.get("width") else None
    if isinstance(edge, dict):
        edge = edge.get("shortest_edge")
    standard = (
        settings.get("do_resize", True) is True
        and settings.get("do_center_crop", True) is True
        and settings.get("do_rescale", True) is True
        and not settings.get("do_normalize", False)
        and abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) < 1e-6
    )
    if not (standard and type(crop) is int and type(edge) is int and edge >= crop > 0):
        raise WeightsError(
            f"{path} expects frames prepared in another way than the published MobileViTs do: "
            "the shortest edge brought to size, a square cut out of the centre, and values from 0 "
            "to 1: give another checkpoint"
        )
    resampling = Image.Resampling(settings.get("resample", Image.Resampling.BILINEAR))
    channels = config["input_size"][0]
    own = {
        "input_size": (channels, crop, crop),
        "crop_pct": crop / edge,
        "interpolation": resampling.name.lower(),
    }
    return bool(blue_first), {**config, **own}, ""
