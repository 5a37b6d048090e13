"""How fast are features extracted, beside what the processor allows and beside a plain loop?

Claimed: on a CPU the pipeline's rate is at least 0.95 of the bound, which is the processor time of
reading the clips and of running the networks, each measured alone, shared out over all cores; and
it is at least 3 times that of a plain loop: decode a clip, transform its frames by timm, run both
networks eagerly in float32 and in the usual memory layout, with the C allocator as it comes, clip
by clip in one process that uses all cores. On a GPU the bound is the slower of the two parts.

Measured: the same clips in one run, made by this script unless a folder is given. Every part is
warmed up by one clip. The networks have random weights, which cost the same. Starting processes and
loading networks is not counted; the pipeline's clock runs from the moment at which all are ready.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

sys.path[0] = str(Path(__file__).parents[1])  # this script has the name of a package
XD_VIOLENCE_HOURS, VAAR_HOURS = 217.0, 50.0
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


def processor_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def parts(videos: list[Path], model: str, answer: Connection) -> None:
    """Measure reading alone and the networks alone, in processor seconds of one thread."""
    import numpy as np
    import torch

    from extract import Extractor, make_recipe
    from extract.reader import Frame, Request, Sound, read

    torch.set_num_threads(1)
    extractor = Extractor(make_recipe(model, weights="random"))
    prepare = extractor._video.prepare
    list(read(Request(videos[0], None, STEP, prepare)))
    before, wall = time.process_time(), time.perf_counter()
    messages = [list(read(Request(video, None, STEP, prepare))) for video in videos]
    reading, reading_wall = time.process_time() - before, time.perf_counter() - wall
    frames = [m.pixels for clip in messages for m in clip if isinstance(m, Frame)]
    sounds = [
        np.concatenate([m.samples for m in clip if isinstance(m, Sound)] or [np.zeros(0, "f4")])
        for clip in messages
    ]

    def networks(frames: list[Any], sounds: list[Any]) -> None:
        for first in range(0, len(frames), 16):
            extractor._video(frames[first : first + 16])
        for sound in sounds:
            extractor._audio(sound, 0, max(1, math.ceil(len(sound) / 16_000 / STEP)), STEP)

    networks(frames[:16], sounds[:1])
    before, wall = time.process_time(), time.perf_counter()
    networks(frames, sounds)
    cost, cost_wall = time.process_time() - before, time.perf_counter() - wall
    footage = sum(clip[0].duration for clip in messages)  # type: ignore[union-attr]
    answer.send((footage, len(frames), reading, cost, max(reading_wall, cost_wall)))


def pipeline(videos: list[Path], model: str, device: str, pipe: Connection) -> None:
    """Extract some clips as a worker of a job does."""
    import torch

    from extract import Extractor, make_recipe

    torch.set_num_threads(1)
    extractor = Extractor(make_recipe(model, weights="random"), device)
    list(extractor.stream([Files(videos[0])]))
    pipe.send("ready")
    pipe.recv()
    for _, result in extractor.stream(map(Files, videos)):
        if isinstance(result, Exception):
            raise result
    pipe.send("done")
    extractor.close()


PLAIN = """
import sys, time
from pathlib import Path
import av, decord, numpy as np, timm, timm.data, torch
from transformers import Wav2Vec2Config, Wav2Vec2Model
torch.manual_seed(0)
net = timm.create_model(sys.argv[1], num_classes=0).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=net))
ear = Wav2Vec2Model(Wav2Vec2Config()).eval()
@torch.inference_mode()
def clip(path):
    with av.open(path) as container:
        times = [(f.time, f.to_image()) for f in container.decode(video=0)]
    end = times[-1][0] + 0.04
    middles = np.arange(0.125, end, 0.25)
    at = np.searchsorted([t for t, _ in times], middles, side="right") - 1
    net(torch.stack([transform(times[i][1]) for i in at]))
    sound = decord.AudioReader(path, sample_rate=16000, mono=True)[:].asnumpy()
    ear(torch.from_numpy(sound))
clip(sys.argv[2])
start = time.perf_counter()
for path in sys.argv[2:]:
    clip(path)
print(time.perf_counter() - start)
"""


def run(videos: list[Path], model: str, device: str, workers: int) -> None:
    """Measure everything and print the table."""
    context = multiprocessing.get_context("spawn")

    def start(target: Any, *args: Any) -> tuple[Any, Connection]:
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(*args, theirs))
        process.start()
        return process, ours

    process, pipe = start(parts, videos, model)
    footage, frames, reading, networks, slower = pipe.recv()
    process.join()
    crew = [start(pipeline, videos[n::workers], model, device) for n in range(workers)]
    for _, pipe in crew:
        pipe.recv()
    began = time.perf_counter()
    for _, pipe in crew:
        pipe.send("go")
    for _, pipe in crew:
        pipe.recv()
    took = time.perf_counter() - began
    for process, _ in crew:
        process.join()
    command = [sys.executable, "-c", PLAIN, model, *map(str, videos)]
    plain = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    on_cpu = device == "cpu"
    bound = (reading + networks) / workers if on_cpu else slower
    table = Table("", "seconds", "x real time", "frames/s")
    for name, seconds in (
        (f"reading alone, {workers} processes", reading / workers),
        (f"networks alone, {workers} processes", networks / workers),
        ("the bound", bound),
        ("pipeline", took),
        ("plain loop", plain),
    ):
        row = (f"{seconds:.2f}", f"{footage / seconds:.2f}", f"{frames / seconds:.1f}")
        table.add_row(name, *row)
    console = Console(width=100)
    console.print(f"{len(videos)} clips, {footage:.0f} s of video, {frames} frames, {model}")
    console.print(table)
    console.print(f"of the bound: {bound / took:.2f} (goal: {0.95 if on_cpu else 0.9})")
    console.print(f"of the plain loop: {plain / took:.2f} x (goal: 3)")
    for name, hours in (("XD-Violence", XD_VIOLENCE_HOURS), ("VAAR, about", VAAR_HOURS)):
        console.print(f"{name} {hours:.0f} hours: {hours * took / footage:.0f} hours here")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=16, help="how many are made")
    parser.add_argument("--folder", type=Path, help="of MP4 clips, instead of made ones")
    parser.add_argument("--video-model", default="mobilevit_s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        if asked.folder is None:
            make_clips(Path(made), asked.clips)
        videos = sorted((asked.folder or Path(made)).rglob("*.mp4"))[: asked.clips]
        run(videos, asked.video_model, asked.device, asked.workers)


if __name__ == "__main__":
    main()
