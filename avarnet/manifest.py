"""`avarnet manifest`: what there is to process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import manifests
from avarnet.inputs import EXTRACT_EXTRA, has_extract, root_of
from avarnet.options import Json, Manifest, Output, Root
from avarnet.terminal import DONE, FAILED, counted, first_of, out, plain, print_json

app = typer.Typer(no_args_is_help=True, help="Say what there is to process.")


@app.command("folders", epilog="Example: `avarnet manifest folders videos -o videos.jsonl`")
def manifest_folders(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="DIR/CLASS/clip.mp4")],
    output: Output,
    groups: Annotated[
        Path | None,
        typer.Option(
            help="CSV with columns clip and source (the recording). Clips that it does not name "
            "count as a recording of their own; both they and names that are no clip are told."
        ),
    ] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """One class per sub-folder (VAAR's layout)."""
    grouped = manifests.Grouped(manifests.from_folders(directory, root_of(output, root)), [], [])
    if groups is not None:
        grouped = manifests.with_groups(grouped.clips, groups)
    _write_manifest(output, grouped.clips, [], as_json, grouped.ungrouped, grouped.unknown)


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
    root: Root = None,
    as_json: Json = False,
) -> None:
    """From a table; paths are relative to the table's folder."""
    _write_manifest(output, manifests.from_csv(file, root_of(output, root)), [], as_json)


@app.command(
    "xd-violence", epilog="Example: `avarnet manifest xd-violence --lists lists -o xd.jsonl`"
)
def manifest_xd_violence(
    lists: Annotated[Path, typer.Option(help="Folder of train.txt, test.txt, annotations.txt.")],
    output: Output,
    videos: Annotated[Path | None, typer.Option(help="Folder of the videos.")] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """XD-Violence: official names, splits, classes and frame annotations."""
    listing = manifests.from_xd_violence(lists, root_of(output, root), videos)
    _write_manifest(output, listing.clips, listing.missing, as_json)


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
    root: Root = None,
    as_json: Json = False,
) -> None:
    """UCF-Crime: official names, splits, classes and frame annotations."""
    listing = manifests.from_ucf_crime(lists, root_of(output, root), videos)
    _write_manifest(output, listing.clips, listing.missing, as_json)


@app.command("split", epilog="Example: `avarnet manifest split videos.jsonl --test 0.2 --val 0.1`")
def manifest_split(
    manifest: Manifest,
    test: Annotated[float, typer.Option(help="Share of clips to hold out.")] = 0.2,
    val: Annotated[float, typer.Option(help="Share of clips that pick the best epoch.")] = 0.1,
    folds: Annotated[int, typer.Option(help="Folds for cross-validation instead.")] = 0,
    seed: int = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", show_default="in place", help="Manifest.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Divide the clips, stratified by class, never dividing a group."""
    clips = manifests.read(manifest)
    target = output or manifest
    if target.resolve().parent != manifest.resolve().parent:
        raise manifests.ManifestError(
            f"{target}: paths are relative to the manifest's folder; write it beside {manifest}"
        )
    if folds:
        clips = manifests.assign_folds(clips, folds, seed)
    else:
        clips = manifests.assign_split(clips, test, val, seed)
    manifests.write(target, clips)
    counts = manifests.split_table(clips)
    if as_json:
        print_json({"manifest": str(target), "classes": counts})
        return
    total = dict(Counter(clip.split or "none" for clip in clips))
    sides = sorted(total, key=lambda side: ["train", "val", "test", side].index(side))
    table = Table("class", *sides)
    for name, row in {**counts, "all clips": total}.items():
        whole = sum(row.values())
        table.add_row(name, *(f"{row.get(s, 0)} ({row.get(s, 0) / whole:.0%})" for s in sides))
    out.print(table)


@app.command("check", epilog="Example: `avarnet manifest check videos.jsonl`")
def manifest_check(manifest: Manifest, root: Root = None, as_json: Json = False) -> None:
    """Find duplicates, missing and cut-short files, leaks, wrong intervals, missing sound."""
    probe = None
    if has_extract():
        from extract.decode import probe as read_clock
        from extract.decode import sound_beside

        def probe(video: Path, audio: Path | None) -> manifests.Probed:
            media = read_clock(video)
            sound = audio or sound_beside(video) or media.has_sound
            return manifests.Probed(media.duration, bool(sound), media.cut_short)

    findings = manifests.check(manifest, root_of(manifest, root), probe)
    errors = sum(finding.severity == "error" for finding in findings)
    if as_json:
        print_json(
            {"findings": [finding._asdict() for finding in findings], "opened": probe is not None}
        )
    else:
        if findings:
            table = Table("line", "clip", "", "problem", "way out")
            for f in findings:
                colour = "red" if f.severity == "error" else "yellow"
                cells = (str(f.line), plain(f.clip), f"[{colour}]{f.kind}[/]")
                table.add_row(*cells, plain(f.problem), plain(f.way_out))
            out.print(table)
        out.print(f"{counted(errors, 'error')}, {counted(len(findings) - errors, 'warning')}")
        if probe is None:
            out.print(f"The videos were not opened: {plain(EXTRACT_EXTRA)}")
    raise typer.Exit(FAILED if errors else DONE)


def _write_manifest(
    output: Path,
    clips: Sequence[manifests.Clip],
    missing: list[str],
    as_json: bool,
    ungrouped: Sequence[str] = (),
    unknown: Sequence[str] = (),
) -> None:
    manifests.write(output, clips)
    counts = Counter(clip.label for clip in clips)
    if as_json:
        left = {"missing": missing, "ungrouped": ungrouped, "unknown": unknown}
        print_json({"manifest": str(output), "clips": len(clips), **left, "classes": counts})
        return
    table = Table("class", "clips")
    for name, count in sorted(counts.items()):
        table.add_row(plain(name), str(count))
    out.print(table)
    out.print(f"{counted(len(clips), 'clip')} in {plain(str(output))}")
    if missing:
        what = counted(len(missing), "listed video")
        out.print(f"[yellow]not found: {what}[/] ({first_of(missing)})")
    if ungrouped:
        what = counted(len(ungrouped), "clip")
        out.print(f"[yellow]in no group, so one of its own each: {what}[/] ({first_of(ungrouped)})")
    if unknown:
        what = counted(len(unknown), "name")
        out.print(f"[yellow]in the file of groups, but no clip: {what}[/] ({first_of(unknown)})")
