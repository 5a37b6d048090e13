"""Text that comes from elsewhere, made fit to be shown: ids, labels, names, paths, addresses.

A terminal takes some characters for commands: to set its title, clear the screen, turn lines round.
Markdown and HTML take others for theirs. An address can have a password in it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote, unquote

# control characters; what turns text round or breaks its lines; what cannot be written in UTF-8
CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
# what Markdown, or HTML in it, may take for its own; within a word, _ is none
MARKDOWN = re.compile(r"[\\`*{}\[\]<>|~&$]|(?<!\w)_|_(?!\w)")
HIDDEN = "***"
# a scheme and what follows; Path makes one slash of two
ADDRESS = re.compile(
    r"\b([A-Za-z][A-Za-z0-9+.\-]+(?=://)|(?:s3|sftp|ssh|https?|ftp|rtsps?|hf|gs|az)(?=:/)):(//?)"
    r"(?=[^\s/])([^\s'\"<>]+)"
)
WITH_PORT = re.compile(r"(\[[^\]]*\]|[^:\[\]]*):\d*")
END = re.compile(r"[).,:;\]]*$")  # of a sentence, not of an address
SHORTEST = 3  # characters of a secret that is hidden wherever it stands
SHORTEST_VALUE = 8  # the same of a value after the question mark, where "1" is none


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


def redacted(text: str, address: str = "") -> str:
    """Hide what lets others in: names and passwords before a host, and all after a question mark.

    >>> redacted("sftp://ann:pw@host/store: not found")
    'sftp://***@host/store: not found'
    >>> redacted("denied: passw0rd", "sftp://ann:passw0rd@host/store")
    'denied: ***'

    Args:
        text: may have addresses in it.
        address: whose secrets are hidden wherever they stand in the text.
    """
    for secret in _secrets(address):
        text = text.replace(secret, HIDDEN)
    return ADDRESS.sub(_hidden, text)


def _hidden(found: re.Match[str]) -> str:
    scheme, slashes, rest = found.groups()
    user, rest = _divided(rest)
    if user:
        rest = f"{HIDDEN}@{rest}"
    place, _, query = rest.partition("?")
    # a path may have both a colon and a question mark
    if query and (len(slashes) == 2 or "=" in query):
        end = END.search(query)
        rest = f"{place}?{HIDDEN}{end[0] if end else ''}"
    return f"{scheme}:{slashes}{rest}"


def _divided(rest: str) -> tuple[str, str]:
    """Return what is before the host, and all from the host on."""
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in host:
        user = host.rpartition("@")[0]
    elif ":" in host and "@" in rest and not WITH_PORT.fullmatch(host):
        user = rest.rpartition("@")[0]  # a password with a slash in it, as keys of S3 have
    else:
        return "", rest
    return user, rest[len(user) + 1 :]


def _secrets(address: str) -> list[str]:
    """Return what is secret in an address, the longest first, in all ways of writing it."""
    found = ADDRESS.search(address)
    if not found:
        return []
    user, _ = _divided(found[3])
    query = re.split(r"[#\s]", address.partition("?")[2], maxsplit=1)[0]
    values = [part.partition("=")[2] for part in query.split("&")]
    parts = {user, user.partition(":")[2] or user}
    parts = {part for part in parts if len(part) >= SHORTEST}
    parts |= {value for value in [query, *values] if len(value) >= SHORTEST_VALUE}
    written = {way for part in parts for way in (part, unquote(part), quote(unquote(part), ""))}
    return sorted(written, key=len, reverse=True)
