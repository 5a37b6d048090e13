"""`avarnet features`: look into stores, share and reshape them."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.filesize import decimal
from rich.table import Table

import features
import manifests
from avarnet.console import (
    DONE,
    FAILED,
    SOME_FAILED,
    bytes_bar,
    clips_bar,
    clock,
    counted,
    first_few,
    out,
    plain,
    print_json,
)
from avarnet.inputs import (
    ids_in,
    shards_named_below,
    warn_of_assumptions,
    warn_of_random_weights,
)
from avarnet.options import Ids, Json, Repair, StorePath, Url

app = typer.Typer(no_args_is_help=True, help="Look into feature stores; share and reshape them.")


@app.command("info", epilog="Example: `avarnet features info store`")
def features_info(store: StorePath, as_json: Json = False) -> None:
    """What is in a store, and by which recipe."""
    with shards_named_below():
        opened = features.Store(store)
    about = features.overview(opened)
    info = {
        "store": str(store),
        **about._asdict(),
        "unreadable_shards": {str(k): v for k, v in opened.unreadable.items()},
        "random_weights": opened.recipe.random_streams,
        "recipe": json.loads(opened.recipe.to_json()),
    }
    if as_json:
        print_json(info)
        return
    table = Table(show_header=False)
    table.add_row("clips", str(about.clips))
    footage = clock(about.hours * 3600)
    table.add_row("footage", f"{footage} in steps of {opened.snippet_seconds:g} s")
    table.add_row("shards", f"{about.shards}, {decimal(about.nbytes)}")
    for name, settings in opened.recipe.streams.items():
        source = opened.recipe.source.get(name, {})
        model = source.get("name", settings.get("model", "?"))
        origin = f"{model}, {source['weights']} weights" if "weights" in source else model
        origin += ", heard as a live stream" if "trailing_seconds" in settings else ""
        missing = f"; none in {counted(about.lacking[name], 'clip')}" if about.lacking[name] else ""
        values = f"{settings['features']} values, {origin}{missing}"
        table.add_row(plain(f"stream {name}"), plain(values))
    for flag, count in about.flags.items():
        table.add_row(flag, counted(count, "clip"))
    table.add_row("fingerprint", opened.recipe.fingerprint)
    out.print(table)
    for reason in opened.unreadable.values():
        out.print(f"[red]unreadable:[/] {plain(reason)}")
    warn_of_random_weights(opened.recipe)
    warn_of_assumptions(opened.recipe)


@app.command("list", epilog="Example: `avarnet features list s3://team/surv-fight`")
def features_list(
    store: Annotated[str, typer.Argument(metavar="STORE|URL", help="A folder or a URL.")],
    as_json: Json = False,
) -> None:
    """Every clip of a store, here or anywhere: of a distant one, only the tables are read."""
    rows = [row._asdict() for row in _entries(store)]
    if as_json:
        for row in rows:
            row["flags"] = [flag.name for flag in features.Flag(row["flags"])]
        print_json(rows)
        return
    table = Table("clip", "seconds", "snippets", "flags")
    for row in rows:
        flags = ", ".join(str(flag.name) for flag in features.Flag(row["flags"])).lower()
        cells = (f"{row['duration']:.2f}", str(row["snippets"]), flags)
        table.add_row(plain(row["clip"]), *cells)
    out.print(table)


def _entries(store: str) -> list[features.Entry]:
    if "://" in store:
        return list(features.Remote(store).entries())
    return features.entries(features.Store(store))


@app.command("verify", epilog="Example: `avarnet features verify store`")
def features_verify(store: StorePath, as_json: Json = False) -> None:
    """Read every byte and check that it is as it was written."""
    with bytes_bar("verifying", as_json) as progress, shards_named_below():
        intact, damages = features.verify(store, progress)
    if as_json:
        rows = [{**d._asdict(), "shard": str(d.shard)} for d in damages]
        print_json({"intact_clips": intact, "damaged_shards": rows})
    else:
        for damage in damages:
            if damage.other_version or damage.closed:
                out.print(f"[red]not read[/] {plain(damage.reason)}", soft_wrap=True)
                continue
            if not damage.readable:
                damaged = "all its clips are lost; which ones it had is unknown"
            elif damage.clips:
                damaged = f"damaged clips: {', '.join(damage.clips)}"
            else:
                damaged = "no clip of it is damaged"
            out.print(f"[red]damaged[/] {plain(f'{damage.reason}; {damaged}')}", soft_wrap=True)
        others = sum(damage.other_version for damage in damages)
        closed = sum(damage.closed for damage in damages)
        hurt = len(damages) - others - closed
        if hurt:
            place = plain(shlex.quote(str(store)))
            out.print(
                f"Repair it from the videos: avarnet extract MANIFEST {place}", soft_wrap=True
            )
            pull = f"avarnet features pull URL {place} --repair"
            out.print(f"or from a copy of the store: {pull}", soft_wrap=True)
        if others:
            out.print(f"{counted(others, 'shard')} of another version of the format")
        if closed:
            out.print(f"{counted(closed, 'shard')} closed to this user")
        out.print(f"{counted(intact, 'clip')} intact, {counted(hurt, 'damaged shard')}")
    raise typer.Exit(FAILED if damages else DONE)


@app.command("push", epilog="Example: `avarnet features push store s3://team/store`")
def features_push(
    store: StorePath, url: Url, repair: Repair = False, as_json: Json = False
) -> None:
    """Send a store to a team: only the shards that are missing there.

    With --repair, all that is there is read as well.

    Interrupted? Run the same command again to resume.
    """
    with bytes_bar("pushing", as_json) as progress:
        transfer = features.push(store, url, progress, repair)
    _print_transfer(transfer, features.redacted(url), as_json)


@app.command("pull", epilog="Example: `avarnet features pull s3://team/store store`")
def features_pull(
    url: Url,
    store: StorePath,
    manifest: Annotated[
        Path | None, typer.Option(help="The manifest, for --split and --labels.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only train, val or test clips.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Only these classes, comma-separated; one with a comma in quotes."),
    ] = None,
    ids: Ids = None,
    trim: Annotated[
        bool, typer.Option("--trim", help="Fetch the clips alone, not their whole shards.")
    ] = False,
    repair: Repair = False,
    as_json: Json = False,
) -> None:
    """Fetch a store, or the shards of some clips: only what is missing here.

    With --repair, only what is damaged here.
    Interrupted? Run the same command again to resume.
    """
    wanted = _chosen_clips(manifest, split, labels, ids)
    if repair and (trim or wanted is not None):
        raise typer.BadParameter("--repair finds by itself what to fetch: give no choice of clips")
    if trim and wanted is None:
        raise typer.BadParameter("--trim needs a choice of clips: --ids, --split or --labels")
    with bytes_bar("pulling", as_json) as progress:
        if repair:
            transfer = features.pull_repair(url, store, progress)
        else:
            transfer = features.pull(url, store, wanted, trim, progress)
    if wanted is not None:
        clips = manifests.read(manifest) if manifest else []
        features.write_card(store, {clip.id: clip.label for clip in clips})
    _print_transfer(transfer, str(store), as_json)


def _chosen_clips(
    manifest: Path | None, split: str | None, labels: str | None, ids: Path | None
) -> set[str] | None:
    """Return the clips that the options choose, or None for all."""
    if (split or labels) and manifest is None:
        raise typer.BadParameter("a store knows no labels or splits: give their --manifest")
    chosen = ids_in(ids) if ids else None
    if manifest:
        clips = manifests.read(manifest)
        classes = set(manifests.names_in(labels)) if labels else {clip.label for clip in clips}
        unknown = classes - {clip.label for clip in clips}
        if unknown:
            names = manifests.listed(sorted(unknown))
            raise typer.BadParameter(f"no clip of {manifest} is {names}")
        listed = {c.id for c in clips if c.label in classes and split in (None, c.split)}
        if not listed:
            raise typer.BadParameter(f"no clip of {manifest} is in split {split}")
        chosen = listed if chosen is None else chosen & listed
    return chosen


def _print_transfer(transfer: features.Transfer, target: str, as_json: bool) -> None:
    if as_json:
        print_json({"to": target, **asdict(transfer)})
        return
    if transfer.missing:
        what = counted(len(transfer.missing), "clip")
        out.print(f"[yellow]not in that store: {what}[/] ({first_few(transfer.missing)})")
    kinds = {"shard": len(transfer.shards), "clip": len(transfer.clips)}
    what = " and ".join(counted(n, kind) for kind, n in kinds.items() if n) or "0 shards"
    rate = round(transfer.nbytes / transfer.seconds) if transfer.seconds else 0
    out.print(
        f"{what} transferred, {transfer.already} already there: {decimal(transfer.nbytes)} in "
        f"{transfer.seconds:.1f} s ({decimal(rate)}/s) -> {plain(target)}"
    )


@app.command("diff", epilog="Example: `avarnet features diff ours theirs`")
def features_diff(
    a: StorePath,
    b: StorePath,
    fast: Annotated[
        bool, typer.Option("--fast", help="Compare recorded checksums; damage is not found.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare two stores: recipe, clips, every byte of them. Exit code 1 if they differ."""
    found = features.diff(a, b, fast)
    if as_json:
        print_json(found._asdict())
    else:
        kinds = ("recipe differs", f"only in {a}", f"only in {b}", "features differ")
        for kind, rows in zip(kinds, found, strict=True):
            for row in rows:
                out.print(plain(f"{kind}: {row}"), soft_wrap=True, highlight=False)
        if not any(found):
            by = ", by their recorded checksums" if fast else ""
            out.print(f"the same clips with the same features{by}")
    raise typer.Exit(FAILED if any(found) else DONE)


@app.command("card", epilog="Example: `avarnet features card store --manifest clips.jsonl`")
def features_card(
    store: StorePath,
    manifest: Annotated[Path | None, typer.Option(help="For the number of clips by class.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the features, such as CC-BY-4.0.")] = None,
    contact: Annotated[str | None, typer.Option(help="Whom to ask.")] = None,
    note: Annotated[str | None, typer.Option(help="A line more; earlier ones stay.")] = None,
) -> None:
    """Write CARD.md: what the store holds, how it was made, how to load it.

    Licence, contact and notes are kept whenever it is written again.
    """
    clips = manifests.read(manifest) if manifest else []
    labels = {clip.id: clip.label for clip in clips}
    card = features.write_card(store, labels, licence=licence, contact=contact, note=note)
    out.print(f"{plain(str(card))}", soft_wrap=True)


@app.command("export", epilog="Example: `avarnet features export store folder --as npy`")
def features_export(
    store: StorePath,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new one.")],
    kind: Annotated[
        Literal["npy", "webdataset", "safetensors"],
        typer.Option("--as", help="npy: one file a clip and stream, NaN where nothing was."),
    ] = "npy",
) -> None:
    """Write features for other tools."""
    opened = features.Store(store)
    count = getattr(features, f"export_{kind}")(opened, folder)
    out.print(f"{counted(count, 'clip')} written to {plain(str(folder))}")


@app.command(
    "import",
    epilog="Example: `avarnet features import store --stream 'rgb=i3d/{clip}__{crop}.npy' "
    "--stream 'audio=vggish/{clip}__vggish.npy' --snippet-seconds 16/24 "
    "--about 'I3D and VGGish of XD-Violence'`",
)
def features_import(
    store: StorePath,
    stream: Annotated[
        list[str],
        typer.Option(help="NAME=PATTERN of .npy files; {clip} is the id, {crop} a crop's number."),
    ],
    snippet_seconds: Annotated[str, typer.Option(help="Length of a row: 0.25, or 16/24.")],
    about: Annotated[str, typer.Option(help="One line on what these features are.")],
    resample: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SECONDS",
            help="A stream whose rows have another length: they are averaged over the store's.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a store of features that others extracted, from .npy files (rows, values)."""
    patterns = dict(_pair("--stream", text, "PATTERN") for text in stream)
    seconds = _seconds("--snippet-seconds", snippet_seconds)
    others = {
        name: _seconds("--resample", text)
        for name, text in (_pair("--resample", text, "SECONDS") for text in resample or ())
    }
    with clips_bar("importing", as_json) as progress:
        summary = features.import_npy(store, patterns, seconds, about, progress, others)
    features.write_card(store)
    if as_json:
        print_json({"store": str(store), **summary._asdict()})
    else:
        for clip_id, reason in sorted(summary.failed.items()):
            out.print(f"[red]failed[/] {plain(f'{clip_id}: {reason}')}", soft_wrap=True)
        out.print(
            f"{counted(len(summary.imported), 'clip')} imported, {len(summary.already)} there "
            f"before, {len(summary.failed)} failed -> {plain(str(store))}"
        )
    raise typer.Exit(SOME_FAILED if summary.failed else DONE)


def _pair(option: str, text: str, what: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not (name and found and value):
        raise typer.BadParameter(f"{option} {text}: expected NAME={what}")
    return name, value


def _seconds(option: str, text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise typer.BadParameter(f"{option} {text}: {error}") from error
