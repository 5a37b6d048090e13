"""What stage 1 needs of a machine: tried or looked for, never downloaded."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import dask_jobqueue
import numpy as np
import timm
from huggingface_hub import try_to_load_from_cache
from PIL import Image

from extract.cluster.batch_system import QUEUES
from extract.decoding.messages import End, Failed, Frame, Message, Sound
from extract.decoding.reader import Reader
from extract.job.batching import Task
from extract.preprocessing import Preparation
from extract.synthetic import write_video

# FFmpeg's encoders of picture and sound; every build has its own mpeg4
CODECS = {
    "H.264": ("h264", None),
    "HEVC": ("hevc", None),
    "AV1": ("av1", None),
    "AAC": ("mpeg4", "aac"),
    "Opus": ("mpeg4", "libopus"),
}
SIZE, FPS, RATE = 64, 8, 48_000  # pixels of an edge, frames and samples a second
GREY = 200
PATIENCE = 60.0  # seconds for the reading process to start, on a slow disk
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


def try_codecs() -> dict[str, str | None]:
    """Encode a second in each of `CODECS`, and read it as `extract` does.

    Returns:
        codec -> why it cannot be read, or None if it can. What cannot be encoded here is absent.
    """
    pictures = np.full((FPS, SIZE, SIZE, 3), GREY, np.uint8)
    tone = (0.5 * np.sin(np.arange(RATE) / 10)).astype(np.float32)
    with TemporaryDirectory() as folder:
        tasks = []
        for name, (codec, sound_codec) in CODECS.items():
            file = Path(folder) / f"{name}.mp4"
            waveform = None if sound_codec is None else tone
            try:
                # in a thread that ends: for root, SVT-AV1 makes the one that it is called from a
                # real-time thread, which no other may interrupt, and so do those that it starts
                with _silence(), ThreadPoolExecutor(1) as thread:
                    settings = (FPS, waveform, codec, sound_codec or "aac", RATE)
                    thread.submit(write_video, file, pictures, *settings).result()
            except (av.FFmpegError, ValueError):
                continue
            tasks.append(Task(name, file))
        received: dict[str, list[Message]] = defaultdict(list)
        prepare = Preparation(SIZE, (SIZE, SIZE), Image.Resampling.BILINEAR)
        reader = Reader(patience=PATIENCE)
        for task, message in reader.read(tasks, 1.0, {"video": prepare}):
            received[task.clip_id].append(message)
        reader.close()
    return {name: _misread(messages, CODECS[name][1]) for name, messages in received.items()}


def _misread(messages: list[Message], sound_codec: str | None) -> str | None:
    """Return what is wrong with what was read, if anything is."""
    last = messages[-1]
    if isinstance(last, Failed):
        return last.reason
    assert isinstance(last, End)
    if last.sound_damaged:
        return "its sound track cannot be decoded"
    frames = [message.pixels for message in messages if isinstance(message, Frame)]
    if any(abs(frame.mean() - GREY) > 10 for frame in frames):
        return "the picture is not what was encoded"
    if sound_codec:
        loudness = [
            abs(message.samples).mean() for message in messages if isinstance(message, Sound)
        ]
        if not loudness or loudness[0] < 0.1:
            return "the sound is not what was encoded"
    return None


@contextmanager
def _silence() -> Iterator[None]:
    """x265 and SVT-AV1 write to the process's standard error, whatever its log level is."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def cached_weights(video_model: str, audio_model: str) -> dict[str, bool]:
    """Return the two networks' repositories on the hub -> whether its cache here has the weights.

    Args:
        video_model: of timm.
        audio_model: a name on the hub.
    """
    video_repository = timm.get_pretrained_cfg(video_model).hf_hub_id
    return {
        video_repository: _is_cached(video_repository, *WEIGHTS_FILES),
        audio_model: _is_cached(audio_model, *WEIGHTS_FILES)
        and _is_cached(audio_model, "config.json"),
    }


def _is_cached(repository: str, *files: str) -> bool:
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


def batch_systems() -> dict[str, str]:
    """Return those of `QUEUES` that jobs can be given to from here -> the command that does it."""
    commands = {name: getattr(dask_jobqueue, kind).job_cls for name, kind in QUEUES.items()}
    return {
        name: job.submit_command
        for name, job in commands.items()
        if shutil.which(job.submit_command)
    }
