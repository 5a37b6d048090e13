"""Sharing stores: push and pull over whatever fsspec reaches, shard by shard.

A shard's name says its content, so only missing shards are transferred, what arrives is compared
with its name, and an interrupted transfer resumes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.filesize import decimal

from features.card import CARD_FILE
from features.clip_features import Features, Flag
from features.format.shard import Shard
from features.format.shard_index import Table, clip_digest
from features.format.shard_name import ShardName, file_hash
from features.format.shard_writer import sync_folder, write_error
from features.recipe import FeatureError
from features.several import several
from features.store import Store, create, read_recipe
from features.store_files import open_regular, read_file, replace_file
from features.transfer.parallel import Meter, Progress, at_once
from features.transfer.remote import SMALL_FILE, Remote
from features.transfer.upload import PARTIAL
from features.writer import pack, recover

CLIPS_AHEAD = 64  # clips fetched before they are written
SEND_AGAIN = "Whoever has it whole sends it again with 'avarnet features push STORE URL --repair'"


@dataclass
class Transfer:
    """What a push or a pull did.

    Attributes:
        shards: transferred whole.
        clips: transferred alone (`pull` with ``trim``).
        already: how many shards (or clips) were there already.
        missing: clips asked for that the distant store lacks.
        nbytes: transferred.
        seconds: it took.
    """

    shards: list[str] = field(default_factory=list)
    clips: list[str] = field(default_factory=list)
    already: int = 0
    missing: list[str] = field(default_factory=list)
    nbytes: int = 0
    seconds: float = 0.0


def push(
    store: str | Path,
    url: str,
    progress: Progress = lambda *_: None,
    repair: bool = False,
) -> Transfer:
    """Send the shards of a store that the store at `url` lacks.

    Args:
        store: the store's folder.
        url: a folder, ``s3://``, ``sftp://``, ``hf://`` or any other that fsspec writes to.
        progress: called with (bytes done, bytes in all), from several threads.
        repair: read what is there already, and send again what is damaged.

    Raises:
        FeatureError: the store at `url` has another recipe, cannot be reached or written; or a
            shard to send is damaged.
    """
    store = Path(store)
    started = time.monotonic()
    sealed, recipe = _sealed_shards(store), read_recipe(store)
    card: bytes | None = None
    with suppress(FileNotFoundError):
        card = read_file(store / CARD_FILE, SMALL_FILE)
    remote = Remote(url)
    remote.create(recipe)
    arrived = remote.sizes()
    sizes = {name: file.stat().st_size for name, file in sealed.items()}
    lacking = {name: f for name, f in sealed.items() if arrived.get(name) != sizes[name]}
    meter = Meter(sum(sizes[name] for name in lacking), progress)
    if repair:
        present = sealed.keys() - lacking.keys()
        meter.grow(sum(sizes[name] for name in present))
        intact = at_once(lambda name: _is_intact(remote, name, sizes[name], meter), present, meter)
        damaged = [name for name, whole in zip(present, intact, strict=True) if not whole]
        meter.grow(sum(sizes[name] for name in damaged))
        lacking |= {name: sealed[name] for name in damaged}
    transfer = Transfer([str(name) for name in lacking], already=len(sealed) - len(lacking))

    def send(name: ShardName) -> None:
        try:
            intact = file_hash(lacking[name]) == name.content
        except FileNotFoundError as error:
            raise FeatureError(
                f"{lacking[name]} is gone: was its store compacted, or rid of clips? Push it again"
            ) from error
        if not intact:
            raise FeatureError(
                f"{lacking[name]}: damaged; run 'avarnet features verify' on its store"
            )
        remote.send(name, lacking[name], meter)

    at_once(send, lacking, meter)
    if card is not None:
        remote.write(CARD_FILE, card)
    transfer.nbytes, transfer.seconds = meter.moved, time.monotonic() - started
    return transfer


def pull(
    url: str,
    store: str | Path,
    ids: str | Collection[str] | None = None,
    trim: bool = False,
    progress: Progress = lambda *_: None,
) -> Transfer:
    """Fetch shards that the store in the folder `store` lacks; it is made if absent.

    Args:
        url: the distant store: a folder, ``s3://``, ``sftp://``, ``http(s)://``, ``hf://``.
        store: the local folder.
        ids: fetch only the shards that hold one of these clips, or this one.
        trim: of these, fetch only the clips' own bytes, and seal them in shards of their own.
        progress: called with (bytes done, bytes in all), from several threads.

    Raises:
        FeatureError: the local store has another recipe; the distant one cannot be reached, or what
            arrived is not what its name says.
        WriteError: the local store cannot be written.
    """
    store = Path(store)
    started = time.monotonic()
    remote = Remote(url)
    create(store, remote.recipe)
    recover(store)
    sizes, local = remote.sizes(), Store(store)
    transfer = Transfer()
    meter = Meter(0, progress)
    if ids is None:
        transfer.shards = fetch_shards(remote, _absent(sizes, store), store, meter)
        transfer.already = len(sizes) - len(transfer.shards)
        if card := remote.read_small(CARD_FILE):
            replace_file(store / CARD_FILE, card)
    else:
        tables = remote.tables(sizes)
        asked = {clip_id.encode("utf-8", "surrogatepass") for clip_id in several(ids)}
        known = {clip_id for table in tables.values() for clip_id in table.ids}
        lacking = {clip_id for clip_id in asked & known if clip_id.decode() not in local}
        transfer.missing = sorted(clip_id.decode(errors="replace") for clip_id in asked - known)
        transfer.already = len(asked & known) - len(lacking)
        if trim:
            clips = _fetch_clips(remote, _locate(tables, lacking), meter)

            def arriving() -> Iterator[tuple[str, Features]]:
                for clip_id, features in clips:
                    transfer.clips.append(clip_id)
                    yield clip_id, features

            pack(store, arriving(), remote.recipe)
        else:
            holding = [name for name in tables if not lacking.isdisjoint(tables[name].ids)]
            wanted = _absent({name: sizes[name] for name in holding}, store)
            transfer.shards = fetch_shards(remote, wanted, store, meter)
    transfer.nbytes, transfer.seconds = meter.moved, time.monotonic() - started
    return transfer


def _sealed_shards(store: Path) -> dict[ShardName, Path]:
    """Return the shards of a store, and nothing that a link there leads to."""
    files = ((ShardName.parse(file.name), file) for file in sorted(store.glob("[!.]*.h5")))
    return {n: file for n, file in files if n and file.is_file() and not file.is_symlink()}


def _is_intact(remote: Remote, name: ShardName, size: int, meter: Meter) -> bool:
    """Read a distant shard, and tell whether it is what its name says."""
    digest, came = hashlib.sha256(), 0

    def take(block: bytes) -> None:
        nonlocal came
        came += len(block)
        digest.update(block)
        meter.skip(len(block))

    while came < size:
        with remote.reported():
            remote.fetch(name, came, size, take)
    return digest.hexdigest().startswith(name.content)


def _absent(sizes: Mapping[ShardName, int], store: Path) -> dict[ShardName, int]:
    return {name: size for name, size in sizes.items() if not (store / str(name)).exists()}


def fetch_shards(
    remote: Remote, sizes: Mapping[ShardName, int], store: Path, meter: Meter
) -> list[str]:
    """Fetch shards into a store, in place of what has their names; return these.

    Args:
        remote: the distant store.
        sizes: of the shards, by name.
        store: the local folder.
        meter: counts their bytes.
    """
    _need_room(store, remote.name, sum(sizes.values()))
    meter.grow(sum(sizes.values()))
    at_once(lambda name: _fetch_shard(remote, name, sizes[name], store, meter), sizes, meter)
    return [str(name) for name in sizes]


def _need_room(store: Path, source: str, nbytes: int) -> None:
    """Refuse to fetch more than there is room for, whatever it is."""
    free = shutil.disk_usage(store).free
    if nbytes > free:
        raise FeatureError(
            f"{source}: its server says that {decimal(nbytes)} are to be fetched, and {store} has "
            f"room for {decimal(free)}; fetch some clips ('--ids' with '--trim'), or make room"
        )


def _fetch_shard(remote: Remote, name: ShardName, size: int, store: Path, meter: Meter) -> None:
    """Fetch one shard, resuming what an earlier try left in the store."""
    partial = store / f"{PARTIAL}{name}"
    try:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        with os.fdopen(open_regular(partial, flags), "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FeatureError(f"{partial}: another pull is fetching this shard") from None
            except OSError:
                pass  # a file system without locks
            if not partial.exists():
                return  # another pull has just put it in its place
            if file.tell() > size:
                file.truncate(0)
            meter.skip(file.tell())

            def take(block: bytes) -> None:
                file.write(block)
                meter.add(len(block))

            while (at := file.tell()) < size:
                with remote.reported(name):
                    remote.fetch(name, at, size, take)
                file.flush()
            os.fsync(file.fileno())
        try:
            _check_arrived(partial, name)
        except FeatureError as error:
            partial.unlink()
            raise FeatureError(f"{remote.name}/{name}: {error}") from error
        partial.rename(store / str(name))
        sync_folder(store)
    except OSError as error:
        raise write_error(store, error) from error


def _check_arrived(file: Path, name: ShardName) -> None:
    """Refuse a shard that is not what its name says."""
    if file_hash(file) != name.content:
        raise FeatureError(
            "what arrived is not what its name says; pull again, and if it is so again it is "
            f"damaged at the source. {SEND_AGAIN}"
        )
    if Shard(file).recipe.fingerprint != name.fingerprint:
        raise FeatureError("of another recipe than its name says")


class _RemoteClip(NamedTuple):
    """A clip in a distant shard."""

    shard: ShardName
    table: Table  # of the shard
    number: int  # of the clip in it

    @property
    def nbytes(self) -> int:
        """Bytes of its rows and validity masks."""
        count = int(self.table.rows[self.number])
        return sum(count * (2 * at.features + 1) for at in self.table.extents.values())


def _locate(tables: Mapping[ShardName, Table], ids: set[bytes]) -> list[_RemoteClip]:
    """Return where each clip is; of a clip in several shards, the first one counts."""
    found: dict[bytes, _RemoteClip] = {}
    for name, table in tables.items():
        for index, clip_id in enumerate(table.ids):
            if clip_id in ids:
                found.setdefault(clip_id, _RemoteClip(name, table, index))
    return list(found.values())


def _fetch_clips(
    remote: Remote, clips: list[_RemoteClip], meter: Meter
) -> Iterator[tuple[str, Features]]:
    """Yield single clips, fetching only their own bytes."""
    meter.grow(sum(clip.nbytes for clip in clips))
    for first in range(0, len(clips), CLIPS_AHEAD):
        some = clips[first : first + CLIPS_AHEAD]
        yield from at_once(lambda clip: _fetch_clip(remote, clip, meter), some, meter)


def _fetch_clip(remote: Remote, clip: _RemoteClip, meter: Meter) -> tuple[str, Features]:
    table, index = clip.table, clip.number
    clip_id = table.ids[index].decode()
    first, count = int(table.first_row[index]), int(table.rows[index])

    def read(start: int, nbytes: int) -> bytes:
        with remote.reported():
            content = remote.read(clip.shard, start, start + nbytes)
        meter.add(len(content))
        return content

    streams, valid = {}, {}
    for stream, at in table.extents.items():
        row_bytes = 2 * at.features
        rows = read(at.rows_at + first * row_bytes, count * row_bytes)
        streams[stream] = np.frombuffer(rows, "<f2").reshape(count, at.features)
        valid[stream] = np.frombuffer(read(at.valid_at + first, count), np.uint8)
        digest = clip_digest(table.header(index), streams[stream], valid[stream])
        if digest != table.digests[stream][index].tobytes() or valid[stream].max() > 1:
            raise FeatureError(
                f"{remote.name}/{clip.shard}: clip {clip_id} is damaged at the source. {SEND_AGAIN}"
            )
    source = table.source[index].tobytes()
    return clip_id, Features(
        streams,
        {stream: mask.view(np.bool_) for stream, mask in valid.items()},
        table.recipe.snippet_seconds,
        float(table.duration[index]),
        Flag(int(table.flags[index])),
        source.hex() if source.strip(b"\0") else "",
    )
