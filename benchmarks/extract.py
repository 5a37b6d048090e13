"""How fast are features extracted, beside what the hardware allows and beside a plain loop?

Goals: on a CPU the pipeline takes at most 1/0.95 of the bound, which is the time of reading the
clips and the time of running the networks, each measured alone on all cores and added up; and it is
at least 3 times as fast as a plain loop: decode a clip, transform its frames by timm, run both
networks eagerly in float32 and in the usual memory layout, with the C allocator as it comes, clip
by clip, in one process that may use all cores. On a GPU the bound is the slower of the two parts.

Measured: the same clips in one run, made by this script unless a folder is given. Every part is
warmed up by one clip. The networks have random weights, which cost the same. Starting processes and
loading networks is not counted; a part's clock runs from the moment at which all are ready.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

sys.path[0] = str(Path(__file__).parents[1])  # this script has the name of a package
HOURS = {"XD-Violence": 217.0, "VAAR": 50.0}  # of video; VAAR: 3,000 clips of a minute
STEP = 0.25  # seconds of a snippet


class Files(NamedTuple):
    """A clip."""

    video: Path
    audio: Path | None = None


def make_clips(folder: Path, count: int) -> None:
    """Encode clips of 640 x 360, 25 frames a second, 6 s, with a moving ground and with sound."""
    import numpy as np

    from extract.synthetic import SOUND_RATE, write_video

    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (45, 120, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    for number in range(count):
        pictures = np.stack([ground[:, 2 * t : 2 * t + 640] for t in range(150)])
        sound = rng.normal(0, 0.1, 6 * SOUND_RATE).astype(np.float32)
        write_video(folder / f"{number}.mp4", pictures, 25, sound)


def worker(part: str, videos: list[Path], model: str, device: str, pipe: Connection) -> None:
    """Get ready for one part of the work, wait for the word, do it, and tell what was there."""
    import torch

    from benchmarks.gpu_steps.extraction import Memory, exhaust
    from extract import Extractor, make_recipe
    from extract.decoding.child import read_clip
    from extract.decoding.messages import Files, Request

    torch.set_num_threads(1)
    precision = "fp32" if device == "cpu" else "bf16"
    recipe = make_recipe(model, weights="random", precision=precision)
    extractor = Extractor(recipe, device)
    prepare = {"video": extractor.frame_networks["video"].prepare}

    def reading(some: list[Path]) -> None:
        for video in some:
            exhaust(read_clip(Request(Files(video), STEP, prepare)))

    def networks(some: list[Path]) -> None:
        """The networks' work alone: what `pipeline` does with clips that were read before."""
        exhaust(extractor.stream(map(Files, some)))

    def pipeline(some: list[Path]) -> None:
        from features import Features, Writer

        with tempfile.TemporaryDirectory() as folder, Writer(Path(folder) / "s", recipe) as writer:
            for clip, result in extractor.stream(map(Files, some)):
                assert isinstance(result, Features), result
                writer.add(clip.video.name, result)

    works: dict[str, Callable[[list[Path]], None]] = {
        "reading": reading,
        "networks": networks,
        "pipeline": pipeline,
    }
    if part == "networks":
        extractor.readers = Memory([Files(video) for video in videos], prepare)  # type: ignore[assignment]
    works[part](videos[:1])
    pipe.send("ready")
    pipe.recv()
    works[part](videos)
    pipe.send("done")
    if part != "networks":
        extractor.close()


def timed(part: str, videos: list[Path], model: str, device: str, workers: int) -> float:
    """Return the seconds that a part takes with so many processes."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for number in range(workers):
        ours, theirs = context.Pipe()
        args = (part, videos[number::workers], model, device, theirs)
        context.Process(target=worker, args=args).start()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()
    began = time.perf_counter()
    for pipe in pipes:
        pipe.send("go")
    for pipe in pipes:
        pipe.recv()
    return time.perf_counter() - began


PLAIN = """
import sys, time
import av, numpy as np, timm, timm.data, torch
from transformers import Wav2Vec2Config, Wav2Vec2Model
device = sys.argv[2]
torch.manual_seed(0)
net = timm.create_model(sys.argv[1], num_classes=0).eval().to(device)
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=net))
ear = Wav2Vec2Model(Wav2Vec2Config()).eval().to(device)
@torch.inference_mode()
def clip(path):
    with av.open(path) as container:
        pictures = [(f.time, f.to_image()) for f in container.decode(video=0)]
    times = [t for t, _ in pictures]
    at = np.searchsorted(times, np.arange(0.125, times[-1] + 0.04, 0.25), side="right") - 1
    net(torch.stack([transform(pictures[i][1]) for i in at]).to(device)).cpu()
    resampler = av.AudioResampler(format="flt", layout="mono", rate=16000)
    with av.open(path) as container:
        parts = [p.to_ndarray() for f in container.decode(audio=0) for p in resampler.resample(f)]
    ear(torch.from_numpy(np.concatenate(parts, 1)).to(device)).last_hidden_state.cpu()
    return len(at), times[-1] + 0.04
clip(sys.argv[3])
start = time.perf_counter()
done = [clip(path) for path in sys.argv[3:]]
print(time.perf_counter() - start, *map(sum, zip(*done)))
"""


def run(videos: list[Path], model: str, device: str, workers: int) -> None:
    """Measure everything and print the table."""
    command = [sys.executable, "-c", PLAIN, model, device, *map(str, videos)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    plain, frames, footage = map(float, output.split())
    reading, networks, took = (
        timed(part, videos, model, device, workers) for part in ("reading", "networks", "pipeline")
    )
    bound = reading + networks if device == "cpu" else max(reading, networks)
    table = Table("", "seconds", "x real time", "frames/s")
    for name, seconds in (
        ("reading alone", reading),
        ("networks alone", networks),
        ("the bound", bound),
        ("pipeline", took),
        ("plain loop", plain),
    ):
        cells = (f"{seconds:.2f}", f"{footage / seconds:.2f}", f"{frames / seconds:.1f}")
        table.add_row(name, *cells)
    console = Console(width=100)
    console.print(
        f"{len(videos)} clips, {footage:.0f} s of video, {frames:.0f} frames; {model} and "
        f"Wav2Vec2-base on {workers} processes, {device}"
    )
    console.print(table)
    console.print(f"of the bound: {bound / took:.2f} (goal: {0.95 if device == 'cpu' else 0.9})")
    console.print(f"of the plain loop: {plain / took:.2f} x (goal: 3)")
    for name, hours in HOURS.items():
        console.print(f"{name}, {hours:.0f} hours of video: {hours * took / footage:.0f} hours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=16, help="how many are made, or taken")
    parser.add_argument("--folder", type=Path, help="of MP4 clips, instead of made ones")
    parser.add_argument("--video-model", default="mobilevit_s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        if asked.folder is None:
            make_clips(Path(made), asked.clips)
        videos = sorted((asked.folder or Path(made)).rglob("*.mp4"))
        chosen = videos[:: max(1, len(videos) // asked.clips)][: asked.clips]
        run(chosen, asked.video_model, asked.device, asked.workers)


if __name__ == "__main__":
    main()
