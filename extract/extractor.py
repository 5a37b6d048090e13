"""Clips on their way through stage 1: read, run the networks, put the rows on one time grid."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from extract.backbones import (
    FrameBackbone,
    SoundBackbone,
    WeightsError,
    load_backbone,
    refuse_random,
)
from extract.decode import SAMPLE_RATE, ClipError
from extract.finite import Extracted, as_stored, clean_sound
from extract.listening import Listening
from extract.reader import (
    MEMORY_BYTES,
    PATIENCE,
    Begin,
    End,
    Failed,
    Frame,
    Readable,
    Reader,
    Sound,
)
from extract.trailing import TRAILING, Trailing, trailing_seconds
from features import Features, Flag, Recipe

T = TypeVar("T", bound=Readable)
Networks = dict[str, FrameBackbone | SoundBackbone]  # stream name -> its network
FRAMES_PER_BATCH = 16
FRAMES_PER_GPU_BATCH = 64
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
) -> Recipe:
    """Load the networks once and return the recipe of their features.

    Args:
        video_model: a timm model (``timm.list_models("mobilevit*")``), or a folder in the hub's
            format.
        audio_model: a transformers encoder of waveforms (Wav2Vec2, HuBERT, WavLM): its name on the
            hub, or a folder.
        weights: ``pretrained``, or ``random`` for seeded weights that know nothing.
        video_weights: a weights file for `video_model`, instead of the hub's.
        snippet_seconds: one step of the time grid.
        precision: ``fp32`` or ``bf16``.
        layers: hidden layers of `audio_model` whose mean is taken; see `parse_layers`.
        further: backbones that make a further stream each: ``flow``, or ``clip=MODEL`` to choose
            its network.
        live: hear each snippet as `live_snippets` does, in a window that ends with it.
        only: the streams to make, such as ``flow`` or ``audio``, instead of picture, sound and
            further ones.

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
    if further and only:
        raise ValueError("give --stream for further streams or --only for some alone, not both")
    usual: dict[str, dict[str, Any]] = {
        "video": {"name": video_model, "weights": weights},
        "audio": {"name": audio_model, "weights": weights},
    }
    if video_weights:
        usual["video"]["file"] = video_weights
    if layers != "last":
        usual["audio"]["layers"] = layers
    source: dict[str, dict[str, Any]] = {}
    for text in only or (*usual, *further):
        name, _, model = text.partition("=")
        if name in usual and model:
            raise ValueError(
                f"{text}: the network of the picture is chosen by --video-model, that of the sound "
                "by --audio-model"
            )
        chosen = {"name": model} if model else {}
        source[name] = usual.get(name) or {"backbone": name, "weights": weights} | chosen
    if live:
        for settings in source.values():
            settings[TRAILING] = trailing_seconds(snippet_seconds)
    networks = load_networks(source, torch.device("cpu"), precision)
    for stream, network in networks.items():
        if network.reads == "frames":
            source[stream].pop(TRAILING, None)
            reach = max(map(abs, network.prepare.instants))
            if reach > snippet_seconds / 2:
                raise ValueError(
                    f"snippet seconds: {snippet_seconds}; the stream {stream} looks at frames "
                    f"{2 * reach:g} s apart, which must lie in one snippet"
                )
        if "weights_sha256" not in network.recipe:
            source[stream].pop("weights", None)  # it has learned nothing anyway
    for stream, network in networks.items():
        refuse_random(stream, source[stream], network, precision)
        if (assumed := getattr(network, "assumed", "")) and weights != "random":
            source[stream]["assumed"] = assumed
    streams = {stream: network.recipe for stream, network in networks.items()}
    return Recipe(float(snippet_seconds), precision, streams, source)


class Extractor:
    """Turns a video file into features by a recipe.

    >>> extractor = Extractor(make_recipe("mobilevit_xxs", weights="random"))  # doctest: +SKIP
    >>> extractor("clip.mp4").video.shape                                      # doctest: +SKIP
    (9, 320)

    Args:
        recipe: from `make_recipe`, or of a store or a run.
        device: ``auto`` (CUDA, then Apple's MPS, then the CPU) or a torch device.
        memory_bytes: that reading a clip may take; see `Reader`.
        patience: seconds without a sign of the reading process, after which a clip hangs.

    Raises:
        WeightsError: the networks cannot be had, or are not those of the recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: str = "auto",
        memory_bytes: int = MEMORY_BYTES,
        patience: float = PATIENCE,
    ) -> None:
        self.recipe = recipe
        self.reader = Reader(memory_bytes, patience)
        self.device = pick_device(device)
        self._networks = networks_of(recipe, self.device)
        self._eyes = {n: eye for n, eye in self._networks.items() if eye.reads == "frames"}
        self._batch = FRAMES_PER_BATCH if self.device.type == "cpu" else FRAMES_PER_GPU_BATCH

    def __call__(self, video_path: str | Path, audio_path: str | Path | None = None) -> Features:
        """Return the features of one file.

        Args:
            video_path: any video that FFmpeg reads.
            audio_path: its sound, if not in the file; a .wav, .flac or .ogg of the same name beside
                the video is found without being named.

        Raises:
            ClipError: nothing of the picture can be read; the message says why.
        """
        clip = Files(Path(video_path), Path(audio_path) if audio_path else None)
        ((_, result),) = self.stream([clip])
        if isinstance(result, ClipError):
            raise result
        return result

    def stream(
        self, clips: Iterable[T], progress: Callable[[float], None] = lambda seconds: None
    ) -> Iterator[tuple[T, Features | ClipError]]:
        """Yield each clip with its features, or with the reason why there are none, in order.

        Clips are read ahead, in a process of their own, and frames of several clips share a batch.
        Memory does not grow with their number, and with their length only by what is returned.

        Args:
            clips: have the attributes ``video`` and ``audio``, as in `__call__`.
            progress: called with the seconds of video that were read so far.
        """
        open_clips: deque[_Clip[T]] = deque()
        waiting: dict[str, list[tuple[_Clip[T], Frame]]] = {name: [] for name in self._eyes}

        def see(stream: str) -> None:
            given, waiting[stream] = waiting[stream], []
            rows = self._eyes[stream]([frame.pixels for _, frame in given])
            for (clip, frame), row in zip(given, rows, strict=True):
                clip.add_picture(frame, row)

        def forget(clip: _Clip[T]) -> None:
            for stream, given in waiting.items():
                waiting[stream] = [(owner, frame) for owner, frame in given if owner is not clip]
            clip.unseen = 0

        step = self.recipe.snippet_seconds
        seconds = 0.0
        prepare = {name: eye.prepare for name, eye in self._eyes.items()}
        for item, message in self.reader.read(clips, step, prepare):
            if not open_clips or open_clips[-1].item is not item or open_clips[-1].ended:
                open_clips.append(self._open(item))
            clip = open_clips[-1]
            if isinstance(message, Begin):
                if clip.begun:  # a second try
                    forget(clip)
                    open_clips[-1] = clip = self._open(item)
                clip.begin(message)
            elif isinstance(message, Frame):
                waiting[message.stream].append((clip, message))
                clip.unseen += 1
                seconds += step / len(self._eyes)
                progress(seconds)
                if len(waiting[message.stream]) == self._batch:
                    see(message.stream)
            elif isinstance(message, Sound):
                clip.add_sound(message)
            elif isinstance(message, Failed):
                forget(clip)
                clip.fail(message)
            else:
                clip.end(message)
            while open_clips and open_clips[0].ended and not open_clips[0].unseen:
                yield open_clips[0].item, open_clips.popleft().outcome()
        for stream, given in waiting.items():
            if given:
                see(stream)
        for clip in open_clips:
            yield clip.item, clip.outcome()

    def _open(self, item: T) -> _Clip[T]:
        return _Clip(item, self.recipe.snippet_seconds, self._networks)

    def close(self) -> None:
        """End the reading process; it is started again when needed."""
        self.reader.close()


class Files(NamedTuple):
    """A clip's files, as `Extractor.stream` takes them."""

    video: Path
    audio: Path | None


class _Clip(Generic[T]):
    """A clip on its way: what has come of it so far."""

    def __init__(self, item: T, step: float, networks: Networks) -> None:
        self.item = item
        self.unseen = 0  # frames that wait for a network
        self._step = step
        self._networks = networks
        self._begin: Begin | None = None
        self._end: End | Failed | None = None
        self._listening: dict[str, Listening | Trailing] = {}

    @property
    def begun(self) -> bool:
        return self._begin is not None

    @property
    def ended(self) -> bool:
        return self._end is not None

    def begin(self, message: Begin) -> None:
        self._begin = message
        self._rows = {
            name: np.zeros((message.snippets, network.features), np.float16)
            for name, network in self._networks.items()
        }
        self._valid = {name: np.zeros(message.snippets, bool) for name in self._networks}
        self._broken = np.zeros(message.snippets, bool)  # some of its samples are no numbers
        self._lost = {name: np.zeros(message.snippets, bool) for name in self._networks}

    def add_picture(self, frame: Frame, row: NDArray[np.float32]) -> None:
        kept, fine = as_stored(row)
        self._rows[frame.stream][frame.snippet] = kept
        self._valid[frame.stream][frame.snippet] = fine
        self._lost[frame.stream][frame.snippet] = not fine
        self.unseen -= 1

    def add_sound(self, message: Sound) -> None:
        assert self._begin is not None
        if not self._listening:
            snippets, step = self._begin.snippets, self._step
            self._listening = {
                name: (Trailing if TRAILING in ear.recipe else Listening)(
                    ear, message.first, snippets, step
                )
                for name, ear in self._networks.items()
                if ear.reads == "sound"
            }
        samples, broken = clean_sound(message.samples)
        if broken.any():
            at = (message.first + np.flatnonzero(broken)) / (self._step * SAMPLE_RATE)
            self._broken[np.minimum(at.astype(np.int64), len(self._broken) - 1)] = True
        for listening in self._listening.values():
            listening.add(samples)

    def end(self, message: End) -> None:
        if not message.sound_damaged:
            for name, listening in self._listening.items():
                rows, valid = listening.finish()
                kept, fine = as_stored(rows)
                whole = fine & ~self._broken
                self._rows[name] = np.where(whole[:, None], kept, np.float16(0))
                self._valid[name] = valid & whole
                self._lost[name] = valid & ~whole
        self._listening.clear()
        self._end = message

    def fail(self, message: Failed) -> None:
        self._end = message

    def outcome(self) -> Features | ClipError:
        if isinstance(self._end, Failed):
            return ClipError(self._end.reason)
        assert self._begin is not None
        assert self._end is not None
        eyes = [name for name, network in self._networks.items() if network.reads == "frames"]
        seen = all((self._valid[name] | self._lost[name]).all() for name in eyes)
        flags = Flag.NONE if seen else Flag.PICTURE_DAMAGED
        rows, broken, not_finite = {}, {}, {}
        for name, lost in self._lost.items():
            by_sound = lost & (self._broken if name not in eyes else False)
            rows[name] = int((self._valid[name] | lost).sum())
            broken[name] = int(by_sound.sum())
            not_finite[name] = int(lost.sum()) - broken[name]
            if lost.any():
                flags |= Flag.NOT_FINITE
        if self._end.sound_damaged:
            flags |= Flag.SOUND_DAMAGED
        return Extracted(
            self._rows,
            self._valid,
            self._step,
            self._begin.duration,
            flags,
            self._end.source,
            rows,
            broken,
            not_finite,
        )


def load_networks(
    source: dict[str, dict[str, Any]], device: torch.device, precision: str
) -> Networks:
    """Return stream name -> its network; see `load_backbone`."""
    return {
        stream: load_backbone(stream, settings, device, precision)
        for stream, settings in source.items()
    }


def read_text(text: str, stream: str, recipe: Recipe, device: str = "auto") -> NDArray[np.float32]:
    """Return (values,), which points where the rows of a stream do that fit a text.

    Args:
        text: what is to be seen.
        stream: one whose settings in `recipe` have a key ``text``.
        recipe: of a store.
        device: as the `Extractor`'s.

    Raises:
        WeightsError: the network cannot be had, or is not the one that made the stream.
    """
    source = recipe.source.get(stream, {})
    network: Any = load_backbone(stream, source, pick_device(device), "fp32")
    wanted = recipe.streams[stream].get("weights_sha256")
    if network.recipe.get("weights_sha256") != wanted or not hasattr(network, "read_text"):
        raise WeightsError(
            f"the network found for the stream {stream} is not the one that made it, so texts that "
            f"it reads cannot be compared; give the checkpoint whose weights have SHA-256 {wanted}"
        )
    row: NDArray[np.float32] = network.read_text(text)
    return row


def networks_of(recipe: Recipe, device: torch.device) -> Networks:
    """Return stream name -> its network, which is the one that the recipe was made with.

    Raises:
        WeightsError: the networks cannot be had, or are not those of the recipe.
    """
    networks = load_networks(recipe.source, device, recipe.precision)
    found = {name: network.recipe for name, network in networks.items()}
    differing = recipe.differences(Recipe(recipe.snippet_seconds, recipe.precision, found))
    if differing:
        raise WeightsError(
            "the networks found here are not those of the recipe; give the checkpoints it was "
            "made with. Wanted: " + "; ".join(differing)
        )
    return networks


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; ``auto`` takes CUDA, then Apple's MPS, then the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
