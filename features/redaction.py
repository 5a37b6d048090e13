"""Hides passwords, keys and tokens of addresses wherever one is shown or stored."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

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
