"""Opens the stores that a command or a run names, and refuses to overlook shards of them."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import features
from features.clip_means import cache_folder
from features.several import several

if TYPE_CHECKING:
    from train import Run

PULLED = "stores"  # folder of the user's cache


def open_stores(
    stores: str | Path | Sequence[str | Path], skip_unreadable: bool = False
) -> features.Store | features.Joined:
    """Open a store, or several as one whose clips have the streams of all.

    Args:
        stores: a folder, or several.
        skip_unreadable: continue, with a warning, without shards that cannot be read.

    Raises:
        FeatureError: a folder is no store, they cannot be joined, or shards cannot be read.
    """
    with warnings.catch_warnings():
        if not skip_unreadable:
            warnings.simplefilter("ignore", features.UnreadableShard)
        opened = [features.Store(path) for path in several(stores)]
    reasons = [why for store in opened for why in store.unreadable.values()]
    if reasons and not skip_unreadable:
        more = f" (and {len(reasons) - 1} more shards)" if len(reasons) > 1 else ""
        raise features.FeatureError(
            f"{reasons[0]}{more}. What clips it has is unknown: 'avarnet features verify' names "
            "all such shards; --skip-unreadable continues without them"
        )
    return opened[0] if len(opened) == 1 else features.join(*opened)


def made_with(store: Path) -> str:
    """Return a line on what a store that is there was made with; "" if there is none."""
    if not (store / features.RECIPE_FILE).exists():
        return ""
    streams = features.read_recipe(store).streams
    made = [f"{name} ({settings.get('model', name)})" for name, settings in streams.items()]
    return f"\nTo add to {store}, give the options it was made with. It has: {', '.join(made)}."


def is_url(store: str) -> bool:
    """Tell whether a store is at a URL, and not in a folder."""
    return "://" in store


def pulled_folder(url: str) -> Path:
    """Return where a store at a URL is pulled to, in the user's cache."""
    public = features.redacted(url).rstrip("/")
    name = re.sub(r"[^\w.-]+", "-", public.partition("://")[2])[-64:].strip("-.")
    return cache_folder() / PULLED / f"{name}-{hashlib.sha256(public.encode()).hexdigest()[:8]}"


def pull_clips(
    url: str, clip_ids: Collection[str], progress: Callable[[int, int], None]
) -> features.Transfer:
    """Fetch the shards that hold some clips to `pulled_folder`, if they are not there.

    Args:
        url: of the store.
        clip_ids: the clips.
        progress: called with (bytes done, bytes in all).

    Raises:
        FeatureError: the store cannot be reached or read, or has another recipe than before.
    """
    folder = pulled_folder(url)
    try:
        return features.pull(url, folder, clip_ids, progress=progress)
    except features.FeatureError as error:
        if not (folder / features.RECIPE_FILE).exists():
            raise
        raise features.FeatureError(
            f"{error}. What was pulled before is in {folder}: give that folder instead of the URL, "
            "or delete it to pull anew"
        ) from error


def open_stores_of(
    run: Run, moved: str | Path | Sequence[str | Path], skip_unreadable: bool
) -> features.Store | features.Joined:
    """Open the stores that a run was trained on, as one.

    Args:
        run: the run.
        moved: where they are now; none if that is where they were.
        skip_unreadable: see `open_stores`.

    Raises:
        FeatureError: one is not there, and as `open_stores` does.
    """
    gone = [path for path in run.stores if not (path / features.RECIPE_FILE).exists()]
    if gone and not moved:
        raise features.FeatureError(
            f"{gone[0]} is no store, but {run.path} was trained on one there: give where it is now "
            "with --store" + ", and the others too, in the same order" * (len(run.stores) > 1)
        )
    return open_stores(moved or run.stores, skip_unreadable)
