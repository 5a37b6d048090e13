"""What commands are given: stores, manifests, devices, and whether stage 1 is there."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import features
import manifests
from avarnet.terminal import err, fail

if TYPE_CHECKING:
    from features import Recipe


VIDEO_MODEL, AUDIO_MODEL = "mobilevit_s", "facebook/wav2vec2-base"
EXTRACT_EXTRA = "this needs stage 1, which is not installed: pip install 'avarnet[extract]'"


def lines_of(file: Path, what: str) -> list[str]:
    """Return the lines of a text file that are not empty."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file}: {manifests.reason(error)}; give a text file {what}, one a line")
    return [line.strip() for line in lines if line.strip()]


def moved_models(
    recipe: Recipe, video_model: str | None, video_weights: Path | None, audio_model: str | None
) -> Recipe:
    """Return a recipe whose networks are loaded from where they are now."""
    source = {name: dict(settings) for name, settings in recipe.source.items()}
    for stream, key, moved in (
        ("video", "name", video_model),
        ("video", "file", video_weights),
        ("audio", "name", audio_model),
    ):
        if moved and stream not in source:
            raise typer.BadParameter(f"{moved}: the run has no stream {stream} that would use it")
        if moved:
            source[stream][key] = str(moved)
    return replace(recipe, source=source)


def root_of(manifest: Path, root: Path | None) -> Path:
    """Return what the paths of a manifest are relative to."""
    return root if root is not None else manifests.default_root(manifest)


def open_stores(stores: list[Path]) -> features.Store | features.Joined:
    """Open a store, or several as one whose clips have the streams of all."""
    opened = [features.Store(path) for path in stores]
    return opened[0] if len(opened) == 1 else features.join(*opened)


def need_device(name: str) -> None:
    """Refuse a device that this machine has not."""
    import torch

    try:
        torch.empty(0, device="cpu" if name == "auto" else name)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        fail(f"--device {name}: torch cannot use it here ({why}); see 'avarnet doctor'")


def has_extract() -> bool:
    needed = (
        "av",
        "dask",
        "dask_jobqueue",
        "distributed",
        "soundfile",
        "timm",
        "transformers",
    )
    return all(importlib.util.find_spec(name) for name in needed)


def need_extract() -> None:
    if not has_extract():
        fail(EXTRACT_EXTRA)


def say_random(recipe: Recipe) -> None:
    if recipe.random_streams:
        err.print(
            f"[yellow bold]RANDOM WEIGHTS[/] ({', '.join(recipe.random_streams)}): these networks "
            "have learned nothing; the figures test the pipeline, not the method.",
            soft_wrap=True,
        )
