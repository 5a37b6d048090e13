"""Are picture and sound fused where neither alone says anything?

Real clips, each with both of two pictures (it moves, or stands still at its first frame) and both
of two sounds (a siren, or a baby's cry, synthesised, no two alike, in noise). Two of the four pairs
are anomalous: a siren where nothing moves, a cry where something does. Either stream alone is right
for every second clip. The frozen networks have learned: EfficientNet-Lite0 on ImageNet, YAMNet on
AudioSet (the package in examples/yamnet).

Five folds that keep a recording whole; accuracy of each seed, all folds together. Settings are
chosen on data seeds 0 to 9; those from 100 on are for figures that are reported.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

sys.path[0] = str(Path(__file__).parents[1])  # a script beside this one has the name of a package

from avarnet.pipelines import extract  # noqa: E402
from extract import Cluster, make_recipe  # noqa: E402
from features import Store  # noqa: E402
from manifests import Clip  # noqa: E402
from train import Config, evaluate_run, train_run  # noqa: E402

RATE = 16_000
SECONDS = 2.0
STREAMS = {"both": ("video", "yamnet"), "picture": ("video",), "sound": ("yamnet",)}


def siren(rng: np.random.Generator, time: NDArray[np.float64]) -> NDArray[np.float64]:
    """A tone that rises and falls."""
    low, high = rng.uniform(500, 800), rng.uniform(1100, 1700)
    turn = np.sin(2 * np.pi * (rng.uniform(0.3, 3) * time + rng.random()))
    return np.sin(2 * np.pi * np.cumsum((low + high) / 2 + (high - low) / 2 * turn) / RATE)


def cry(rng: np.random.Generator, time: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bursts of a voice of many harmonics, each of which rises and sinks."""
    length = rng.uniform(0.6, 1.2)
    place = (time / length + rng.random()) % 1
    pitch = rng.uniform(350, 550) * (1 + 0.3 * np.sin(np.pi * place))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = sum(np.sin(n * phase) / n for n in range(1, 9))
    return np.asarray(voice * np.sin(np.pi * np.minimum(place / 0.8, 1)))


def make(source: Path, target: Path, moves: bool, sounds_siren: bool, seed: int) -> None:
    """Write a clip of `source`'s picture, moving or not, with one of the two sounds."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(SECONDS * RATE)) / RATE
    sound = (siren if sounds_siren else cry)(rng, time)
    sound = sound / np.abs(sound).max() + rng.uniform(0.02, 0.2) * rng.normal(size=len(time))
    wave = target.with_suffix(".wav")
    soundfile.write(wave, 0.3 * rng.uniform(0.3, 1) * sound, RATE)
    still = "trim=end_frame=1,loop=-1:1,setpts=N/25/TB,"
    picture = ["-vf", f"{'' if moves else still}fps=25,pad=ceil(iw/2)*2:ceil(ih/2)*2"]
    command = ["ffmpeg", "-v", "error", "-y", "-i", str(source), "-i", str(wave)]
    command += ["-map", "0:v", "-map", "1:a", *picture, "-t", str(SECONDS)]
    command += ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-c:a", "aac"]
    subprocess.run([*command, str(target)], check=True)
    wave.unlink()


def make_clips(clips: Path, folder: Path, seed: int) -> list[Clip]:
    """Write all four pairs of every second clip."""
    made = []
    for row in list(csv.DictReader((clips / "sources.csv").open()))[seed % 2 :: 2]:
        (source,) = clips.glob(f"*/{row['clip']}.*")
        for moves in (False, True):
            for sounds_siren in (False, True):
                name = f"{row['clip']}-{'moves' * moves}-{'siren' * sounds_siren}"
                file = folder / f"{name}.mp4"
                make(source, file, moves, sounds_siren, 10_000 * seed + len(made))
                label = "Crash" if moves != sounds_siren else "Normal"
                made.append(Clip(name, file.name, (label,), group=row["source"]))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", type=Path, help="folder of surv-fight, with its sources.csv")
    parser.add_argument("--efficientnet", type=Path, required=True, help="weights, .safetensors")
    parser.add_argument("--yamnet", type=Path, required=True, help="weights, .tflite")
    parser.add_argument("--seeds", type=int, default=5, help="of training")
    parser.add_argument("--data-seed", type=int, default=0, help="of sounds and pairs")
    options = parser.parse_args()
    table = Table("streams", "accuracy", "worst seed", "logistic", "attention pooling")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clips = make_clips(options.clips, folder, options.data_seed)
        recipe = make_recipe(
            "tf_efficientnet_lite0",
            video_weights=str(options.efficientnet),
            only=["video", f"yamnet={options.yamnet}"],
        )
        extract(clips, folder, folder / "store", recipe, cluster=Cluster())
        store = Store(folder / "store")
        for name, streams in STREAMS.items():
            found = []
            for seed in range(options.seeds):
                config = Config(streams=streams, folds=5, seed=seed)
                run = train_run(clips, store, folder / f"{name}-{seed}", config)
                metrics = evaluate_run(run, store)
                found.append(metrics["model"]["accuracy"]["value"])
            rivals = metrics["linear"], *metrics["baselines"].values()
            plain = [f"{figures['accuracy']['value']:.3f}" for figures in rivals]
            table.add_row(name, f"{np.mean(found):.3f}", f"{min(found):.3f}", *plain)
    Console().print(table)


if __name__ == "__main__":
    main()
