"""Checkpoints from the hub of models, its local cache or a folder."""

from __future__ import annotations

import difflib
import logging
import pickle
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants as hub
from huggingface_hub import get_token, hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from extract.backbones.base import WeightsError
from extract.backbones.checkpoint import read_json
from features.redaction import redacted

HUB_TIMEOUT = 5  # seconds


def cache_first(load: Callable[[], Any]) -> Any:
    """Load from disk or the hub's cache; ask the hub only if that fails and it answers at all.

    Left to themselves, the hub's clients retry for a minute on a node without internet.
    """
    was_offline = hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = True
    try:
        return load()
    except Exception:
        if was_offline or not hub_answers():
            raise
    finally:
        hub.HF_HUB_OFFLINE = was_offline
    return load()


def quiet_transformers() -> None:
    """Silence the messages of transformers, and its bars where there is no terminal."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # transformers draws it into pipes and logs too


def hub_answers() -> bool:
    """Whether the hub of models can be reached."""
    try:
        urllib.request.urlopen(hub.ENDPOINT, timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def no_weights(
    stream: str, wanted: str, files: str, error: Exception, known: Collection[str] = ()
) -> WeightsError:
    """Return the error of a network that cannot be loaded, with the ways out.

    Args:
        stream: that the network makes.
        wanted: its name, or its file.
        files: how another checkpoint is given.
        error: why.
        known: names on the hub, one of which may have been meant.
    """
    address = redacted(hub.ENDPOINT)  # of a mirror, if HF_ENDPOINT names one
    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0]
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text.lower():
        # torch and transformers advise to switch that off, which would run the file's code
        return WeightsError(
            f"no weights for the {stream} network: the weights file of {wanted} is no checkpoint, "
            "or holds more than tensors, which could run code when it is opened. Where it was "
            f"made, save its weights alone, best as safetensors, or give another one: {files}"
        )
    close = difflib.get_close_matches(
        wanted.rpartition("/")[2], [n.partition("/")[2] for n in known]
    )
    hint = " or ".join(n for n in known if n.partition("/")[2] in close and n != wanted)
    causes = list(_causes(error))
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        sent = "the token that was sent is not" if get_token() else "no token was sent"
        return WeightsError(
            f"no weights for the {stream} network: {wanted} is for those alone whom its owner has "
            f"let in ({sent}). Ask for it at {address}/{wanted}, and give your token, by HF_TOKEN "
            f"or 'hf auth login'. Or give a local checkpoint: {files}"
        )
    unknown = any(isinstance(cause, RepositoryNotFoundError) for cause in causes)
    if unknown or "is not a valid model identifier" in text:
        return WeightsError(
            f"no weights for the {stream} network: {wanted} is no folder here, and {address} has "
            f"no such model{f'; did you mean {hint}?' if hint else ''} (or it is private: HF_TOKEN "
            f"or 'hf auth login'). Or give a local checkpoint: {files}"
        )
    return WeightsError(
        f"no weights for the {stream} network: {wanted} could not be loaded ({first}).\n"
        + (f"Did you mean {hint}? If not, there are three ways out:\n" if hint else "")
        + ("" if hint else "Three ways out:\n")
        + f"  1. on a machine that reaches {address}, run the same command once: the weights stay "
        "in the hub's cache (copy ~/.cache/huggingface to here);\n"
        f"  2. give a local checkpoint: {files};\n"
        "  3. to try the pipeline only: --weights random (seeded, no knowledge in them)."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what it came from: transformers puts its own in place of the hub's."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def load_complete(kind: Any, name: str, spare: Collection[str] = ()) -> Any:
    """Return a transformers network with every weight from its checkpoint, in single precision.

    Args:
        kind: a class of transformers that has ``from_pretrained``.
        name: on the hub, or a folder.
        spare: how the names of weights begin that the checkpoint may lack.

    Raises:
        WeightsError: it lacks others, which would be random.
    """
    # left to itself, transformers keeps the half precision in which many checkpoints are stored
    options = {"output_loading_info": True, "dtype": torch.float32}
    model, report = cache_first(lambda: kind.from_pretrained(name, **options))
    lost = sorted(key for key in report["missing_keys"] if not key.startswith(tuple(spare)))
    lost += sorted(str(key) for key, *_ in report.get("mismatched_keys", ()))
    if lost:
        found = sorted(report.get("unexpected_keys", ()))
        instead = f"; it has others instead, such as {', '.join(found[:3])}" if found else ""
        raise WeightsError(
            f"the checkpoint {name} lacks weights of its network: {len(lost)} ({lost[0]} is one), "
            f"which would be random{instead}; give a complete checkpoint"
        )
    return model


def published_settings(name: str, file: str) -> bool:
    """Tell whether a checkpoint has a file of settings, such as ``preprocessor_config.json``.

    Args:
        name: on the hub, or a folder.
        file: its name there.

    Raises:
        WeightsError: it has, and it is none.
    """
    found = Path(name) / file
    if not Path(name).is_dir():
        try:
            found = Path(cache_first(lambda: hf_hub_download(name, file)))
        except Exception:  # there is none, or neither the hub nor its cache is available
            return False
    if not found.is_file():
        return False
    read_json(found)
    return True
