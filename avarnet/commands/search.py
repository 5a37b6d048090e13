"""`avarnet search`: clips and moments that are alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import features
from avarnet.console import DONE, SOME_FAILED, clips_bar, fail, out, plain, print_json
from avarnet.inputs import need_extract, shards_named_below, warn_of_random_weights
from avarnet.options import Join, Json, StorePath
from avarnet.pipelines import open_stores

if TYPE_CHECKING:
    from features import Recipe

app = typer.Typer()


@app.command(epilog="Example: `avarnet search store --like fight/fi001@2-4.5 -n 5`")
def search(
    store: StorePath,
    like: Annotated[
        str | None,
        typer.Option(metavar="CLIP[@START-END]", help="A clip of the store, or seconds of it."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Words; for stores with a stream such as clip.")
    ] = None,
    stream: Annotated[
        list[str] | None, typer.Option(help="Compare only this one.", show_default="all")
    ] = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="Clips to find.")] = 10,
    text_model: Annotated[
        str | None, typer.Option(help="The folder of the text's network, if it has moved.")
    ] = None,
    join: Join = None,
    as_json: Json = False,
) -> None:
    """Find clips, and moments in them, that are like one of the store, or fit a text.

    Whole clips are ranked as wholes; for a moment or a text, the best moment of each clip decides.
    """
    if (like is None) == (text is None):
        raise typer.BadParameter("give one of --like CLIP and --text WORDS")
    with shards_named_below():
        opened = open_stores([store, *(join or [])], skip_unreadable=True)
    vector = None
    if text is not None:
        aligned = _text_stream(opened.recipe, store, stream)
        vector = _read_text(text, aligned, opened.recipe, text_model)
    with clips_bar("reading clips, once", as_json) as progress:
        searcher = features.Searcher(opened, progress)
    if vector is not None:
        hits = searcher.nearest(aligned, vector, n=number)
    else:
        hits = searcher.like(str(like), stream, number)
    by_moment = like not in opened  # so CLIP@START-END, or a text
    if as_json:
        order = "moment" if by_moment else "similarity"
        found = [hit._asdict() for hit in hits]
        print_json({"ordered_by": order, "hits": found, "damaged": searcher.damaged})
    else:
        warn_of_random_weights(opened.recipe)
        # what decides on the order is the first figure
        if by_moment:
            table = Table("clip", "its best moment", "from", "to", "the whole clip")
        else:
            table = Table("clip", "the whole clip", "its best moment", "from", "to")
        for hit in hits:
            moment = [f"{hit.moment:.3f}", f"{hit.start:.2f} s", f"{hit.end:.2f} s"]
            whole = [f"{hit.similarity:.3f}"]
            table.add_row(plain(hit.clip), *(moment + whole if by_moment else whole + moment))
        order = "by their best moments" if by_moment else "by the whole clips"
        out.print(f"the most alike first, {order}; similarities are cosines, at most 1")
        out.print(table)
        for reason in searcher.damaged.values():
            out.print(f"[red]left out:[/] {plain(reason)}", soft_wrap=True)
    raise typer.Exit(SOME_FAILED if searcher.damaged else DONE)


def _text_stream(recipe: Recipe, store: Path, asked: list[str] | None) -> str:
    """Return the stream whose rows can be compared with texts."""
    streams = [name for name, settings in recipe.streams.items() if "text" in settings]
    chosen = [name for name in streams if not asked or name in asked]
    if not chosen:
        names = " or ".join(asked or recipe.streams)
        fail(
            f"{store}: {names} cannot be compared with texts; search in a store "
            "that has a stream such as clip: 'avarnet extract MANIFEST STORE --stream clip'"
        )
    return chosen[0]


def _read_text(text: str, stream: str, recipe: Recipe, moved: str | None) -> Any:
    need_extract()
    import extract as stage1

    if moved:
        source = {**recipe.source, stream: {**recipe.source.get(stream, {}), "name": moved}}
        recipe = replace(recipe, source=source)
    return stage1.read_text(text, stream, recipe)
