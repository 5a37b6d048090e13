"""What is damaged in a store is fetched again from a copy of it."""

from __future__ import annotations

import time
from pathlib import Path

from features import integrity
from features.format.shard_name import ShardName
from features.recipe import FeatureError
from features.store import Store, create
from features.transfer.parallel import Meter, Progress
from features.transfer.push_pull import Transfer, fetch_shards, pull
from features.transfer.remote import Remote


def pull_repair(url: str, store: str | Path, progress: Progress = lambda *_: None) -> Transfer:
    """Fetch again what is damaged in the store in the folder `store`, and nothing else.

    A damaged shard that the distant store has too is replaced by it. Of another one, the intact
    clips are sealed again, the damaged ones are fetched alone, and the file gets ``.damaged`` at
    the end of its name.

    Args:
        url: the distant store; see `pull`.
        store: the local folder.
        progress: called with (bytes done, bytes in all), from several threads.

    Raises:
        FeatureError: the distant store has another recipe, or cannot be reached; or which clips a
            damaged shard had is unknown, and the distant store has no shard of its name: the rest
            is repaired all the same.
        WriteError: the local store cannot be written.
    """
    started, store = time.monotonic(), Path(store)
    damages = integrity.verify(store).damages
    remote = Remote(url)
    create(store, remote.recipe)
    sizes, meter = remote.sizes(), Meter(0, progress)
    names = {damage.shard: ShardName.parse(damage.shard.name) for damage in damages}
    replaced = {name: sizes[name] for name in names.values() if name and name in sizes}
    others = [damage for damage in damages if names[damage.shard] not in replaced]
    transfer = Transfer(fetch_shards(remote, replaced, store, meter), nbytes=meter.moved)
    integrity.repair(store, others)
    lost = {clip_id for damage in others for clip_id in damage.clips} - Store(store).keys()
    if lost:
        clips = pull(url, store, lost, trim=True, progress=progress)
        transfer.clips, transfer.missing = clips.clips, clips.missing
        transfer.nbytes += clips.nbytes
    unknown = [damage.shard.name for damage in others if not damage.readable]
    if unknown:
        raise FeatureError(
            f"{store}: which clips {', '.join(unknown)} had is unknown, and {remote.name} has no "
            f"shard of this name; what else was damaged is whole again. Run 'avarnet features pull "
            f"URL {store}', with the choice of clips that you made, to fetch what is missing"
        )
    transfer.already = len(Store(store).shards) - len(transfer.shards)
    transfer.seconds = time.monotonic() - started
    return transfer
