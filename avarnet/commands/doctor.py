"""`avarnet doctor`: what is installed, what is missing, and what to do."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.filesize import decimal

import features
from avarnet.console import DONE, FAILED, counted, one_line, out, plain, print_json
from avarnet.inputs import AUDIO_MODEL, BYTES_AN_HOUR, VIDEO_MODEL, extract_missing, install_command
from avarnet.options import Json
from avarnet.pipelines import has_extract

app = typer.Typer()

REINSTALL = "--force-reinstall"
WEIGHTS_OPTIONS = ("--video-weights FILE", "--audio-model FOLDER")
LOW_SPACE = 2**30  # bytes; a few shards
OPTIONAL = {  # extra -> a module of it, and what needs it
    "flow": ("cv2", "extract --stream flow"),
    "tensorboard": ("tensorboard", "train --tensorboard"),
    "sweep": ("optuna", "sweep"),
    "onnx": ("onnxruntime", "export to ONNX"),
}


@dataclass(frozen=True)
class Check:
    """One finding of `doctor`: all is well, something optional is missing, or it is broken."""

    check: str
    state: Literal["ok", "note", "broken"]
    says: str


@app.command(epilog="Example: `avarnet doctor /scratch/store`")
def doctor(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where a store is to be.", show_default="here")
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Check what avarnet needs of this machine; where something is wrong, print what to do."""
    colours = {"ok": "green", "note": "yellow", "broken": "red"}
    checks = []
    for check in _checks(folder):
        checks.append(check)
        if not as_json:
            state = f"[{colours[check.state]}]{check.state:6}[/]"
            words = plain(f"{check.check}: {check.says}")
            out.print(state, words, highlight=False, soft_wrap=True)
    fine = all(check.state != "broken" for check in checks)
    if as_json:
        print_json({"fine": fine, "checks": [asdict(check) for check in checks]})
    raise typer.Exit(DONE if fine else FAILED)


def _checks(folder: Path) -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    attempts: dict[str, tuple[Callable[[], Iterator[Check]], str]] = {
        "torch": (_check_torch, "install the torch for this machine: pytorch.org"),
        "train": (_check_train, install_command("", REINSTALL)),
        "store": (partial(_check_folder, folder), "give another folder"),
        "extract": (_check_extract, install_command("extract", REINSTALL)),
    }
    for name, (attempt, way_out) in attempts.items():
        try:
            yield from attempt()
        except Exception as error:  # a broken installation fails in its own way
            yield Check(name, "broken", f"{one_line(error)}; {way_out}")
    for extra, (module, what) in OPTIONAL.items():
        if importlib.util.find_spec(module):
            yield Check(extra, "ok", f"for {what}")
        else:
            yield Check(extra, "note", f"{what} needs it: {install_command(extra)}")


def _check_torch() -> Iterator[Check]:
    import torch

    threads = counted(torch.get_num_threads(), "CPU thread")
    yield Check("torch", "ok", f"{torch.__version__}, {threads}")
    with warnings.catch_warnings(record=True) as caught:  # why it cannot use a GPU's driver
        warnings.simplefilter("always")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = {f"cuda:{number}": torch.cuda.get_device_name(number) for number in range(gpus)}
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple's GPU"
    for device, name in devices.items():
        torch.ones(8, 8, device=device).sum().item()
        yield Check(device, "ok", name)
    if not devices and shutil.which("nvidia-smi"):
        why = f" ({caught[0].message})" if caught else ""
        way_out = "install the torch for its driver: pytorch.org"
        yield Check("GPU", "note", f"there is one, but torch cannot use it{why}; {way_out}")
    elif not devices:
        yield Check("GPU", "note", "none: extract and train run on the CPU")


def _check_train() -> Iterator[Check]:
    importlib.import_module("train.report.run")  # it imports all that stage 2 needs
    yield Check("train", "ok", "stage 2 can be imported")


def _check_folder(folder: Path) -> Iterator[Check]:
    wanted = folder.absolute()
    existing = next(path for path in (wanted, *wanted.parents) if path.exists())
    features.try_folder(existing)
    yield Check("store", "ok", f"can be written, sealed and read in {existing}")
    free = shutil.disk_usage(existing).free
    room = f"{decimal(free)} are free: features of {free / BYTES_AN_HOUR:,.0f} hours of video"
    if free > LOW_SPACE:
        yield Check("disk", "ok", room)
    else:
        yield Check("disk", "note", f"only {room}; make room, or give a folder on another disk")


def _check_extract() -> Iterator[Check]:
    if not has_extract():
        yield Check("extract", "note", extract_missing())
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    from extract import doctor as stage1

    read = stage1.try_codecs()
    for codec in stage1.CODECS:
        if codec not in read:
            yield Check(codec, "note", "not tried: this FFmpeg has nothing to encode it with")
        elif reason := read[codec]:
            way_out = "pip install --force-reinstall av"
            yield Check(codec, "broken", f"cannot be read ({reason}); {way_out}")
        else:
            yield Check(codec, "ok", "can be read")
    networks = stage1.cached_weights(VIDEO_MODEL, AUDIO_MODEL)
    for (name, cached), option in zip(networks.items(), WEIGHTS_OPTIONS, strict=True):
        if cached:
            yield Check(name, "ok", f"its weights are in {HF_HUB_CACHE}")
        else:
            says = (
                f"not in {HF_HUB_CACHE}. With internet, the first extract fetches it; without, run "
                f"'hf download {name}' where there is some and copy that folder, or give {option}"
            )
            yield Check(name, "note", says)
    queues = [f"{does} (--scheduler {name})" for name, does in stage1.batch_systems().items()]
    if queues:
        yield Check("queue", "ok", ", ".join(queues))
    else:
        says = "no batch system takes jobs from here; --scheduler slurm is for its login node"
        yield Check("queue", "note", says)
