"""What a fuzzer does to JSON and to bytes."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

NUMBERS = [0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 10**400, 0.5, 1e308]
NO_NUMBERS = [float("nan"), float("inf"), float("-inf")]
NAMES = ["", "x", "../x", "/x", "\x1b[2J", "\u2028", "\ud800", "x\n", "é" * 150, "x" * 70_000]
TEXTS = [*NAMES, "0.25", "nan", "1" * 9000]
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([None, True, False, *NUMBERS, *NO_NUMBERS, *TEXTS])
    | st.integers()
    | st.floats()
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, part in inner:
        found.append((value, key))
        if isinstance(part, dict | list):
            found += places(part)
    return found


@st.composite
def damaged_json(draw: st.DrawFn, whole: dict[str, Any]) -> dict[str, Any]:
    """A JSON object in which some values are others, absent, new, or under another's name."""
    changed = copy.deepcopy(whole)
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3]))):
        if not (where := places(changed)):
            break
        container, key = draw(st.sampled_from(where))
        kind = draw(st.sampled_from(["value", "value", "absent", "new", "swapped"]))
        if kind == "absent":
            del container[key]
        elif kind == "new" and isinstance(container, dict):
            container[draw(st.sampled_from(NAMES))] = draw(VALUES)
        elif kind == "swapped":
            other, place = draw(st.sampled_from(where))
            container[key] = copy.deepcopy(other[place])
        else:
            container[key] = draw(VALUES)
    return changed


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that were cut, changed or moved in some places."""
    changed = bytearray(content)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        start = draw(st.integers(0, len(changed)))
        end = min(len(changed), start + draw(st.integers(0, 40)))
        patch = draw(
            st.binary(max_size=16)
            | st.sampled_from([b"[" * 100_000, b"{", b'"', b"\n", b"\0" * 8, b"\xff" * 8])
            | st.integers(0, 2**64 - 1).map(lambda number: number.to_bytes(8, "little"))
        )
        changed[start:end] = patch
    return bytes(changed)


def dumped(value: Any) -> bytes:
    """Return JSON as Python writes it, also what is none."""
    return json.dumps(value).encode()
