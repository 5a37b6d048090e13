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
from avarnet.stores import PULLED
from features.clip_means import cache_folder, means_folder
from features.store_files import read_file

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

    features.create(output, joined.recipe)
    features.recover(output)
    present = set(features.Store(output))

    def clips() -> Iterator[tuple[str, features.Features]]:
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
    pushed: Annotated[
        list[str] | None,
        typer.Option(
            "--from", metavar="URL", help="Also out of this copy that was pushed; again for more."
        ),
    ] = None,
) -> None:
    """Take clips out of a store for good, and out of copies of it that were pushed.

    What else may have them is listed. Interrupted? Run the same command again to resume.
    """
    wanted = ids_in(ids)
    dropped = features.drop(store, wanted)
    out.print(f"{counted(len(dropped), 'clip')} dropped, {len(wanted) - len(dropped)} not there")
    for url in pushed or ():
        gone = features.withdraw(store, url, wanted)
        place = plain(features.redacted(url))
        out.print(f"{counted(len(gone), 'clip')} taken out of {place}", soft_wrap=True)
    features.write_card(store)
    naming = [file for file in sorted(store.iterdir()) if _names(file, wanted)]
    out.print_sentences(
        "Not taken out of: stores that were pulled or merged from these (by 'avarnet train' into "
        f"{plain(str(cache_folder() / PULLED))}), manifests, runs "
        "(RUN/run.json, known_clips.safetensors, predictions.csv, report.html) and what they "
        "learned, pages of predictions; "
        f"the means in {plain(str(means_folder()))}, which may be deleted; old versions that a "
        "place keeps (S3 with versioning, the hub's history)"
        + "".join(f"; {plain(str(file))}" for file in naming)
        + "."
    )


def _names(file: Path, ids: set[str]) -> bool:
    """Return whether a file of a store has one of some ids in it; its shards have none any more."""
    if file.suffix in (".h5", ".damaged"):
        return file.suffix == ".damaged"  # which may have any
    try:
        content = read_file(file)
    except (features.FeatureError, OSError):
        return False
    return any(clip_id.encode() in content for clip_id in ids)
