"""Clips on their way through stage 1: read, run the networks, put the rows on one time grid."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from extract.audio_windows import Listening
from extract.backbones.base import (
    READING_VERSION,
    FrameBackbone,
    SoundBackbone,
    WeightsError,
    load_backbone,
    refuse_random,
)
from extract.decoding.media import SAMPLE_RATE, ClipError
from extract.decoding.reader import (
    MEMORY_BYTES,
    PATIENCE,
    Begin,
    End,
    Failed,
    Frame,
    Readable,
    Sound,
)
from extract.decoding.reader_pool import Readers
from extract.device import pick_device, reading_processes, running_on
from extract.finite import Extracted, as_stored, clean_sound
from extract.live.trailing_windows import TRAILING, Trailing, trailing_seconds
from features import FeatureError, Features, Flag, Recipe
from features.recipe import READING

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
        patience: seconds without a sign of a reading process, after which a clip hangs.
        readers: how many processes read; 0 takes what `reading_processes` says.
        other_reading: take also a recipe of another version of the code that reads files; what it
            changed is in `Recipe.read_otherwise`, and such rows do not belong into its store.

    Raises:
        WeightsError: the networks cannot be had, or are not those of the recipe.
        FeatureError: the recipe is of another version of the code that reads files.
        DeviceError: the device cannot run them.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: str = "auto",
        memory_bytes: int = MEMORY_BYTES,
        patience: float = PATIENCE,
        readers: int = 0,
        other_reading: bool = False,
    ) -> None:
        self.recipe = recipe
        self.device = pick_device(device)
        self.readers = Readers(readers or reading_processes(self.device), memory_bytes, patience)
        with running_on(self.device):
            self._networks = networks_of(recipe, self.device)
        if not other_reading and (why := read_otherwise(recipe)):
            raise FeatureError(
                f"a recipe of another version of avarnet: {why}. Extract into a new store, by a "
                "recipe that is made here; from Python, Extractor(..., other_reading=True) reads "
                "single files by this one"
            )
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

        Clips are read ahead, in processes of their own. A clip's rows do not depend on what it is
        read together with: on a CPU its frames share no batch with those of others, and on a GPU,
        where short batches are slow, every batch is filled up to one size. Memory does not grow
        with the number of clips, and with their length only by what is returned.

        Args:
            clips: have the attributes ``video`` and ``audio``, as in `__call__`.
            progress: called with the seconds of video that were read so far.

        Raises:
            DeviceError: the device is full, or failed.
        """
        step = self.recipe.snippet_seconds
        open_clips: deque[_Clip[T]] = deque()
        shared = self.device.type != "cpu"
        # (stream, whose frames: 0 if clips share batches) -> what waits for the network
        waiting: dict[tuple[str, int], list[tuple[_Clip[T], Frame]]] = {}

        def opened() -> Iterator[_Clip[T]]:
            for item in clips:
                open_clips.append(_Clip(item, step, self._networks))
                yield open_clips[-1]

        def see(stream: str, whose: int) -> None:
            given = waiting.pop((stream, whose))
            pixels = [frame.pixels for _, frame in given]
            if shared:  # a network's arithmetic depends on how many frames it has, not on which
                pixels += [np.zeros_like(pixels[0])] * (self._batch - len(pixels))
            with running_on(self.device):
                rows = self._eyes[stream](pixels)
            for (clip, frame), row in zip(given, rows, strict=False):
                clip.add_picture(frame, row)

        def forget(clip: _Clip[T]) -> None:
            for batch, given in list(waiting.items()):
                kept = [(owner, frame) for owner, frame in given if owner is not clip]
                waiting[batch] = kept
                if not kept:
                    del waiting[batch]
            clip.unseen = 0

        seconds = 0.0
        prepare = {name: eye.prepare for name, eye in self._eyes.items()}
        for clip, message in self.readers.read(opened(), step, prepare):
            whose = 0 if shared else id(clip)
            if isinstance(message, Begin):
                if clip.begun:  # a second try
                    forget(clip)
                clip.begin(message)
            elif isinstance(message, Frame):
                batch = waiting.setdefault((message.stream, whose), [])
                batch.append((clip, message))
                clip.unseen += 1
                seconds += step / len(self._eyes)
                progress(seconds)
                if len(batch) == self._batch:
                    see(message.stream, whose)
            elif isinstance(message, Sound):
                with running_on(self.device):
                    clip.add_sound(message)
            elif isinstance(message, Failed):
                forget(clip)
                clip.fail(message)
            else:
                with running_on(self.device):
                    clip.end(message)
                for stream, owner in list(waiting):
                    if owner == id(clip):
                        see(stream, owner)
            while open_clips and open_clips[0].ended and not open_clips[0].unseen:
                yield open_clips[0].item, open_clips.popleft().outcome()
        for stream, owner in list(waiting):
            see(stream, owner)
        for clip in open_clips:
            yield clip.item, clip.outcome()

    def close(self) -> None:
        """End the reading processes; they are started again when needed."""
        self.readers.close()


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

    @property
    def video(self) -> Path:
        return self.item.video

    @property
    def audio(self) -> Path | None:
        return self.item.audio

    def begin(self, message: Begin) -> None:
        self._begin = message
        self._listening = {}
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
                name: (Trailing if TRAILING in ear.recipe else Listening)(ear, snippets, step)
                for name, ear in self._networks.items()
                if ear.reads == "sound"
            }
        samples, broken = clean_sound(message.samples)
        if broken.any():
            at = (message.first + np.flatnonzero(broken)) / (self._step * SAMPLE_RATE)
            self._broken[np.minimum(at.astype(np.int64), len(self._broken) - 1)] = True
        for listening in self._listening.values():
            listening.add(message.first, samples)

    def end(self, message: End) -> None:
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
        for name in self._end.flags:
            flags |= Flag[name]
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


def read_otherwise(recipe: Recipe) -> str:
    """Return how the code that reads files here differs from the recipe's; "" if not at all."""
    return _read_here(recipe).read_otherwise(recipe)


def _read_here(recipe: Recipe) -> Recipe:
    """Return the same recipe by today's version of the code that reads files."""
    streams = {
        name: {**settings, READING: READING_VERSION} for name, settings in recipe.streams.items()
    }
    return replace(recipe, streams=streams)


def networks_of(recipe: Recipe, device: torch.device) -> Networks:
    """Return stream name -> its network, which is the one that the recipe was made with.

    The version of the code that reads files may differ: see `read_otherwise`.

    Raises:
        WeightsError: the networks cannot be had, or are not those of the recipe.
    """
    networks = load_networks(recipe.source, device, recipe.precision)
    found = {name: network.recipe for name, network in networks.items()}
    same = Recipe(recipe.snippet_seconds, recipe.precision, found)
    differing = _read_here(recipe).differences(same)
    if differing:
        raise WeightsError(
            "the networks found here are not those of the recipe; give the checkpoints it was "
            "made with. Wanted: " + "; ".join(differing)
        )
    return networks
