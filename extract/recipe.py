"""From the settings of an extraction to its recipe, and from a recipe to its networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from extract.backbones.base import (
    READING_VERSION,
    FrameBackbone,
    SoundBackbone,
    WeightsError,
    load_backbone,
    refuse_random,
)
from extract.centred_windows import STRIDE
from extract.decoding.sound_placement import SAMPLE_RATE
from extract.live.trailing_windows import TRAILING, trailing_seconds
from extract.preprocessing import FrameWindow
from features import Recipe
from features.recipe import READING

Networks = dict[str, FrameBackbone | SoundBackbone]  # stream name -> its network
SHORTEST_SNIPPET = 0.04  # seconds; two output frames of Wav2Vec2


def make_recipe(
    video_model: str = "mobilevit_s",
    audio_model: str = "facebook/wav2vec2-base",
    weights: str = "pretrained",
    video_weights: str | None = None,
    snippet_seconds: float = 0.25,
    precision: str = "fp32",
    layers: str = "last",
    further: Sequence[str] = (),
    live: bool = False,
    only: Sequence[str] = (),
    audio_stride: float | None = None,
) -> Recipe:
    """Load the networks once and return the recipe of their features.

    Args:
        video_model: a timm model (``timm.list_models("mobilevit*")``), or a folder in the hub's
            format.
        audio_model: a transformers encoder of sound (Wav2Vec2, HuBERT, WavLM, AST, Whisper,
            CLAP): its name on the hub, or a folder.
        weights: ``pretrained``, or ``random`` for seeded weights that know nothing.
        video_weights: a weights file for `video_model`, instead of the hub's.
        snippet_seconds: one step of the time grid.
        precision: ``fp32`` or ``bf16``.
        layers: hidden layers of `audio_model` whose mean is taken; see `parse_layers`.
        further: backbones that make a further stream each: ``flow``, or ``clip=MODEL`` to choose
            its network.
        live: read the sound of each snippet as `live_snippets` does, in a window that ends with it.
        only: the streams to make, such as ``flow`` or ``audio``, instead of picture, sound and
            further ones.
        audio_stride: seconds from one window to the next, of an `audio_model` without a time axis
            (CLAP); one snippet if None.

    Raises:
        WeightsError: a network cannot be loaded; the message gives the ways out.
        ValueError: a setting is out of its range.
    """
    if weights not in ("pretrained", "random"):
        raise ValueError(f"weights: expected pretrained or random, not {weights!r}")
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: expected fp32 or bf16, not {precision!r}")
    if not SHORTEST_SNIPPET <= snippet_seconds <= 60:
        raise ValueError(f"snippet seconds: {snippet_seconds}; expected {SHORTEST_SNIPPET} to 60")
    if weights == "random" and video_weights:
        raise ValueError("give --video-weights or --weights random, not both")
    if further and only:
        raise ValueError("give --stream for further streams or --only for some alone, not both")
    standard: dict[str, dict[str, Any]] = {
        "video": {"name": video_model, "weights": weights},
        "audio": {"name": audio_model, "weights": weights},
    }
    if video_weights:
        standard["video"]["file"] = video_weights
    if layers != "last":
        standard["audio"]["layers"] = layers
    if audio_stride is not None:
        standard["audio"][STRIDE] = audio_stride
    source: dict[str, dict[str, Any]] = {}
    for text in only or (*standard, *further):
        name, _, model = text.partition("=")
        if name in standard and model:
            raise ValueError(
                f"{text}: the network of the picture is chosen by --video-model, that of the sound "
                "by --audio-model"
            )
        chosen = {"name": model} if model else {}
        source[name] = standard.get(name) or {"backbone": name, "weights": weights} | chosen
    if live:
        for settings in source.values():
            settings[TRAILING] = trailing_seconds(snippet_seconds)
    networks = load_networks(source, torch.device("cpu"), precision)
    for stream, network in networks.items():
        if network.reads == "frames":
            source[stream].pop(TRAILING, None)
            span = max(map(abs, network.prepare.instants))
            windowed = isinstance(network.prepare, FrameWindow)
            if windowed and live:
                raise ValueError(
                    f"the stream {stream} reads frames after its snippet, which a live stream "
                    "does not have: leave it or --live away"
                )
            if span > snippet_seconds / 2 and not windowed:
                raise ValueError(
                    f"snippet seconds: {snippet_seconds}; the stream {stream} reads frames "
                    f"{2 * span:g} s apart, which must lie in one snippet"
                )
        else:
            _check_windows(stream, network, snippet_seconds, source[stream])
        if "weights_sha256" not in network.recipe:
            source[stream].pop("weights", None)  # nothing in it was learned
    for stream, network in networks.items():
        refuse_random(stream, source[stream], network, precision)
        if (assumed := getattr(network, "assumed", "")) and weights != "random":
            source[stream]["assumed"] = assumed
    streams = {stream: network.recipe for stream, network in networks.items()}
    return Recipe(float(snippet_seconds), precision, streams, source)


def _check_windows(
    stream: str, network: SoundBackbone, snippet_seconds: float, source: dict[str, Any]
) -> None:
    """Refuse a time grid on which a network would leave snippets out, or their sound in part.

    Args:
        stream: the network's.
        network: that reads the sound.
        snippet_seconds: one step of the time grid.
        source: the network's settings.
    """
    shortest = network.stride / SAMPLE_RATE
    longest = (getattr(network, "window", None) or math.inf) / SAMPLE_RATE
    if snippet_seconds < shortest:
        raise ValueError(
            f"snippet seconds: {snippet_seconds}; expected at least {shortest:g}, as the network "
            f"of the stream {stream} has no more than one row in that time"
        )
    if max(snippet_seconds, source.get(TRAILING, 0)) > longest:
        raise ValueError(
            f"snippet seconds: {snippet_seconds}; the network of the stream {stream} reads "
            f"{longest:g} s of sound at once: expected no more (and a live stream needs 1 s)"
        )
    if STRIDE not in source:
        return
    if network.stride or TRAILING in source:
        raise ValueError(
            "the audio stride is for networks without a time axis, such as CLAP, and not for live "
            "streams: leave it away"
        )
    snippets = source[STRIDE] / snippet_seconds
    whole = math.isclose(snippets, round(snippets), abs_tol=1e-6)
    if not (whole and round(snippets) >= 1 and source[STRIDE] <= longest):
        raise ValueError(
            f"audio stride: {source[STRIDE]}; expected a multiple of a snippet's "
            f"{snippet_seconds:g} s, up to {longest:g} s"
        )


def load_networks(
    source: dict[str, dict[str, Any]], device: torch.device, precision: str
) -> Networks:
    """Return stream name -> its network.

    Args:
        source: see `Recipe`.
        device, precision: see `load_backbone`.
    """
    return {
        stream: load_backbone(stream, settings, device, precision)
        for stream, settings in source.items()
    }


def read_otherwise(recipe: Recipe) -> str:
    """Return how the code that reads files here differs from the recipe's; "" if not at all."""
    return _by_this_version(recipe).read_otherwise(recipe)


def _by_this_version(recipe: Recipe) -> Recipe:
    """Return the same recipe by this version of the code that reads files."""
    streams = {
        name: {**settings, READING: READING_VERSION} for name, settings in recipe.streams.items()
    }
    return replace(recipe, streams=streams)


def networks_of(recipe: Recipe, device: torch.device) -> Networks:
    """Return stream name -> its network, which is the one that the recipe was made with.

    The version of the code that reads files may differ: see `read_otherwise`.

    Args:
        recipe: from `make_recipe`.
        device: where they run.

    Raises:
        WeightsError: the networks cannot be loaded, or are not those of the recipe.
    """
    networks = load_networks(recipe.source, device, recipe.precision)
    found = {name: network.recipe for name, network in networks.items()}
    same = Recipe(recipe.snippet_seconds, recipe.precision, found)
    differing = _by_this_version(recipe).differences(same)
    if differing:
        raise WeightsError(
            "the networks found here are not those of the recipe; give the checkpoints it was "
            "made with. Wanted: " + "; ".join(differing)
        )
    return networks
