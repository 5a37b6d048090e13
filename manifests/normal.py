"""Which label is that of the clips without anomaly."""

from __future__ import annotations

from collections.abc import Iterable

from manifests.clip import ManifestError
from manifests.names import listed, quoted

NORMAL_LABELS = ("A", "Normal", "normal")  # of XD-Violence; of UCF-Crime and VAAR


def normal_label(labels: Iterable[str], named: str = "") -> str | None:
    """Return the label of the clips without anomaly; None if no clip has one that means that.

    >>> normal_label(["Crash", "Normal"])
    'Normal'

    Args:
        labels: of all clips.
        named: what a user says it is; one of `NORMAL_LABELS` if empty.

    Raises:
        ManifestError: no clip has the label that is named, or several labels may be it.
    """
    known = set(labels)
    if named and named not in known:
        raise ManifestError(
            f"no clip is labelled {quoted(named)}, which --normal names; there are "
            + listed(sorted(known))
        )
    fitting = [named] if named else [label for label in NORMAL_LABELS if label in known]
    if len(fitting) > 1:
        raise ManifestError(
            f"{' and '.join(fitting)} may each be the label of clips without anomaly; say which "
            "with --normal, or give them one label"
        )
    return fitting[0] if fitting else None
