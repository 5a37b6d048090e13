"""What commands share: their inputs are checked, and users are warned of what is in them."""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import typer
from rich.console import Console

import manifests
from avarnet.console import counted, err, fail, plain, shown
from avarnet.pipelines import has_extract
from features import UnreadableShard

if TYPE_CHECKING:
    from features import Recipe
    from train import Run


SUFFIXES = 12  # listed of what is left out; --json lists all
VIDEO_MODEL, AUDIO_MODEL = "mobilevit_s", "facebook/wav2vec2-base"
BYTES_AN_HOUR = 1408 * 2 * 4 * 3600  # of video, by these networks in float16, 4 snippets a second


def install_command(extra: str = "", *options: str) -> str:
    """Return the command that installs avarnet from where it was installed before.

    Args:
        extra: to be installed with it.
        options: of pip's.
    """
    name = f"[{extra}]" if extra else ""
    pip = shlex.join([sys.executable, "-m", "pip", "install", *options])
    origin = json.loads(distribution("avarnet").read_text("direct_url.json") or "{}")
    url = origin.get("url", "")
    path = Path(url2pathname(urlsplit(url).path))
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        return f"{pip} 'avarnet{name} @ {vcs['vcs']}+{url}@{vcs['commit_id']}'"
    if not url or (url.startswith("file:") and not path.exists()):
        return f"{pip} '.{name}' in a clone of avarnet"
    if "dir_info" not in origin:  # a wheel
        return f"{pip} 'avarnet{name} @ {url}'"
    editable = "-e " if origin["dir_info"].get("editable") else ""
    return f"{pip} {editable}{shlex.quote(f'{path}{name}')}"


def extract_missing() -> str:
    """Return what to say where the packages of stage 1 are needed and absent."""
    return f"this needs stage 1, which is not installed: {install_command('extract')}"


def lines_of(file: Path, what: str) -> list[str]:
    """Return the lines of a text file that are not empty.

    Args:
        file: in UTF-8.
        what: is listed in it, such as "of clip ids", for the error message.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file}: {manifests.reason(error)}; give a text file {what}, one a line")
    return [line.strip() for line in lines if line.strip()]


def ids_in(file: Path) -> set[str]:
    """Return the clip ids of a file that has one a line."""
    ids = set(lines_of(file, "of clip ids"))
    if not ids:
        raise typer.BadParameter(f"{file} has no clip ids; write one a line")
    return ids


def moved_models(
    recipe: Recipe, video_model: str | None, video_weights: Path | None, audio_model: str | None
) -> Recipe:
    """Return a recipe whose networks are loaded from where they are now.

    Args:
        recipe: of a run.
        video_model: folder or name of the video model; None if it has not moved, and so on.
        video_weights: file of its weights.
        audio_model: folder or name of the audio model.
    """
    source = {name: dict(settings) for name, settings in recipe.source.items()}
    for stream, key, moved in (
        ("video", "name", video_model),
        ("video", "file", video_weights),
        ("audio", "name", audio_model),
    ):
        if moved and stream not in source:
            raise typer.BadParameter(f"{moved}: the run has no stream {stream} that would use it")
        if moved:
            source[stream][key] = str(moved)
    return replace(recipe, source=source)


def print_left_out(found: manifests.Found, console: Console) -> None:
    """Print what is in a folder of videos and was not taken.

    Args:
        found: in the folder.
        console: where to print.
    """
    if found.left_out:
        kinds = [f"{suffix or 'no suffix'} {n}" for suffix, n in found.left_out.most_common()]
        more = f", and {counted(len(kinds) - SUFFIXES, 'suffix', 'suffixes')} more"
        listed = ", ".join(kinds[:SUFFIXES]) + (more if len(kinds) > SUFFIXES else "")
        what = counted(found.left_out.total(), "file")
        console.print(f"left out, no videos by suffix: {what} ({shown(listed)})", soft_wrap=True)
    if found.hidden:
        what = counted(found.hidden, "name")
        console.print(f"left out, hidden: {what} with a dot in front", soft_wrap=True)
    for what, colour, folders in (
        ("not followed", "yellow", found.not_followed),
        ("cannot be read", "red", found.unreadable),
    ):
        for folder, why in folders.items():
            line = f"[{colour}]{what}:[/] {shown(folder)} ({shown(why)})"
            console.print(line, soft_wrap=True, highlight=False)


def found_json(found: manifests.Found) -> dict[str, Any]:
    """Return the same for --json."""
    return {
        "left_out": dict(found.left_out.most_common()),
        "hidden": found.hidden,
        "not_followed": {str(folder): why for folder, why in found.not_followed.items()},
        "unreadable": {str(folder): why for folder, why in found.unreadable.items()},
    }


def need_device(name: str) -> None:
    """Refuse a device that this machine does not have, and warn where `auto` passes over a GPU.

    Nothing is started on a GPU here: where each admits one process, that must not be this one.
    """
    import torch

    with warnings.catch_warnings(record=True) as caught:  # of an old driver, for example
        warnings.simplefilter("always")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    why = str(caught[0].message).split(" (Triggered")[0].rstrip(".") if caught else ""
    if name == "auto":
        if why and not gpus:
            err.print(f"[yellow]the GPU is not used[/]: {plain(why)}", soft_wrap=True)
        return
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        why = why or f"torch {torch.__version__} sees {counted(gpus, 'GPU')}"
    elif device.type == "mps" and not torch.backends.mps.is_available():
        why = "this machine has no GPU of Apple's"
    else:
        return
    fail(f"--device {name}: torch cannot use it here ({why}); see 'avarnet doctor'")


@contextmanager
def shards_named_below() -> Iterator[None]:
    """Warn of no shards that cannot be read, where the command itself names them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableShard)
        yield


def need_videos(run: Run) -> None:
    """Refuse a run that cannot read videos."""
    if imported := [n for n in run.config.streams if "imported" in run.recipe.streams[n]]:
        fail(
            f"{run.path} cannot read videos: it was trained on imported features "
            f"({', '.join(imported)}), which no network here makes. Score clips of a store of "
            f"them: avarnet predict {run.path} --store STORE"
        )


def need_extract() -> None:
    if not has_extract():
        fail(extract_missing())


def warn_of_doubts(doubts: Sequence[str]) -> None:
    for doubt in doubts:
        err.print_sentences(f"[yellow]{plain(doubt)}[/]")


def warn_of_random_weights(recipe: Recipe) -> None:
    if recipe.random_streams:
        err.print_sentences(
            f"[yellow bold]RANDOM WEIGHTS[/] ({plain(', '.join(recipe.random_streams))}): these "
            "networks have learned nothing; the figures test the pipeline, not the method."
        )


def warn_of_assumptions(recipe: Recipe) -> None:
    for name, source in recipe.source.items():
        if "assumed" in source:
            text = plain(f"({name}): {source['assumed']}")
            err.print_sentences(f"[yellow bold]ASSUMED[/] {text}")


def warn_of_other_reading(recipe: Recipe, run: Path) -> None:
    """Warn where another version of the reading code read what a run was trained on.

    It needs stage 1.

    Args:
        recipe: of the run.
        run: its folder.
    """
    import extract as stage1

    if why := stage1.read_otherwise(recipe):
        err.print_sentences(
            f"[yellow bold]READ DIFFERENTLY[/]: of the features that {plain(str(run))} was trained "
            f"on, {plain(why)}. For files that this concerns the scores may be worse. The way "
            "out: extract into a new store, and train on that."
        )
