"""Decoding alone, networks alone, and the pipeline of both: the same clips in one run."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_steps import STEP_SECONDS, Findings, Options, sources, timed
from extract import Extractor, Files, make_recipe
from extract.decoding.reader_pool import Readers
from extract.synthetic import SOUND_RATE, write_video
from features import Features, Writer

FPS = 25
LEAST_SHARE = 0.90  # of the slower of decoding and networks
exhaust = deque[Any](maxlen=0).extend


def run(options: Options, findings: Findings) -> None:
    """Measure with several numbers of reading processes, in both precisions."""
    seconds, different, counts = (2, 2, (1, 2)) if options.tiny else (12, 12, (1, 4, 12))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        make = partial(make_clip, options.folder, seconds)
        videos = list(pool.map(make, range(different)))

    def clips(count: int) -> list[Files]:
        return [Files(videos[number % different], None) for number in range(count)]

    if options.device.type == "cuda":
        findings.add("a batch of 64 frames is copied to the GPU in", copies(options.device))
    extractors = {}
    for precision in ("fp32", "bf16"):
        video, audio = (sources(options)[stream]["name"] for stream in ("video", "audio"))
        recipe = make_recipe(video, audio, "random", precision=precision)
        extractors[precision] = Extractor(recipe, str(options.device), readers=1)
    prepare = {name: network.prepare for name, network in extractors["fp32"].frame_networks.items()}
    decoding = {}
    for processes in counts:
        readers = Readers(processes)
        exhaust(readers.read(clips(2 * processes), STEP_SECONDS, prepare))  # now all have begun
        asked = clips(different * processes)
        took = timed(exhaust, readers.read(asked, STEP_SECONDS, prepare))
        readers.close()
        decoding[processes] = len(asked) * seconds / took
        findings.add(f"decoding alone, {processes} processes", speed(decoding[processes]))
    memory = Memory(clips(different), prepare)
    for precision, extractor in extractors.items():
        extractor.readers = memory  # type: ignore[assignment]
        exhaust(extractor.stream(clips(4)))
        asked = clips(different * (2 if options.tiny else 12))
        networks = len(asked) * seconds / timed(exhaust, extractor.stream(asked))
        findings.add(f"networks alone, {precision}", speed(networks))
        for processes in counts:
            extractor.readers = Readers(processes)
            exhaust(extractor.stream(clips(2 * processes)))
            asked = clips(different * processes)
            folder = options.folder / f"{precision}-{processes}"
            pipeline = len(asked) * seconds / timed(extract, extractor, asked, folder)
            extractor.close()
            slower = min(networks, decoding[processes])
            limits = "networks" if slower == networks else "decoding"
            share = pipeline / slower
            findings.add(f"pipeline, {precision}, {processes} processes", speed(pipeline))
            findings.add(
                f"  of the slower, {limits}", f"{share:.2f}", f"{LEAST_SHARE}", share >= LEAST_SHARE
            )
    if options.device.type == "cuda":
        most = torch.cuda.max_memory_reserved(options.device) / 2**30
        findings.add("GPU memory for the networks of both precisions", f"{most:.1f} GiB")


def make_clip(folder: Path, seconds: int, number: int) -> Path:
    """Encode 640 x 360 pixels with a ground that moves, and noise."""
    rng = np.random.default_rng(number)
    ground = rng.integers(0, 256, (45, 80 + 5 * seconds, 3), np.uint8).repeat(8, 0).repeat(16, 1)
    frames = np.stack([ground[:, 3 * t : 3 * t + 640] for t in range(seconds * FPS)])
    sound = rng.normal(0, 0.1, seconds * SOUND_RATE).astype(np.float32)
    path = folder / f"{number}.mp4"
    write_video(path, frames, FPS, sound)
    return path


def extract(extractor: Extractor, clips: Sequence[Files], folder: Path) -> None:
    """Read clips, run the networks, and seal a shard."""
    with Writer(folder, extractor.recipe) as writer:
        for number, (_, result) in enumerate(extractor.stream(clips)):
            assert isinstance(result, Features), result
            writer.add(str(number), result)


class Memory:
    """What `Readers` gives, read before."""

    def __init__(self, clips: Sequence[Any], prepare: dict[str, Any]) -> None:
        readers = Readers()
        self._messages: dict[Path, list[Any]] = {}
        for clip, message in readers.read(clips, STEP_SECONDS, prepare):
            self._messages.setdefault(clip.video, []).append(message)
        readers.close()

    def read(self, clips: Iterator[Any], *_: object) -> Iterator[tuple[Any, Any]]:
        """Yield each clip's messages."""
        for clip in clips:
            for message in self._messages[clip.video]:
                yield clip, message


def speed(real_time: float) -> str:
    """Return a speed in words."""
    return f"{real_time:.0f} x real time, {real_time / STEP_SECONDS:.0f} frames/s"


def copies(device: torch.device) -> str:
    """Return how long a batch of frames takes to the GPU, pinned and not."""
    frames = [np.full((256, 256, 3), n, np.uint8) for n in range(64)]

    def pageable() -> None:
        torch.from_numpy(np.stack(frames)).to(device)

    def pinned() -> None:
        torch.from_numpy(np.stack(frames)).pin_memory().to(device, non_blocking=True)

    return ", ".join(
        f"{copy.__name__} {1000 * min(timed(copy) for _ in range(20)):.1f} ms"
        for copy in (pageable, pinned)
    )
