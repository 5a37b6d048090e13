"""What a frozen network must be to make a stream, and how one is found, loaded and described.

A backbone is a class that is made as ``Backbone(source, device, precision)``; `FrameBackbone`,
`SoundBackbone` and `TextBackbone` say what it has. A package makes its own known to
`avarnet extract --stream NAME` by an entry point ``NAME = "module:Class"`` in the group
``avarnet.backbones``; those that come with avarnet are in its pyproject.toml.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from extract.audio_windows import OVERLAP, window_seconds
from extract.centred_windows import STRIDE
from extract.live.trailing_windows import TRAILING
from extract.preprocessing import Prepare
from features.recipe import READING, READING_CHANGES
from manifests import AvarnetError

READING_VERSION = max(READING_CHANGES)  # of the code that reads files; see there
GROUP = "avarnet.backbones"  # of entry points
RANDOM_SEED = 0  # of `--weights random`


# glibc gives the memory of every large activation back to the kernel and asks for it again at the
# next layer; keeping up to 1 GiB makes MobileViT up to twice as fast on a CPU
if sys.platform == "linux":
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(parameter, 2**30)


class WeightsError(AvarnetError):
    """A network that cannot be loaded; the message gives the ways out."""


class FrameBackbone(Protocol):
    """A network that reads frames.

    Attributes:
        features: values in a row.
        recipe: all that decides a value of its rows, as plain data; ``features`` is part of it.
            `load_backbone` adds the version of the code that reads files.
        prepare: turns the frames of a snippet into what `__call__` takes; it is called in the
            reading process, so it is pickled and its module imports no torch. Frames beyond the
            snippet are read for a `FrameWindow`.
    """

    reads: Literal["frames"]
    features: int
    recipe: dict[str, Any]

    @property
    def prepare(self) -> Prepare: ...

    def __call__(self, prepared: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return (len(prepared), features), each row from its own item alone."""
        ...


class TextBackbone(FrameBackbone, Protocol):
    """A network of frames whose rows can be compared with texts; its recipe has a key ``text``."""

    def read_text(self, text: str) -> NDArray[np.float32]:
        """Return (features,), which points where the rows of fitting frames do."""
        ...


class SoundBackbone(Protocol):
    """A network that reads waveforms of 16 kHz.

    Attributes:
        features: values in a row.
        recipe: as a `FrameBackbone`'s; `load_backbone` adds to it how the sound is cut.
        field: samples that one output frame sees.
        stride: samples from one output frame to the next; 0 if it has no time axis, but one frame
            for whatever it is given, up to the `window` that it then must have.
        centre: the sample on which the first one is centred; may be absent where that is
            ``field / 2``.
        window: samples that it can read at once; may be absent, or None, where that is any number.
    """

    reads: Literal["sound"]
    features: int
    recipe: dict[str, Any]
    field: int
    stride: int

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn (n, samples), at least `field` of them, into (n, frames, features), each alone."""
        ...


def load_backbone(
    stream: str, source: dict[str, Any], device: torch.device, precision: str
) -> FrameBackbone | SoundBackbone:
    """Return the network of a stream.

    Args:
        stream: its name.
        source: where its weights come from; ``backbone`` is the name of an entry point. The
            streams ``video`` and ``audio`` have ``timm`` and ``transformers`` if it is absent.
            With ``trailing_seconds``, sound is read as in a live stream; see `TrailingWindows`.
            With ``stride_seconds``, one without a time axis reads a window in that time; see
            `CentredWindows`.
        device: where it runs.
        precision: ``fp32`` or ``bf16``.

    Raises:
        WeightsError: there is no such backbone, or it cannot be loaded.
    """
    name = source.get("backbone") or {"video": "timm", "audio": "transformers"}.get(stream, stream)
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        known = ", ".join(sorted(entry_points(group=GROUP).names))
        raise WeightsError(
            f"no backbone {name!r} for the stream {stream}; there are {known}. Another one comes "
            f"with a package that has an entry point of this name in the group {GROUP}"
        )
    try:
        made: FrameBackbone | SoundBackbone = found[0].load()(source, device, precision)
    except ImportError as error:
        raise WeightsError(f"the backbone {name!r} cannot be imported: {error}") from error
    except KeyError as error:
        raise WeightsError(
            f"the backbone {name!r} needs its {error}: --stream {name}=MODEL; the networks "
            "of the picture and the sound are chosen by --video-model and --audio-model"
        ) from error
    if made.reads == "sound":
        seconds = window_seconds(made)
        cut = {"window_seconds": seconds}
        if made.stride:
            cut["overlap_seconds"] = OVERLAP * seconds
        elif STRIDE in source:
            cut[STRIDE] = source[STRIDE]
        if TRAILING in source:
            cut = {TRAILING: source[TRAILING]}
        made.recipe = {**made.recipe, **cut}
    made.recipe = {**made.recipe, READING: READING_VERSION}
    return made


def refuse_random(
    stream: str, source: dict[str, Any], network: FrameBackbone | SoundBackbone, precision: str
) -> None:
    """Refuse weights that are declared pretrained and are the seeded random ones.

    Args:
        stream: the network's.
        source: its settings, as `load_backbone` took them.
        network: what `load_backbone` gave.
        precision: likewise.

    Raises:
        WeightsError: they are.
    """
    found = network.recipe.get("weights_sha256")
    if found is None or source.get("weights") == "random" or _was_trained(network):
        return
    asked = {key: value for key, value in source.items() if key != "file"} | {"weights": "random"}
    try:
        random = load_backbone(stream, asked, torch.device("cpu"), precision)
    except Exception:  # whoever brings a backbone may have written none that is random
        return
    if random.recipe.get("weights_sha256") == found:
        raise WeightsError(
            f"the weights of the {stream} network are declared as pretrained, but are those that "
            "--weights random gives: its checkpoint was not trained, or was not read (or this "
            "backbone gives the same weights whichever are asked for). Give a trained checkpoint, "
            "or say --weights random"
        )


def _was_trained(network: Any) -> bool:
    """Tell whether it is plain that a network has been trained; to make a random one takes seconds.

    Every initialisation makes the factors of a normalisation all alike.
    """
    model = getattr(network, "model", None)
    return isinstance(model, nn.Module) and any(
        module.weight is not None and bool((module.weight != module.weight[0]).any())
        for module in model.modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d)
    )


def freeze(model: nn.Module, device: torch.device) -> nn.Module:
    """Make a network ready to read, and nothing else.

    Args:
        model: the network.
        device: where it runs.
    """
    return model.eval().requires_grad_(False).to(device)


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of every weight, whatever file it came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def seeded() -> Iterator[None]:
    """Fixed random numbers inside, the caller's own ones untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        yield


def on_device(prepared: list[NDArray[np.uint8]], device: torch.device) -> torch.Tensor:
    """Return arrays of one shape as one tensor (n, ...) on a device.

    Args:
        prepared: n arrays of one shape.
        device: where the tensor is wanted.
    """
    if device.type != "cuda":
        return torch.from_numpy(np.stack(prepared)).to(device)
    size = (len(prepared), *prepared[0].shape)
    batch = torch.empty(size, dtype=torch.uint8, pin_memory=True)  # kept by torch for the next one
    np.stack(prepared, out=batch.numpy())
    return batch.to(device, non_blocking=True)


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Give a network the arithmetic of its recipe.

    Args:
        device: where it runs.
        precision: ``fp32`` or ``bf16``.
    """
    # by itself, cuDNN rounds the factors of a convolution of float32 to 10 bits (TF32)
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with bf16, exact if device.type == "cuda" else nullcontext():
        yield
