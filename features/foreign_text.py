"""Text that comes from elsewhere, made fit to be shown: ids, labels, names, paths.

A terminal takes some characters for commands: to set its title, clear the screen, turn lines round.
Markdown and HTML take others for theirs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from features.redaction import redacted

# control characters; what turns text round or breaks its lines; what cannot be written in UTF-8
CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
# what Markdown, or HTML in it, may take for its own; within a word, _ is none
MARKDOWN = re.compile(r"[\\`*{}\[\]<>|~&$]|(?<!\w)_|_(?!\w)")


def escaped(text: str) -> str:
    r"""Return text with control characters as ``\x1b``, and newlines and tabs as they are.

    >>> escaped("a\x1b[1m")
    'a\\x1b[1m'
    """
    return CONTROL.sub(_escape, text)


def visible(text: str) -> str:
    """Return text as people and logs are shown it: `escaped`, and `redacted`."""
    return escaped(redacted(text))


def markdown(text: str) -> str:
    r"""Return text in one line that Markdown, and HTML in it, show literally.

    >>> markdown("<b>a|b")
    '\\<b\\>a\\|b'
    """
    return MARKDOWN.sub(r"\\\g<0>", " ".join(visible(text).split()))


def json_text(document: Any, **settings: Any) -> str:
    r"""Return a document as JSON that a terminal shows literally; readers get every character.

    Numbers that are not finite, for which JSON has no way to write them, are null.

    >>> json_text("a\x9b")
    '"a\\u009b"'

    Args:
        document: what `json.dumps` takes.
        settings: of `json.dumps`.
    """
    text = json.dumps(_finite(document), ensure_ascii=False, allow_nan=False, **settings)
    # outside of texts JSON has none of them but newlines, which are not among them
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def html_table(title: str, rows: Mapping[str, str]) -> str:
    """Return a table for a notebook, in which text of others is only text.

    Args:
        title: above it.
        rows: name -> what is beside it.
    """
    body = "".join(
        f'<tr><th style="text-align: left">{escape(visible(name))}</th>'
        f'<td style="text-align: left">{escape(visible(text))}</td></tr>'
        for name, text in rows.items()
    )
    return f"<table><caption>{escape(visible(title))}</caption>{body}</table>"


def in_one_line(rows: Mapping[str, str]) -> str:
    """Return the same rows for a repr."""
    return visible("; ".join(f"{name} {text}" for name, text in rows.items()))


def _finite(document: Any) -> Any:
    if isinstance(document, float):
        return document if math.isfinite(document) else None
    if isinstance(document, dict):
        return {key: _finite(value) for key, value in document.items()}
    return (
        [_finite(value) for value in document] if isinstance(document, list | tuple) else document
    )


def _escape(found: re.Match[str]) -> str:
    byte = ord(found[0]) - 0xDC00  # of the name, if that is no text in UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else repr(found[0])[1:-1]
