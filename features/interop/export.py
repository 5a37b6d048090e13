"""Features taken out of a store for other tools: .npy files, WebDataset, safetensors.

An export is complete or does not exist: it is written to a scratch folder and moved into place at
the end.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import tarfile
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from features.clip_features import Features
from features.format.shard_index import check_id
from features.joined_store import Joined
from features.recipe import FeatureError, WriteError
from features.store import Store
from features.writer import SHARD_BYTES

ENTRY_BYTES = 96  # at most, of a tensor in a safetensors header, beside its name
HEADER_BYTES = 128  # at most, of a safetensors header, beside its entries and metadata
T = TypeVar("T")


def export_npy(
    store: Store | Joined, folder: str | Path, ids: Collection[str] | None = None
) -> int:
    """Write one file for each clip and stream: ``FOLDER/STREAM/CLIP.npy``, (T, D) float16.

    Rows that are invalid are written as NaN, so that nobody takes them for features. A ``/`` in a
    clip's id makes a sub-folder.

    >>> export_npy(Store("surv-fight.store"), Path("npy"))      # doctest: +SKIP
    300
    >>> np.load("npy/video/fight/fi001.npy").shape              # doctest: +SKIP
    (9, 320)

    Args:
        store: what to export.
        folder: new or empty.
        ids: the clips to export; all if None.

    Returns:
        How many clips were exported.

    Raises:
        FeatureError: the folder has files, a clip is not in the store or damaged, or two clips
            would share a file; nothing is exported.
        WriteError: the folder cannot be written; nothing is exported.
    """
    folder = Path(folder)
    chosen = list(store if ids is None else dict.fromkeys(ids))
    missing = [clip_id for clip_id in chosen if clip_id not in store]
    if missing:
        raise FeatureError(
            f"the store lacks {len(missing)} of the clips to export, such as {missing[0]!r}"
        )
    with _moved_when_complete(folder) as scratch:
        for clip_id in chosen:
            check_id(clip_id)
            clip = store[clip_id]
            for name, rows in clip.streams.items():
                marked = np.where(clip.valid[name][:, None], rows, np.float16(np.nan))
                _save_npy(scratch / name / f"{clip_id}.npy", marked, clip_id)
    return len(chosen)


def _save_npy(path: Path, rows: NDArray[Any], clip_id: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            np.save(file, rows, allow_pickle=False)
    except (FileExistsError, NotADirectoryError) as error:
        # ids such as a/b and a//b, or, on some disks, A and a
        raise FeatureError(
            f"clip {clip_id}: another clip's file has its place; export them to two folders, "
            "or export to WebDataset or safetensors"
        ) from error


def export_webdataset(
    store: Store | Joined, folder: str | Path, shard_bytes: int = SHARD_BYTES
) -> int:
    """Write the clips as WebDataset shards: ``FOLDER/000000.tar``, ``FOLDER/000001.tar``, ...

    A clip is one sample. Its key is a running number, since WebDataset cuts names at their first
    dot and ids may have dots. Of each stream there are ``NUMBER.STREAM.npy``, (T, D) float16, and
    ``NUMBER.STREAM.valid.npy``, (T,) bool; ``NUMBER.json`` has the clip's id, duration, flags,
    snippet_seconds and source. WebDataset reads the names of streams in lower case. The same
    store gives the same bytes.

    >>> export_webdataset(Store("surv-fight.store"), Path("tars"))                # doctest: +SKIP
    300
    >>> sample = next(iter(webdataset.WebDataset("tars/000000.tar").decode()))    # doctest: +SKIP
    >>> sample["json"]["id"], sample["video.npy"].shape                           # doctest: +SKIP
    ('fight/fi001', (9, 320))

    Args:
        store: what to export.
        folder: new or empty.
        shard_bytes: most bytes of a shard; only a clip that is larger by itself gets a larger one.

    Returns:
        How many clips were exported.

    Raises:
        FeatureError: the folder has files, a clip is damaged, or two streams differ by the case of
            their letters only; nothing is exported.
        WriteError: the folder cannot be written; nothing is exported.
    """
    folder = Path(folder)
    names = list(store.recipe.streams)
    if len({name.lower() for name in names}) < len(names):
        raise FeatureError(
            f"WebDataset cannot tell apart streams that differ by case only ({', '.join(names)}); "
            "export to .npy or safetensors"
        )
    # webdataset's own ShardWriter cuts a shard only after it has grown too large
    samples = (_sample(number, clip_id, store[clip_id]) for number, clip_id in enumerate(store))
    sized = ((sample, sum(map(_tar_bytes, sample.values()))) for sample in samples)
    # two empty blocks are an archive's end, and it is padded to whole records
    records = shard_bytes // tarfile.RECORDSIZE
    most = records * tarfile.RECORDSIZE - 2 * tarfile.BLOCKSIZE
    with _moved_when_complete(folder) as scratch:
        for number, batch in enumerate(_batches(sized, most)):
            path = scratch / f"{number:06}.tar"
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
                for sample in batch:
                    for name, content in sample.items():
                        # as it stands, a TarInfo names no time, user or group
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
    return len(store)


def _sample(number: int, clip_id: str, clip: Features) -> dict[str, bytes]:
    """Return the files of one clip's sample."""
    about = {"id": clip_id, **_about(clip), "snippet_seconds": clip.snippet_seconds}
    files = {}
    for name, rows in clip.streams.items():
        files[f"{number:08}.{name}.npy"] = _npy_bytes(rows)
        files[f"{number:08}.{name}.valid.npy"] = _npy_bytes(clip.valid[name])
    files[f"{number:08}.json"] = json.dumps(about, ensure_ascii=False).encode()
    return files


def _npy_bytes(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _tar_bytes(content: bytes) -> int:
    blocks = 1 + math.ceil(len(content) / tarfile.BLOCKSIZE)
    return blocks * tarfile.BLOCKSIZE


def _about(clip: Features) -> dict[str, Any]:
    return {"duration": clip.duration, "flags": int(clip.flags), "source": clip.source}


def export_safetensors(
    store: Store | Joined, folder: str | Path, shard_bytes: int = SHARD_BYTES
) -> int:
    """Write the clips as ``FOLDER/000000.safetensors``, ``FOLDER/000001.safetensors``, ...

    A clip has two tensors for each stream: ``CLIP/STREAM``, (T, D) float16, and
    ``CLIP/STREAM.valid``, (T,) bool. The metadata of each file are two texts of JSON: ``recipe``,
    and ``clips``, clip id -> duration, flags and source of the clips in this file.

    >>> export_safetensors(Store("surv-fight.store"), Path("tensors"))    # doctest: +SKIP
    300
    >>> tensors = load_file("tensors/000000.safetensors")                 # doctest: +SKIP
    >>> tensors["fight/fi001/video"].shape                                # doctest: +SKIP
    (9, 320)

    Args:
        store: what to export.
        folder: new or empty.
        shard_bytes: most bytes of a file; only a clip that is larger by itself gets a larger one.

    Returns:
        How many clips were exported.

    Raises:
        FeatureError: the folder has files, or a clip is damaged; nothing is exported.
        WriteError: the folder cannot be written; nothing is exported.
    """
    folder = Path(folder)
    recipe = store.recipe.to_json()
    sized = (
        ((clip_id, clip), _safetensors_bytes(clip_id, clip))
        for clip_id, clip in ((clip_id, store[clip_id]) for clip_id in store)
    )
    most = shard_bytes - HEADER_BYTES - len(json.dumps(recipe))
    with _moved_when_complete(folder) as scratch:
        for number, batch in enumerate(_batches(sized, most)):
            tensors: dict[str, NDArray[Any]] = {}
            for clip_id, clip in batch:
                tensors |= _tensors(clip_id, clip)
            clips = {clip_id: _about(clip) for clip_id, clip in batch}
            metadata = {"recipe": recipe, "clips": json.dumps(clips, ensure_ascii=False)}
            save_file(tensors, scratch / f"{number:06}.safetensors", metadata)
    return len(store)


def _tensors(clip_id: str, clip: Features) -> dict[str, NDArray[Any]]:
    # no name occurs twice: names of streams have neither dots nor slashes
    rows = {f"{clip_id}/{name}": array for name, array in clip.streams.items()}
    valid = {f"{clip_id}/{name}.valid": array for name, array in clip.valid.items()}
    return rows | valid


def _safetensors_bytes(clip_id: str, clip: Features) -> int:
    """Return how many bytes a clip takes in a file, at most."""
    tensors = sum(
        array.nbytes + len(json.dumps(name)) + ENTRY_BYTES
        for name, array in _tensors(clip_id, clip).items()
    )
    # JSON inside a text of JSON: each quotation mark takes two bytes
    return tensors + len(json.dumps(json.dumps({clip_id: _about(clip)})))


def _batches(sized: Iterable[tuple[T, int]], most: int) -> Iterator[list[T]]:
    """Gather items, each given with its size, into lists of at most `most` or of one item."""
    batch: list[T] = []
    total = 0
    for item, size in sized:
        if batch and total + size > most:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


@contextmanager
def _moved_when_complete(folder: Path) -> Iterator[Path]:
    """Yield a scratch folder; its files move into `folder` once all of them are written."""
    scratch = folder / f".writing-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        existing = next(folder.iterdir(), None)
        if existing:
            raise FeatureError(
                f"{folder} has files already, such as {existing.name}; give another folder, "
                "one that is new or empty"
            )
        scratch.mkdir()
        yield scratch
        for path in sorted(scratch.iterdir()):
            os.replace(path, folder / path.name)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise WriteError(
            f"{folder}: cannot export there ({why}); nothing was exported: fix this and run the "
            "same command again"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
