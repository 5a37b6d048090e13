"""Options and arguments that several commands have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


def in_panels(panels: dict[str, str]) -> type[TyperCommand]:
    """Return the class of a command whose help shows its options in panels.

    Args:
        panels: title -> names of its options' parameters, with spaces between them.
    """
    title_of = {name: title for title, names in panels.items() for name in names.split()}

    class InPanels(TyperCommand):
        def __init__(self, *args: Any, params: list[Any], **settings: Any) -> None:
            for param in params:
                if param.name in title_of:
                    param.rich_help_panel = title_of[param.name]
            super().__init__(*args, params=params, **settings)

    return InPanels


def _known_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise typer.BadParameter(f"{name}: expected auto, cpu, cuda, cuda:1 (of several) or mps")
    return name


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The manifest to write.")]
Root = Annotated[
    Path | None,
    typer.Option(help="What the manifest's paths are relative to.", show_default="its folder"),
]
Device = Annotated[str, typer.Option(callback=_known_device, help="auto, cpu, cuda, cuda:1, mps.")]
Manifest = Annotated[Path, typer.Argument(metavar="MANIFEST", help="JSON Lines.")]
StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the feature store.")]
StoreOrUrl = Annotated[
    str,
    typer.Argument(
        metavar="STORE",
        help="Folder of the feature store; or its URL, from which the manifest's clips are pulled.",
    ),
]
Url = Annotated[
    str,
    typer.Argument(metavar="URL", help="A folder, s3://, sftp://, hf:// or, to pull, http(s)://."),
]
Ids = Annotated[Path | None, typer.Option(help="A file of clip ids, one a line.")]
Repair = Annotated[bool, typer.Option("--repair", help="Transfer again what is damaged.")]
VideoModel = Annotated[str | None, typer.Option(help="The video model's folder, if it has moved.")]
VideoWeights = Annotated[Path | None, typer.Option(help="The video weights file, if it has moved.")]
AudioModel = Annotated[str | None, typer.Option(help="The sound model's folder, if it has moved.")]
Join = Annotated[
    list[Path] | None, typer.Option(help="A store with more streams of the same clips.")
]
JoinOrUrl = Annotated[
    list[str] | None,
    typer.Option("--join", help="A store, or a URL, with more streams of the same clips."),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")]
Processes = Annotated[
    int | None,
    typer.Option(
        min=1, help="That train at once, if there are several models.", show_default="the cores"
    ),
]
RunStores = Annotated[
    list[Path] | None,
    typer.Option(
        "--store", help="Its features, if they have moved since; again for each joined store."
    ),
]
SkipUnreadable = Annotated[
    bool,
    typer.Option("--skip-unreadable", help="Continue without the shards that cannot be read."),
]
RunManifest = Annotated[
    Path | None, typer.Option(help="Its manifest, if it has moved: where the videos are.")
]
