"""Weights files: their tensors by the names of a network, or why they are not its weights.

A checkpoint is seldom a plain dict of a network's tensors. Training scripts wrap them
(`state_dict`, `model`, beside the optimizer's), their modules prefix the names (`module.`,
`model.`, `backbone.`), an average of the weights (EMA) may lie beside them, and transformers has
other names than timm.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from extract.backbones.base import WeightsError

DEEPEST = 8  # dicts in each other, of which real checkpoints have up to four
HEAD = 512  # bytes in which a file shows what it is
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
AVERAGED = re.compile(r"(^|[._])(ema|averaged|averages?)([._]|$)", re.IGNORECASE)
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")  # of weights
COMPILED = "_orig_mod."  # what torch.compile puts into names
STEM = "conv_stem.convolution.weight"  # the first tensor of transformers' MobileViT

Names = dict[str, Tensor]


def impostor(path: Path) -> str | None:
    """Return what a file is that a download often leaves in another's place, or None."""
    with open(path, "rb") as file:
        head = file.read(HEAD).lstrip().lower()
    if not head:
        return "is empty; was its download cut off?"
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page (HTML): the address gave its page, or a login, instead of the file"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself: run 'git lfs pull' where it is from"
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Return the settings in a JSON file beside a checkpoint.

    Raises:
        WeightsError: it holds no JSON object.
    """
    expected = "expected JSON settings as published with the checkpoint"
    try:
        if wrong := impostor(path):
            raise WeightsError(f"{path} {wrong}; {expected}")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); {expected}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds a {type(found).__name__}; {expected}")
    return found


def check_folder(folder: Path) -> None:
    """Refuse a folder whose weights or settings are other files under their names.

    Raises:
        WeightsError: one is.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json" and path.is_file():
            read_json(path)
        elif path.suffix in SUFFIXES and path.is_file() and (wrong := impostor(path)):
            raise WeightsError(f"{path} {wrong}")


def read_tensors(path: Path) -> Names:
    """Return every tensor in a weights file, under the names of the dicts around it and its own.

    Args:
        path: safetensors, or what ``torch.save`` wrote; the suffix does not matter.

    Raises:
        WeightsError: it is neither, is damaged, or could run code when it is opened.
    """
    expected = "expected safetensors, or a dict of tensors by torch.save"
    try:
        if wrong := impostor(path):
            raise WeightsError(f"{path} {wrong}; {expected}")
        with open(path, "rb") as file:
            head = file.read(9)
        if head[8:] == b"{":  # the length of safetensors' header, and its JSON
            return _plain(safetensors.torch.load_file(path, device="cpu"))
        # timm's training scripts put their options beside the weights
        with open(path, "rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            # given a path, torch would go by its suffix
            found = torch.load(file, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        if not (unsafe := _unsafe(path)):
            raise WeightsError(f"{path} is no checkpoint, or a damaged one; {expected}") from error
        raise WeightsError(
            f"{path} holds more than tensors ({unsafe}), which could run code when it is opened. "
            "Where it was made, save its weights alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "weights_only" in why:
            why = "it is not a plain file of weights"  # torch's advice would run its code
        raise WeightsError(f"{path} cannot be read ({why}); {expected}") from error
    tensors = _plain(dict(_flat(found)))
    if not tensors:
        keys = ", ".join(map(str, list(found)[:5])) if isinstance(found, dict) else ""
        raise WeightsError(
            f"{path} holds no named tensors but a {type(found).__name__}"
            + (f" with {keys}" if keys else "")
            + f"; {expected}"
        )
    return tensors


def _unsafe(path: Path) -> str:
    """Return the kinds of Python objects in a file that torch does not hold safe."""
    try:
        with open(path, "rb") as file:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # of a file that is no checkpoint, or of before 2020
        return ""
    return ", ".join(sorted(set(names))[:3])


def _flat(found: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if isinstance(found, Tensor):
        yield prefix.removesuffix("."), found.detach()
    elif isinstance(found, Mapping) and depth < DEEPEST:
        for key, inner in found.items():
            if isinstance(key, str):
                yield from _flat(inner, f"{prefix}{key}.", depth + 1)


def _plain(tensors: Names) -> Names:
    return {name.replace(COMPILED, ""): tensor for name, tensor in tensors.items()}


def fit(tensors: Names, network: Names, what: str, where: str) -> Names:
    """Return the tensors of a checkpoint by the names of a network, all of them.

    Args:
        tensors: of the checkpoint; see `read_tensors`.
        network: the network's ``state_dict``, for its names and shapes.
        what: the network, for messages.
        where: the checkpoint, likewise.

    Raises:
        WeightsError: one is missing or has another shape; it says which, and what was found. Or
            there are several such networks in it.
    """
    wanted = {name: like for name, like in network.items() if like.is_floating_point()}
    places: dict[str, list[str]] = defaultdict(list)  # a network's name -> prefixes it comes with
    for name in tensors:
        for at in (0, *(found.end() for found in re.finditer(r"\.", name))):
            if name[at:] in wanted:
                places[name[at:]].append(name[:at])
    prefixes = Counter(prefix for name in wanted for prefix in places[name])
    complete = [
        prefix
        for prefix, count in prefixes.items()
        if count == len(wanted)
        and all(_alike(tensors[prefix + name], like) for name, like in wanted.items())
    ]
    # the average of the weights over their training is the better one, and what timm takes
    complete = [prefix for prefix in complete if AVERAGED.search(prefix)] or complete
    if not complete:
        best = max(prefixes, key=lambda prefix: prefixes[prefix], default="")
        raise WeightsError(_lacking(tensors, best, wanted, what, where))
    first = complete[0]
    if not all(
        torch.equal(tensors[first + name], tensors[other + name])
        for other in complete[1:]
        for name in wanted
    ):
        listed = ", ".join(f"{prefix}*" for prefix in complete)
        raise WeightsError(
            f"{where} holds several networks that are {what} ({listed}), and nothing tells which "
            "is meant; give a file with one of them"
        )
    return {name: tensors[first + name] for name in network if first + name in tensors}


def _alike(found: Tensor, like: Tensor) -> bool:
    return found.shape == like.shape and found.dtype in FLOATS


def _lacking(tensors: Names, prefix: str, wanted: Names, what: str, where: str) -> str:
    """Say which of a network's tensors a checkpoint lacks, and what it has instead."""
    lost = [name for name in wanted if prefix + name not in tensors]
    present = {name: tensors[prefix + name] for name in wanted if prefix + name in tensors}
    other = [name for name, found in present.items() if not _alike(found, wanted[name])]
    parts = []
    if lost:
        parts.append(f"{len(lost)} of its {len(wanted)} tensors are missing ({_some(lost)})")
    if other:
        found, like = present[other[0]], wanted[other[0]]
        parts.append(
            f"{len(other)} have another shape or type ({other[0]}: {_about(found)}, expected "
            f"{_about(like)})"
        )
    rest = [
        name for name, tensor in tensors.items() if tensor.dim() and prefix + name not in present
    ]
    return (
        f"{where} does not hold the weights of {what}: {' and '.join(parts)}. Found there: "
        f"{len(tensors)} tensors ({_some(rest)}). What is missing would be random: give "
        "the whole weights of this very network, or the name of the network that these are of"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _about(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


# transformers' names of a MobileViT, and of a MobileViTV2, in timm's words; in this order
RENAMED = [
    (r"\bconv_stem\.", "stem."),
    (r"\bencoder\.layer\.([01])\.layer\.(\d+)\.", r"stages.\1.\2."),
    (r"\bencoder\.layer\.(\d+)\.downsampling_layer\.", r"stages.\1.0."),
    (r"\bencoder\.layer\.(\d+)\.", r"stages.\1.1."),
    (r"\bconv_1x1_exp\.", "final_conv."),
    (r"\.expand_1x1\.", ".conv1_1x1."),
    (r"\.conv_3x3\.", ".conv2_kxk."),
    (r"\.reduce_1x1\.", ".conv3_1x1."),
    (r"\.1\.conv_1x1\.convolution\.", ".1.conv_1x1."),
    (r"\.conv_projection\.", ".conv_proj."),
    (r"\.1\.fusion\.", ".1.conv_fusion."),
    (r"\.transformer\.layer\.(\d+)\.", r".transformer.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.(qkv_proj|out_proj)\.convolution\.", r".attn.\1."),
    (r"\.ffn\.conv([12])\.convolution\.", r".mlp.fc\1."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layernorm\.", ".norm."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".bn."),
]
QUERY = ".attention.attention.query."


def is_transformers_mobilevit(tensors: Names) -> bool:
    """Tell whether a checkpoint has the names of transformers' MobileViT or MobileViTV2."""
    return any(name == STEM or name.endswith(f".{STEM}") for name in tensors)


def mobilevit_by_timm(tensors: Names, blue_first: bool) -> Names:
    """Return a checkpoint of transformers' MobileViT or MobileViTV2 in timm's names.

    Args:
        tensors: of the checkpoint; prefixes of the whole network stay.
        blue_first: it reads pictures in the order blue, green, red, as Apple's do; what is
            returned reads red, green, blue.
    """
    renamed: Names = {}
    for name, tensor in tensors.items():
        if QUERY in name:  # timm has the three in one
            others = [name.replace(".query.", f".{part}.") for part in ("key", "value")]
            if not all(other in tensors for other in others):
                continue
            name = name.replace(QUERY, ".attn.qkv.")
            tensor = torch.cat([tensor, *(tensors[other] for other in others)])
        elif name.endswith(STEM) and blue_first and tensor.ndim == 4:
            tensor = tensor.flip(1)
        for pattern, word in RENAMED:
            name = re.sub(pattern, word, name)
        renamed[name] = tensor
    return renamed
