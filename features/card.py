"""The page of a store for people: what it holds, how it was made, how to load it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import date
from itertools import takewhile
from pathlib import Path

from rich.filesize import decimal

from features.foreign_text import json_text, markdown
from features.format.shard_index import VERSION
from features.overview import overview
from features.recipe import FeatureError
from features.store import Store
from features.store_files import read_file, replace_file

CARD_FILE = "CARD.md"
MOST_CARD = 2**20  # bytes


def write_card(
    path: str | Path,
    labels: Mapping[str, str] | None = None,
    *,
    licence: str | None = None,
    contact: str | None = None,
    note: str | None = None,
) -> Path:
    """Write ``CARD.md`` into a store: what it holds, how it was made, how to load it.

    Licence, contact and notes are those that the card has already, where no others are given; they
    stand above everything, between two lines of ``---``, and may be edited there.

    Args:
        path: the store's folder.
        labels: clip id -> class, from the manifest; a store itself knows no labels.
        licence: under which the features may be used.
        contact: whom to ask.
        note: to be added to the notes.
    """
    path = Path(path)
    store = Store(path)
    terms = _terms(path / CARD_FILE)
    terms |= {k: [v] for k, v in (("licence", licence), ("contact", contact)) if v is not None}
    if note is not None and note not in terms["note"]:
        terms["note"].append(note)
    head = [f"{name}: {json_text(text)}" for name, texts in terms.items() for text in texts]
    about, recipe = overview(store), store.recipe
    some_clip = next(iter(store), "CLIP")
    footage = f"{about.hours:,.2f} hours" if about.hours >= 1 else f"{about.hours * 60:.1f} minutes"
    shards = "1 shard" if about.shards == 1 else f"{about.shards} shards"
    lines = ["---", *head, "---", ""] if head else []
    lines += [
        f"# {markdown(path.resolve().name)}",
        "",
        *(
            line
            for name, texts in terms.items()
            for text in texts
            for line in (f"{name.capitalize()}: {markdown(text)}", "")
        ),
        f"Features of {about.clips:,} clips, {footage} of video, in steps of "
        f"{recipe.snippet_seconds:g} s ({about.snippets:,} snippets); {shards}, "
        f"{decimal(about.nbytes)}.",
        "",
    ]
    if recipe.random_streams:
        lines += [
            f"**Random weights** ({', '.join(map(markdown, recipe.random_streams))}): these "
            "networks have learned nothing; good for trying things out, not for results.",
            "",
        ]
    lines += ["| stream | values | from | clips without it |", "| --- | --- | --- | --- |"]
    for name, settings in recipe.streams.items():
        source = recipe.source.get(name, {})
        origin = f"{source.get('name', settings.get('model', '?'))}, {source.get('weights', '?')}"
        lines.append(
            f"| {markdown(name)} | {settings['features']} | {markdown(origin)} | "
            f"{about.lacking[name]} |"
        )
    lines.append("")
    if labels:
        classes = Counter(labels[clip_id] for clip_id in store if clip_id in labels)
        lines += ["| class | clips |", "| --- | --- |"]
        lines += [f"| {markdown(name)} | {count} |" for name, count in sorted(classes.items())]
        lines.append("")
    lines += [
        f"{words.capitalize()}: {count} of the clips." for words, count in about.flags.items()
    ]
    lines += [
        f"Written on {date.today().isoformat()}. "
        f"Recipe {recipe.fingerprint}, {markdown(recipe.precision)}; all of it is in "
        f"`recipe.json`. Format: avarnet-features, version {VERSION}.",
        "",
        "```python",
        "import features",
        f"store = features.Store({_quoted(path.resolve().name)})",
        f"clip = store[{_quoted(some_clip)}]",
        *(
            f"clip.streams[{_quoted(name)}]  # (snippets, {settings['features']}) float16"
            for name, settings in recipe.streams.items()
        ),
        "```",
        "",
        "Train on it: `avarnet train MANIFEST.jsonl STORE RUN`. Is every byte as it was written? "
        "`avarnet features verify STORE`.",
        "",
    ]
    card = path / CARD_FILE
    replace_file(card, "\n".join(lines).encode())
    return card


def _terms(card: Path) -> dict[str, list[str]]:
    """Return licence, contact and notes of a card, as its first lines have them."""
    terms: dict[str, list[str]] = {"licence": [], "contact": [], "note": []}
    try:
        lines = read_file(card, MOST_CARD).decode(errors="replace").splitlines()
    except (FileNotFoundError, FeatureError):  # none, or what is replaced
        return terms
    for line in takewhile(lambda line: line != "---", lines[1:] if lines[:1] == ["---"] else []):
        name, _, text = line.partition(":")
        try:
            value = json.loads(text)
        except ValueError:  # as somebody has written it by hand
            value = text.strip()
        if name in terms:
            terms[name].append(str(value))
    return terms


def _quoted(text: str) -> str:
    """Return text as Python reads it."""
    return json_text(text)
