"""Clips taken out of stores that were pushed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory

from features.card import CARD_FILE, write_card
from features.recipe import FeatureError
from features.several import several
from features.store_files import read_file
from features.transfer.push_pull import pull, push
from features.transfer.remote import SMALL_FILE, Remote


def withdraw(store: str | Path, url: str, ids: str | Collection[str]) -> list[str]:
    """Take clips out of the store at a URL for good; return those that it had.

    Of each shard there that has one, the other clips are sent in a new shard first, and then it is
    deleted, so that an interruption loses nothing: the same call resumes. What interrupted pushes
    have left there is deleted too. A place that keeps old versions (S3 with versioning, the hub's
    history) has them until these are deleted by its own tools.

    Args:
        store: folder of the local store, from which they were dropped; its card, written again,
            replaces that at the URL.
        url: of a store that can be pushed to.
        ids: of the clips, or one; those that are not there are ignored.

    Raises:
        FeatureError: the store at `url` cannot be reached or written, or a clip that stays is
            damaged; nothing is lost.
    """
    card = read_file(write_card(store), SMALL_FILE)
    remote = Remote(url)
    if remote.url.startswith(("http://", "https://")):
        raise FeatureError(f"{remote.name}: http can only be pulled from; give the place's own URL")
    unwanted = {clip_id.encode("utf-8", "surrogatepass") for clip_id in several(ids)}
    tables = remote.tables()
    holding = [name for name, table in tables.items() if not unwanted.isdisjoint(table.ids)]
    present = {clip_id for name in holding for clip_id in tables[name].ids}
    if staying := {clip_id.decode() for clip_id in present - unwanted}:
        with TemporaryDirectory(prefix="avarnet-") as folder:
            pull(url, folder, staying, trim=True)
            push(folder, url)
    for name in holding:
        remote.delete(str(name))
    remote.delete_unfinished()
    remote.write(CARD_FILE, card)
    return sorted(clip_id.decode() for clip_id in present & unwanted)
