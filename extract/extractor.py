"""One clip's way through stage 1: decode, run both networks, put their rows on one time grid."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from extract.backbones import AudioBackbone, VideoBackbone, WeightsError
from extract.decode import SAMPLE_RATE, ClipError
from extract.reader import Begin, End, Failed, Frame, Readable, Reader, Sound
from features import Features, Flag, Recipe

T = TypeVar("T", bound=Readable)
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
    return Recipe(float(snippet_seconds), precision, streams, source)


class Extractor:
    """Turns a video file into features by a recipe.

    >>> extractor = Extractor(make_recipe("mobilevit_xxs", weights="random"))  # doctest: +SKIP
    >>> extractor("clip.mp4").video.shape                                      # doctest: +SKIP
    (9, 320)

    Args:
        recipe: from `make_recipe`, or of a store or a run.
        device: ``auto`` (CUDA, then Apple's MPS, then the CPU) or a torch device.
        reader: the process that reads the files, with other limits than the usual ones.

    Raises:
        WeightsError: the networks cannot be had, or are not those of the recipe.
    """

    def __init__(self, recipe: Recipe, device: str = "auto", reader: Reader | None = None) -> None:
        self.recipe = recipe
        self.reader = reader or Reader()
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
        clip = _File(Path(video_path), Path(audio_path) if audio_path else None)
        ((_, result),) = self.stream([clip])
        if isinstance(result, ClipError):
            raise result
        return result

    def stream(self, clips: Iterable[T]) -> Iterator[tuple[T, Features | ClipError]]:
        """Yield each clip with its features, or with the reason why there are none, in order.

        Clips are read ahead, in a process of their own, and frames of several clips share a batch.
        Memory does not grow with their number, and with their length only by what is returned and
        by the waveform (64 KB a second).

        Args:
            clips: have the attributes ``video`` and ``audio``, as in `__call__`.
        """
        open_clips: deque[_Clip[T]] = deque()
        waiting: list[tuple[_Clip[T], Frame]] = []

        def run_network() -> None:
            rows = self._video([frame.pixels for _, frame in waiting])
            for (clip, frame), row in zip(waiting, rows, strict=True):
                clip.add_picture(frame.snippet, row)
            waiting.clear()

        sizes = {"video": self._video.features, "audio": self._audio.features}
        step = self.recipe.snippet_seconds
        for item, message in self.reader.read(clips, step, self._video.prepare):
            if not open_clips or open_clips[-1].item is not item or open_clips[-1].ended:
                open_clips.append(_Clip(item, step, sizes))
            clip = open_clips[-1]
            if isinstance(message, Begin):
                if clip.begun:  # a second try
                    waiting = [(owner, frame) for owner, frame in waiting if owner is not clip]
                    open_clips[-1] = clip = _Clip(item, step, sizes)
                clip.begin(message)
            elif isinstance(message, Frame):
                waiting.append((clip, message))
                if len(waiting) == FRAMES_PER_BATCH:
                    run_network()
            elif isinstance(message, Sound):
                clip.add_sound(message)
            elif isinstance(message, Failed):
                waiting = [(owner, frame) for owner, frame in waiting if owner is not clip]
                clip.result = ClipError(message.reason)
                clip.ended = True
            else:
                clip.end(message, self._audio)
            unread = {id(owner) for owner, _ in waiting}
            while open_clips and open_clips[0].ended and id(open_clips[0]) not in unread:
                yield open_clips[0].item, open_clips.popleft().outcome()
        if waiting:
            run_network()
        for clip in open_clips:
            yield clip.item, clip.outcome()

    def close(self) -> None:
        """End the reading process; it is started again when needed."""
        self.reader.close()


class _File(NamedTuple):
    video: Path
    audio: Path | None


class _Clip(Generic[T]):
    """A clip on its way: what has come of it so far."""

    def __init__(self, item: T, step: float, sizes: dict[str, int]) -> None:
        self.item = item
        self.ended = False
        self.result: Features | ClipError | None = None
        self._step = step
        self._sizes = sizes
        self._begin: Begin | None = None
        self._waveform: NDArray[np.float32] | None = None
        self._first = self._last = 0  # of the waveform, in samples

    @property
    def begun(self) -> bool:
        return self._begin is not None

    def begin(self, message: Begin) -> None:
        self._begin = message
        self._rows = {
            name: np.zeros((message.snippets, size), np.float16)
            for name, size in self._sizes.items()
        }
        self._valid = {name: np.zeros(message.snippets, bool) for name in self._sizes}

    def add_picture(self, snippet: int, row: NDArray[np.float32]) -> None:
        self._rows["video"][snippet] = row
        self._valid["video"][snippet] = True

    def add_sound(self, message: Sound) -> None:
        if self._waveform is None:
            assert self._begin is not None
            self._first = self._last = message.first
            end = round(self._begin.snippets * self._step * SAMPLE_RATE)
            self._waveform = np.empty(end - self._first, np.float32)
        start = self._last - self._first
        self._waveform[start : start + len(message.samples)] = message.samples
        self._last += len(message.samples)

    def end(self, message: End, network: AudioBackbone) -> None:
        assert self._begin is not None
        snippets = self._begin.snippets
        if self._waveform is not None and not message.sound_damaged:
            heard = self._waveform[: self._last - self._first]
            rows, valid = network(heard, self._first, snippets, self._step)
            self._rows["audio"], self._valid["audio"] = rows.astype(np.float16), valid
        self._waveform = None
        self._end = message
        self.ended = True

    def outcome(self) -> Features | ClipError:
        if self.result is not None:
            return self.result
        assert self._begin is not None
        flags = Flag.NONE if self._valid["video"].all() else Flag.PICTURE_DAMAGED
        if self._end.sound_damaged:
            flags |= Flag.SOUND_DAMAGED
        return Features(
            self._rows, self._valid, self._step, self._begin.duration, flags, self._end.source
        )


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
