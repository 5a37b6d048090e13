"""`avarnet manifest`: what there is to process."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import manifests
from avarnet.console import (
    DONE,
    FAILED,
    SOME_FAILED,
    clips_bar,
    counted,
    err,
    first_few,
    out,
    plain,
    print_json,
    shown,
)
from avarnet.inputs import extract_missing, found_json, print_left_out
from avarnet.near_duplicates import near_duplicates
from avarnet.options import Json, Manifest, Output, Root
from avarnet.pipelines import has_extract, root_of
from avarnet.stores import open_stores
from manifests.sources.csv import Unannotated

LISTED = 5  # clips with one and the same problem
Force = Annotated[
    bool, typer.Option("--force", help="Write over a manifest whose split would be lost.")
]
Groups = Annotated[
    Path | None,
    typer.Option(
        help="CSV with columns clip and source (the recording). Clips that it does not name "
        "count as a recording of their own; both they and names that are no clip are listed."
    ),
]

app = typer.Typer(no_args_is_help=True, help="Make and check lists of the clips to process.")


@app.command("folders", epilog="Example: `avarnet manifest folders videos -o videos.jsonl`")
def manifest_folders(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="DIR/CLASS/clip.mp4")],
    output: Output,
    groups: Groups = None,
    force: Force = False,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """One class per sub-folder (VAAR's layout)."""
    listing = manifests.from_folders(directory, root_of(output, root))
    grouped = _grouped(listing.clips, groups)
    listing = listing._replace(clips=grouped.clips)
    _write_manifest(output, listing, as_json, force, grouped.ungrouped, grouped.unknown)


def _grouped(clips: list[manifests.Clip], groups: Path | None) -> manifests.Grouped:
    if groups is None:
        return manifests.Grouped(clips, [], [])
    return manifests.with_groups(clips, groups)


@app.command("add", epilog="Example: `avarnet manifest add videos.jsonl videos`")
def manifest_add(
    manifest: Manifest,
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR|FILE", help="A folder, DIR/CLASS/clip.mp4, or a .csv table."),
    ],
    groups: Groups = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Add new clips of a folder or a table; the manifest's own keep labels, intervals and split."""
    old, base = manifests.read(manifest), root_of(manifest, root)
    if source.suffix == ".csv":
        listing = manifests.Listing(manifests.from_csv(source, base), [], {}, None)
    else:
        listing = manifests.from_folders(source, base)
    grouped = _grouped(listing.clips, groups)
    grown = manifests.add_clips(old, grouped.clips, base)
    new = {clip.id for clip in grown.added}
    listing = listing._replace(clips=grown.clips, refused=listing.refused | grown.refused)
    ungrouped = [clip_id for clip_id in grouped.ungrouped if clip_id in new]
    _write_manifest(manifest, listing, as_json, False, ungrouped, grouped.unknown, grown.added)


@app.command("csv", epilog="Example: `avarnet manifest csv clips.csv -o clips.jsonl`")
def manifest_csv(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Columns path, label; optional id, split, group, duration, fps, audio, start, "
            "end.",
        ),
    ],
    output: Output,
    force: Force = False,
    root: Root = None,
    normal: Annotated[
        str, typer.Option(help="The label of clips without anomaly.", show_default="A or Normal")
    ] = "",
    unannotated: Annotated[
        Unannotated,
        typer.Option(help="What clips of other labels are, whose start and end are empty."),
    ] = "unknown",
    as_json: Json = False,
) -> None:
    """From a table; paths are relative to the table's folder."""
    clips = manifests.from_csv(file, root_of(output, root), normal, unannotated)
    bare = [clip.id for clip in clips if clip.intervals is None]
    if 0 < len(bare) < len(clips):
        err.print(
            f"[yellow]not annotated in time: {counted(len(bare), 'clip')}[/] ({first_few(bare)}); "
            "--unannotated normal, if nothing happens in them",
            soft_wrap=True,
        )
    _write_manifest(output, manifests.Listing(clips, [], {}, None), as_json, force)


@app.command(
    "xd-violence", epilog="Example: `avarnet manifest xd-violence --lists lists -o xd.jsonl`"
)
def manifest_xd_violence(
    lists: Annotated[Path, typer.Option(help="Folder of train.txt, test.txt, annotations.txt.")],
    output: Output,
    videos: Annotated[Path | None, typer.Option(help="Folder of the videos.")] = None,
    force: Force = False,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """XD-Violence: official names, splits, classes and frame annotations."""
    listing = manifests.from_xd_violence(lists, root_of(output, root), videos)
    _write_manifest(output, listing, as_json, force)


@app.command("ucf-crime", epilog="Example: `avarnet manifest ucf-crime --lists lists -o ucf.jsonl`")
def manifest_ucf_crime(
    lists: Annotated[
        Path,
        typer.Option(
            help="Folder of Anomaly_Train.txt, Anomaly_Test.txt, Temporal_Anomaly_Annotation.txt."
        ),
    ],
    output: Output,
    videos: Annotated[Path | None, typer.Option(help="Folder of the videos.")] = None,
    force: Force = False,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """UCF-Crime: official names, splits, classes and frame annotations."""
    listing = manifests.from_ucf_crime(lists, root_of(output, root), videos)
    _write_manifest(output, listing, as_json, force)


@app.command("split", epilog="Example: `avarnet manifest split videos.jsonl --test 0.2 --val 0.1`")
def manifest_split(
    manifest: Manifest,
    test: Annotated[float, typer.Option(help="Share of clips to hold out.")] = 0.2,
    val: Annotated[float, typer.Option(help="Share of clips that pick the best epoch.")] = 0.1,
    folds: Annotated[int, typer.Option(help="Folds for cross-validation instead.")] = 0,
    seed: int = 0,
    keep: Annotated[
        bool,
        typer.Option(help="Clips that have a side keep it; --no-keep divides all of them anew."),
    ] = True,
    force: Force = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", show_default="in place", help="Manifest.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Divide the clips, stratified by class, never dividing a group.

    Only clips that have no side yet, unless --no-keep.
    """
    clips = manifests.read(manifest)
    kept = sum(keep and clip.split is not None for clip in clips)
    target = output or manifest
    if target.resolve().parent != manifest.resolve().parent:
        raise manifests.ManifestError(
            f"{target}: paths are relative to the manifest's folder; write it beside {manifest}"
        )
    if folds:
        clips = manifests.assign_folds(clips, folds, seed, keep=keep)
    else:
        clips = manifests.assign_split(clips, test, val, seed, keep=keep)
    if not force and target.resolve() != manifest.resolve():
        manifests.refuse_to_lose_splits(target, clips)
    manifests.write(target, clips)
    counts = manifests.split_table(clips)
    if as_json:
        print_json({"manifest": str(target), "kept": kept, "classes": counts})
        return
    total = dict(Counter(clip.split or "none" for clip in clips))
    sides = sorted(total, key=lambda side: ["train", "val", "test", side].index(side))
    table = Table("class", *map(plain, sides))
    for name, row in {**counts, "all clips": total}.items():
        whole = sum(row.values())
        table.add_row(
            plain(name), *(f"{row.get(s, 0)} ({row.get(s, 0) / whole:.0%})" for s in sides)
        )
    out.print(table)
    if kept:
        out.print(
            f"{counted(kept, 'clip')} had a side and kept it, {counted(len(clips) - kept, 'clip')} "
            "divided now; --no-keep divides all anew"
        )


@app.command("check", epilog="Example: `avarnet manifest check videos.jsonl`")
def manifest_check(
    manifest: Manifest,
    root: Root = None,
    store: Annotated[
        list[Path] | None,
        typer.Option(help="Their features, to find clips nearly the same on two of its sides."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find duplicates, missing and cut-short files, leaks, wrong intervals, missing sound."""
    probe = None
    if has_extract():
        from extract.decoding.container import probe as read_clock
        from extract.decoding.sound_file import sound_beside

        def probe(video: Path, audio: Path | None) -> manifests.Probed:
            media = read_clock(video)
            sound = audio or sound_beside(video) or media.has_sound
            return manifests.Probed(media.duration, bool(sound), media.cut_short)

    findings = manifests.check(manifest, root_of(manifest, root), probe)
    compared: dict[str, int] = {}
    if store:
        with clips_bar("comparing clips", quiet=as_json) as progress:
            found, *counts = near_duplicates(manifest, open_stores(store, True), progress)
        findings += found
        compared = dict(zip(("compared", "not_compared"), counts, strict=True))
    errors = sum(finding.severity == "error" for finding in findings)
    if as_json:
        print_json(
            {
                "findings": [finding._asdict() for finding in findings],
                "opened": probe is not None,
                **compared,
            }
        )
    else:
        _print_findings(findings)
        out.print(f"{counted(errors, 'error')}, {counted(len(findings) - errors, 'warning')}")
        if compared:
            out.print(f"compared: {counted(compared['compared'], 'clip')}")
            if others := compared["not_compared"]:
                out.print(f"not compared, without a side or readable features: {others:d}")
        if probe is None:
            out.print(f"The videos were not opened: {plain(extract_missing())}")
    raise typer.Exit(FAILED if errors else DONE)


def _print_findings(findings: Sequence[manifests.Finding]) -> None:
    """Print what is wrong: each kind with its way out, and the same problem once."""
    kinds: dict[tuple[str, str, str], list[manifests.Finding]] = defaultdict(list)
    for found in findings:
        kinds[found.severity, found.kind, found.way_out].append(found)
    for (severity, kind, way_out), alike in kinds.items():
        colour = "red" if severity == "error" else "yellow"
        times = f" ({len(alike)} times)" if len(alike) > 1 else ""
        out.print(f"[{colour}]{severity}[/] {kind}{times}: {plain(way_out)}", soft_wrap=True)
        equal: dict[str, list[manifests.Finding]] = defaultdict(list)
        for found in alike:
            equal[found.problem].append(found)
        for problem, same in equal.items():
            if len(same) == 1:
                (found,) = same
                place = ", ".join(part for part in (_line(found), found.clip) if part)
                text = f"{place}: {problem}" if place else problem
            else:
                places = [f"{found.clip} ({_line(found)})" for found in same[:LISTED]]
                if len(same) > LISTED:
                    places.append(f"... ({len(same)} in all; --json names each)")
                text = f"{problem}: {', '.join(places)}"
            out.print(f"  {shown(text)}", soft_wrap=True, highlight=False)


def _line(found: manifests.Finding) -> str:
    return f"line {found.line}" if found.line else ""


def _write_manifest(
    output: Path,
    listing: manifests.Listing,
    as_json: bool,
    force: bool,
    ungrouped: Sequence[str] = (),
    unknown: Sequence[str] = (),
    added: Sequence[manifests.Clip] | None = None,
) -> None:
    clips, missing, refused, found = listing
    if not force:
        manifests.refuse_to_lose_splits(output, clips)
    manifests.write(output, clips)
    counts = Counter(clip.label for clip in clips)
    failed = bool(refused or (found and found.unreadable))
    if as_json:
        left = {"missing": missing, "ungrouped": ungrouped, "unknown": unknown, "refused": refused}
        document = {} if found is None else found_json(found)
        if added is not None:
            document["added"] = [clip.id for clip in added]
        print_json(
            {"manifest": str(output), "clips": len(clips), **left, **document, "classes": counts}
        )
        raise typer.Exit(SOME_FAILED if failed else DONE)
    table = Table("class", "clips")
    for name, count in sorted(counts.items()):
        table.add_row(plain(name), str(count))
    out.print(table)
    new = "" if added is None else f"{counted(len(added), 'new clip')}, "
    out.print(f"{new}{counted(len(clips), 'clip')} in {plain(str(output))}", soft_wrap=True)
    if any(clip.split is None for clip in added or ()) and any(clip.split for clip in clips):
        out.print(
            "new clips are on no side of the split yet: avarnet manifest split "
            f"{plain(str(output))}",
            soft_wrap=True,
        )
    if missing:
        what = counted(len(missing), "listed video")
        out.print(f"[yellow]not found: {what}[/] ({first_few(missing)})")
    if ungrouped:
        what = counted(len(ungrouped), "clip")
        out.print(f"[yellow]in no group, so a group each: {what}[/] ({first_few(ungrouped)})")
    if unknown:
        what = counted(len(unknown), "name")
        out.print(f"[yellow]in the file of groups, but no clip: {what}[/] ({first_few(unknown)})")
    if found is not None:
        print_left_out(found, out)
    if refused:
        what = counted(len(refused), "video")
        out.print(f"[red]left out, as its name cannot be a clip's id: {what}[/] (rename the file)")
        for name, why in refused.items():
            out.print(f"  {shown(name)}: {plain(why)}", soft_wrap=True, highlight=False)
    raise typer.Exit(SOME_FAILED if failed else DONE)
