"""One clip's way through stage 1: decode, run both networks, put their rows on one time grid."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from extract.backbones import AudioBackbone, VideoBackbone, WeightsError
from extract.decode import (
    CLOCK_SLACK,
    SAMPLE_RATE,
    ClipError,
    Media,
    frames,
    probe,
    read_sound_file,
    read_sound_track,
    sound_beside,
)
from features import Features, Flag, Recipe

FRAMES_PER_BATCH = 16
SHORTEST_SNIPPET = 0.04  # seconds; two output frames of Wav2Vec2


def make_recipe(
    video_model: str = "mobilevit_s",
    audio_model: str = "facebook/wav2vec2-base",
    weights: str = "pretrained",
    video_weights: str | None = None,
    snippet_seconds: float = 0.25,
    precision: str = "fp32",
) -> Recipe:
    """Load both networks once and return the recipe of their features.

    Args:
        video_model: a timm model (``timm.list_models("mobilevit*")``), or a folder in the hub's
            format.
        audio_model: a Wav2Vec2 checkpoint: its name on the hub, or a folder.
        weights: ``pretrained``, or ``random`` for seeded weights that know nothing.
        video_weights: a weights file for `video_model`, instead of the hub's.
        snippet_seconds: one step of the time grid.
        precision: ``fp32`` or ``bf16``.

    Raises:
        WeightsError: a network cannot be had; the message gives the ways out.
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
    source: dict[str, dict[str, Any]] = {
        "video": {"name": video_model, "weights": weights},
        "audio": {"name": audio_model, "weights": weights},
    }
    if video_weights:
        source["video"]["file"] = video_weights
    video, audio = _networks(source, torch.device("cpu"), precision)
    streams = {"video": video.recipe, "audio": audio.recipe}
    return Recipe(snippet_seconds, precision, streams, source)


class Extractor:
    """Turns a video file into features by a recipe.

    >>> extractor = Extractor(make_recipe("mobilevit_xxs", weights="random"))  # doctest: +SKIP
    >>> extractor("clip.mp4").video.shape                                      # doctest: +SKIP
    (9, 320)

    Args:
        recipe: from `make_recipe`, or of a store or a run.
        device: ``auto`` (CUDA, then Apple's MPS, then the CPU) or a torch device.

    Raises:
        WeightsError: the networks cannot be had, or are not those of the recipe.
    """

    def __init__(self, recipe: Recipe, device: str = "auto") -> None:
        self.recipe = recipe
        self.device = pick_device(device)
        self._video, self._audio = _networks(recipe.source, self.device, recipe.precision)
        found = {"video": self._video.recipe, "audio": self._audio.recipe}
        differing = recipe.differences(Recipe(recipe.snippet_seconds, recipe.precision, found))
        if differing:
            raise WeightsError(
                "the networks found here are not those of the recipe; give the checkpoints it was "
                "made with. Wanted: " + "; ".join(differing)
            )

    def __call__(self, video_path: str | Path, audio_path: str | Path | None = None) -> Features:
        """Return the features of one file.

        Args:
            video_path: any video that FFmpeg reads.
            audio_path: its sound, if not in the file; a .wav, .flac or .ogg of the same name beside
                the video is found without being named.

        Raises:
            ClipError: nothing of the picture can be read; the message says why.
        """
        path = Path(video_path)
        try:
            return self._features(path, Path(audio_path) if audio_path else sound_beside(path))
        except ClipError:
            raise
        except Exception as error:  # whatever decoders make of a file from anywhere
            raise ClipError(f"reading it failed ({type(error).__name__}: {error})") from error

    def _features(self, path: Path, beside: Path | None) -> Features:
        media = probe(path)
        snippets = max(1, math.ceil(media.duration / self.recipe.snippet_seconds - 1e-3))
        video, seen = self._pictures(path, media, snippets)
        if not seen.any():
            raise ClipError("none of its frames can be decoded")
        audio, heard, damaged = self._sound(path, beside, media, snippets)
        flags = Flag.NONE if seen.all() else Flag.PICTURE_DAMAGED
        if damaged:
            flags |= Flag.SOUND_DAMAGED
        with open(path, "rb") as file:
            source = hashlib.file_digest(file, "sha256").hexdigest()
        return Features(
            {"video": video, "audio": audio},
            {"video": seen, "audio": heard},
            self.recipe.snippet_seconds,
            media.duration,
            flags,
            source,
        )

    def _pictures(
        self, path: Path, media: Media, snippets: int
    ) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return a row for the frame in the middle of each snippet, and which were decoded."""
        middles = (np.arange(snippets) + 0.5) * self.recipe.snippet_seconds
        shown = np.searchsorted(media.frame_times, middles + CLOCK_SLACK) - 1
        rows = np.zeros((snippets, self._video.features), np.float16)
        seen = np.zeros(snippets, bool)
        batch: list[NDArray[np.uint8]] = []
        at: list[int] = []
        for snippet, frame in enumerate(frames(path, media, shown)):
            if frame.size:
                batch.append(frame)
                at.append(snippet)
            if batch and (len(batch) == FRAMES_PER_BATCH or snippet == snippets - 1):
                rows[at] = self._video(batch)
                seen[at] = True
                batch, at = [], []
        return rows, seen

    def _sound(
        self, path: Path, beside: Path | None, media: Media, snippets: int
    ) -> tuple[NDArray[np.float16], NDArray[np.bool_], bool]:
        """Return the rows of the sound, where there is any, and whether it cannot be decoded."""
        silent = np.zeros((snippets, self._audio.features), np.float16), np.zeros(snippets, bool)
        try:
            if beside is not None:
                waveform, start = read_sound_file(beside), 0
            elif media.sound_start is not None:
                waveform, start = read_sound_track(path), round(media.sound_start * SAMPLE_RATE)
            else:
                return *silent, False
        except ClipError:
            return *silent, True
        waveform = waveform[max(0, -start) :]  # the clock starts at the first frame
        start = max(0, start)
        end = round(snippets * self.recipe.snippet_seconds * SAMPLE_RATE)
        waveform = waveform[: max(0, end - start)]
        rows, heard = self._audio(waveform, start, snippets, self.recipe.snippet_seconds)
        return rows.astype(np.float16), heard, False


def _networks(
    source: dict[str, dict[str, Any]], device: torch.device, precision: str
) -> tuple[VideoBackbone, AudioBackbone]:
    return (
        VideoBackbone(source["video"], device, precision),
        AudioBackbone(source["audio"], device, precision),
    )


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; ``auto`` takes CUDA, then Apple's MPS, then the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
