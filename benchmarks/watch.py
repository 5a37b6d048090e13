"""How soon after a snippet has come is its line there?

Goal: within one snippet, 0.25 s, on two cores, with mobilevit_xxs and a full-size Wav2Vec2.
Measured by `avarnet watch` itself, which tells with each line how long ago the last of what it
needed was received: a stream of 640 x 360 pixels, 25 frames a second, with sound, sent in real time
over loopback HTTP. Its run is of a recipe of `avarnet extract --live`; others cost the same.
The first lines are left out of the percentiles and told beside them, as networks are slower when
they run for the first time.

Beside it stand the bound, which is the networks' time alone, the baseline, which reads the whole
window of 20 s again for each snippet, as extraction does once, and what other windows cost; and
what `avarnet extract --live` costs beside extraction in windows of 20 s, over a minute of sound.
The networks have random weights, which cost the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path[0] = str(Path(__file__).parents[1])  # this script has the name of a command
STEP = 0.25  # seconds of a snippet
START = 3.0  # seconds of the stream whose lines are left out
MINUTE = 240  # snippets
WINDOWS = (0.5, 1.0, 1.5, 2.0, 4.0, 20.0)  # seconds
RATE, FPS = 44_100, 25


def packets(seconds: int) -> list[tuple[float, bytes]]:
    """Return a stream as MPEG-TS: the time of each packet, and its bytes."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (45, 480, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    found = []
    buffer = BytesIO()
    with av.open(buffer, "w", "mpegts", {"flush_packets": "1"}) as sink:
        video = sink.add_stream("libx264", rate=FPS, options={"tune": "zerolatency", "g": "25"})
        video.width, video.height, video.pix_fmt = 640, 360, "yuv420p"
        audio = sink.add_stream("aac", rate=RATE, layout="mono")
        for number in range(seconds * FPS):
            left = 2 * number % (ground.shape[1] - 640)
            picture = np.ascontiguousarray(ground[:, left : left + 640])
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            noise = rng.normal(0, 0.1, (1, RATE // FPS)).astype(np.float32)
            sound = av.AudioFrame.from_ndarray(noise, "flt", "mono")
            sound.sample_rate, sound.pts = RATE, number * (RATE // FPS)
            sound.time_base = Fraction(1, RATE)
            sink.mux([*video.encode(frame), *audio.encode(sound)])
            found.append(((number + 1) / FPS, buffer.getvalue()))
            buffer.seek(0)
            buffer.truncate()
    return found


class Camera(HTTPServer):
    """Sends packets in real time, once."""

    def __init__(self, stream: list[tuple[float, bytes]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                began = time.monotonic()
                for at, content in stream:
                    time.sleep(max(0.0, began + at - time.monotonic()))
                    self.wfile.write(content)

            def log_message(self, *words: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.handle_request, daemon=True).start()


def make_run(folder: Path, video_model: str) -> Path:
    """Train a causal model for an instant, on noise, for clips of a minute."""
    from extract import make_recipe
    from features import Features, Store, Writer
    from manifests import Clip
    from train import Config, train_run

    recipe = make_recipe(video_model, weights="random", live=True)
    rng = np.random.default_rng(0)
    clips = []
    with Writer(folder / "store", recipe) as writer:
        for number in range(8):
            rows = {
                name: rng.normal(size=(240, stream["features"])).astype(np.float16)
                for name, stream in recipe.streams.items()
            }
            valid = {name: np.ones(240, bool) for name in rows}
            writer.add(f"{number}", Features(rows, valid, STEP, 60.0))
            sides = ("train", "train", "val", "test")
            clips.append(Clip(f"{number}", "x.mp4", ("ab"[number % 2],), split=sides[number // 2]))
    config = Config(causal=True, epochs=1)
    train_run(clips, Store(folder / "store"), folder / "run", config)
    return folder / "run"


def latencies(run: Path, seconds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the latency of each line, in seconds: the first ones', and the others'."""
    camera = Camera(packets(seconds))
    url = f"http://127.0.0.1:{camera.server_port}/"
    command = [sys.executable, "-m", "avarnet", "watch", str(run), url, "--retries", "0"]
    root = Path(__file__).parents[1]
    output = subprocess.run(command, cwd=root, capture_output=True, text=True)
    lines = [json.loads(line) for line in output.stdout.splitlines()]
    assert lines, output.stderr
    assert not any("gap" in line for line in lines), output.stdout
    late = np.array([line["latency"] for line in lines])
    first = np.array([line["start"] < START for line in lines])
    return late[first], late[~first]


def median_ms(work: Callable[[], object], rounds: int = 20) -> float:
    """Return the median time of some work, in milliseconds."""
    work()
    took = []
    for _ in range(rounds):
        before = time.perf_counter()
        work()
        took.append(time.perf_counter() - before)
    return 1000 * float(np.median(took))


def networks(run: Path) -> tuple[float, dict[float, float], float]:
    """Return the ms for a frame, for a window of sound by its length, and for a score."""
    import torch

    from extract.decoding.sound_placement import SAMPLE_RATE
    from extract.recipe import networks_of
    from train import LiveScorer, Run

    loaded = Run.load(run)
    made = networks_of(loaded.recipe, torch.device("cpu"))
    eye, ear = made["video"], made["audio"]
    assert eye.reads == "frames"
    assert ear.reads == "sound"
    rng = np.random.default_rng(0)
    frame = eye.prepare([rng.integers(0, 256, (360, 640, 3), np.uint8)])
    hear = {}
    for seconds in WINDOWS:
        window = rng.normal(0, 0.1, (1, round(seconds * SAMPLE_RATE))).astype(np.float32)
        hear[seconds] = median_ms(lambda window=window: ear(window), 20 if seconds < 10 else 5)
    scorer = LiveScorer(loaded)
    rows = {name: rng.normal(size=size) for name, size in loaded.sizes.items()}
    valid = dict.fromkeys(rows, True)
    return median_ms(lambda: eye([frame])), hear, median_ms(lambda: scorer(rows, valid))


def extraction(run: Path) -> dict[str, float]:
    """Return the ms a snippet of the sound's network over a minute, in both kinds of windows."""
    import torch

    from extract.audio_windows import AudioWindows
    from extract.decoding.sound_placement import SAMPLE_RATE
    from extract.live.trailing_windows import TrailingWindows
    from extract.recipe import networks_of
    from train import Run

    ear = networks_of(Run.load(run).recipe, torch.device("cpu"))["audio"]
    assert ear.reads == "sound"
    sound = np.random.default_rng(0).normal(0, 0.1, round(MINUTE * STEP * SAMPLE_RATE))
    took = {}
    for kind in (AudioWindows, TrailingWindows):
        heard = kind(ear, 0, MINUTE, STEP)
        before = time.perf_counter()
        for first in range(0, len(sound), 10 * SAMPLE_RATE):
            heard.add(sound[first : first + 10 * SAMPLE_RATE].astype(np.float32))
        heard.finish()
        took[kind.__name__] = 1000 * (time.perf_counter() - before) / MINUTE
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=30, help="of the stream")
    parser.add_argument("--video-model", default="mobilevit_xxs")
    asked = parser.parse_args()
    from extract.live.trailing_windows import trailing_seconds

    window = trailing_seconds(STEP)
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), asked.video_model)
        frame, hear, score = networks(run)
        first, late = (1000 * some for some in latencies(run, asked.seconds))
        extracting = extraction(run)
    console = Console(width=100)
    console.print(f"{asked.video_model} and Wav2Vec2-base; {asked.seconds} s of stream")
    table = Table("", "ms a snippet")
    for name, value in (
        ("latency, median", np.median(late)),
        ("latency, 95th percentile", np.percentile(late, 95)),
        ("latency, worst", late.max()),
        (f"latency, worst of the first {START:g} s", first.max()),
        (f"the bound: networks, {window:g} s of sound", frame + hear[window]),
        ("of that, the frame", frame),
        ("the temporal model", score),
        ("baseline: the window of 20 s again", frame + hear[20.0]),
        ("extraction: sound in windows of 20 s", extracting["AudioWindows"]),
        ("extraction: sound with --live", extracting["TrailingWindows"]),
    ):
        table.add_row(name, f"{value:.0f}")
    console.print(table)
    console.print("windows: " + ", ".join(f"{w:g} s {ms:.0f} ms" for w, ms in hear.items()))
    share = float((late <= 1000 * STEP).mean())
    console.print(f"{share:.1%} of {len(late)} lines within {STEP:g} s (goal: all)")


if __name__ == "__main__":
    main()
