"""From clips to features by a recipe: read them, run the networks, put the rows together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from extract.clip_assembly import ClipAssembly
from extract.decoding.container import ClipError
from extract.decoding.isolated_process import MEMORY_BYTES
from extract.decoding.messages import Begin, End, Failed, Files, Frame, Readable, Sound
from extract.decoding.reader import PATIENCE
from extract.decoding.reader_pool import Readers
from extract.device import pick_device, reading_processes, running_on
from extract.frame_batches import FRAMES_PER_BATCH, FRAMES_PER_GPU_BATCH, FrameBatches
from extract.recipe import networks_of, read_otherwise
from features import FeatureError, Features, Recipe

T = TypeVar("T", bound=Readable)


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
        WeightsError: the networks cannot be loaded, or are not those of the recipe.
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
        self.reads = {network.reads for network in self._networks.values()}
        self.frame_networks = {
            stream: network
            for stream, network in self._networks.items()
            if network.reads == "frames"
        }
        on_cpu = self.device.type == "cpu"
        self._batch_size = FRAMES_PER_BATCH if on_cpu else FRAMES_PER_GPU_BATCH

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
        read together with; see `FrameBatches`. Memory does not grow with the number of clips, and
        with their length only by what is returned.

        Args:
            clips: have the attributes ``video`` and ``audio``, as in `__call__`. One with an
                ``impairment`` is read with it, and has only the streams that it touches.
            progress: called with the seconds of video that were read so far.

        Raises:
            DeviceError: the device is full, or failed.
        """
        step, seconds = self.recipe.snippet_seconds, 0.0
        batches = FrameBatches(self.frame_networks, self.device, self._batch_size)
        open_clips: deque[ClipAssembly[T]] = deque()

        def opened() -> Iterator[ClipAssembly[T]]:
            for item in clips:
                open_clips.append(ClipAssembly(item, step, self._networks))
                yield open_clips[-1]

        prepare = {stream: network.prepare for stream, network in self.frame_networks.items()}
        for clip, message in self.readers.read(opened(), step, prepare):
            match message:
                case Begin():
                    batches.drop(clip)  # what came before a crash
                    clip.begin(message)
                case Frame():
                    batches.add(clip, message)
                    seconds += step / len(self.frame_networks)
                    progress(seconds)
                case Sound():
                    with running_on(self.device):
                        clip.add_sound(message)
                case Failed():
                    batches.drop(clip)
                    clip.fail(message)
                case End():
                    with running_on(self.device):
                        clip.end(message)
                    batches.finish(clip)
            while open_clips and open_clips[0].complete:
                yield open_clips[0].item, open_clips.popleft().result()
        batches.finish()
        for clip in open_clips:
            yield clip.item, clip.result()

    def close(self) -> None:
        """End the reading processes; they are started again when needed."""
        self.readers.close()
