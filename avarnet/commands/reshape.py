"""`avarnet features merge`, `join`, `compact` and `drop`: stores made of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

import features
from avarnet.console import DONE, SOME_FAILED, counted, out, plain
from avarnet.inputs import ids_in
from avarnet.options import StorePath

app = typer.Typer()


@app.command("merge", epilog="Example: `avarnet features merge ours theirs -o both`")
def features_merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE...", help="Of one recipe.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The store to make or add to.")],
) -> None:
    """Put the shards of several stores of one recipe into one."""
    copied = features.merge(stores, output)
    features.write_card(output)
    clips = counted(len(features.Store(output)), "clip")
    out.print(f"{counted(copied, 'shard')} copied: {clips} in {plain(str(output))}")


@app.command("join", epilog="Example: `avarnet features join i3d vggish -o both --resample`")
def features_join(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE...", help="Of other streams.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The store to make or add to.")],
    resample: Annotated[
        bool,
        typer.Option("--resample", help="Average rows of other lengths over those of the first."),
    ] = False,
) -> None:
    """Make a store whose clips have the streams of several; only clips that are in all of them."""
    joined = features.join(*map(features.Store, stores), resample=resample)
    failed: dict[str, str] = {}

    def clips() -> Iterator[tuple[str, features.Features]]:
        present = set(features.Store(output)) if (output / features.RECIPE_FILE).exists() else set()
        for clip_id in joined:
            if clip_id in present:
                continue
            try:
                yield clip_id, joined[clip_id]
            except features.FeatureError as error:
                failed[clip_id] = str(error)

    features.pack(output, clips(), joined.recipe)
    features.write_card(output)
    for reason in failed.values():
        out.print(f"[red]failed[/] {plain(reason)}", soft_wrap=True)
    count = counted(len(features.Store(output)), "clip")
    out.print(f"{count} in {plain(str(output))}", soft_wrap=True)
    raise typer.Exit(SOME_FAILED if failed else DONE)


@app.command("compact", epilog="Example: `avarnet features compact store`")
def features_compact(
    store: StorePath,
    shard_size: Annotated[int, typer.Option(min=1, help="Of a shard, in MB (2^20 bytes).")] = 256,
) -> None:
    """Make few large shards of many small ones and drop duplicates; nothing is lost by a kill."""
    before, after = features.compact(store, shard_size * 2**20)
    out.print(f"{counted(before, 'shard')} before, {after} now")


@app.command("drop", epilog="Example: `avarnet features drop store --ids unwanted.txt`")
def features_drop(
    store: StorePath,
    ids: Annotated[Path, typer.Option(help="A file of clip ids, one a line.")],
) -> None:
    """Take clips out of a store for good."""
    wanted = ids_in(ids)
    dropped = features.drop(store, wanted)
    out.print(f"{counted(len(dropped), 'clip')} dropped, {len(wanted) - len(dropped)} not there")
