"""Features taken out of a store for other tools, and other people's features brought in.

An export is whole or not there at all: it is written to a scratch folder and moved into place at
the end. An import reads files of strangers, so nothing a header claims is believed before the size
of the file bears it out, and nothing is ever unpickled.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import tarfile
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from features.clip_features import Features
from features.format.shard_index import check_id
from features.joined_store import Joined, merge_streams
from features.recipe import STREAM_NAME, FeatureError, Recipe, WriteError
from features.store import Store, create
from features.writer import SHARD_BYTES, pack, recover

PLACEHOLDERS = {"{clip}": "(?P<clip>.+)", "{crop}": "(?P<crop>[0-9]+)"}
EXAMPLE = "i3d/RGB/{clip}__{crop}.npy"
ENTRY_BYTES = 96  # at most, of a tensor in a safetensors header, beside its name
HEADER_BYTES = 128  # at most, of a safetensors header, beside its entries and metadata
T = TypeVar("T")


def export_npy(store: Store | Joined, folder: Path, ids: Collection[str] | None = None) -> int:
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
    chosen = list(store if ids is None else dict.fromkeys(ids))
    missing = [clip_id for clip_id in chosen if clip_id not in store]
    if missing:
        raise FeatureError(
            f"the store lacks {len(missing)} of the clips to export, such as {missing[0]!r}"
        )
    with _filled(folder) as scratch:
        for clip_id in chosen:
            check_id(clip_id)
            clip = store[clip_id]
            for name, rows in clip.streams.items():
                told = np.where(clip.valid[name][:, None], rows, np.float16(np.nan))
                _save_npy(scratch / name / f"{clip_id}.npy", told, clip_id)
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


def export_webdataset(store: Store | Joined, folder: Path, shard_bytes: int = SHARD_BYTES) -> int:
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
    names = list(store.recipe.streams)
    if len({name.lower() for name in names}) < len(names):
        raise FeatureError(
            f"WebDataset cannot tell apart streams that differ by case only ({', '.join(names)}); "
            "export to .npy or safetensors"
        )
    samples = (_sample(number, clip_id, store[clip_id]) for number, clip_id in enumerate(store))
    sized = ((sample, sum(map(_tar_bytes, sample.values()))) for sample in samples)
    most = shard_bytes - tarfile.RECORDSIZE  # to which every archive is filled up at its end
    with _filled(folder) as scratch:
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


def export_safetensors(store: Store | Joined, folder: Path, shard_bytes: int = SHARD_BYTES) -> int:
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
    recipe = store.recipe.to_json()
    sized = (
        ((clip_id, clip), _safetensors_bytes(clip_id, clip))
        for clip_id, clip in ((clip_id, store[clip_id]) for clip_id in store)
    )
    most = shard_bytes - HEADER_BYTES - len(json.dumps(recipe))
    with _filled(folder) as scratch:
        for number, batch in enumerate(_batches(sized, most)):
            tensors: dict[str, NDArray[Any]] = {}
            for clip_id, clip in batch:
                tensors |= _tensors(clip_id, clip)
            clips = {clip_id: _about(clip) for clip_id, clip in batch}
            metadata = {"recipe": recipe, "clips": json.dumps(clips, ensure_ascii=False)}
            save_file(tensors, scratch / f"{number:06}.safetensors", metadata)
    return len(store)


def _tensors(clip_id: str, clip: Features) -> dict[str, NDArray[Any]]:
    # no name is met twice: names of streams have neither dots nor slashes
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
def _filled(folder: Path) -> Iterator[Path]:
    """Give a scratch folder, whose files move into `folder` once all of them are written."""
    scratch = folder / f".writing-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = next(folder.iterdir(), None)
        if there:
            raise FeatureError(
                f"{folder} has files already, such as {there.name}; give another folder, one that "
                "is new or empty"
            )
        scratch.mkdir()
        yield scratch
        for path in sorted(scratch.iterdir()):
            os.replace(path, folder / path.name)
    except (OSError, SafetensorError) as error:
        raise WriteError(
            f"{folder}: cannot export there ({error}); nothing was exported: mend this and run the "
            "same command again"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class ImportSummary(NamedTuple):
    """What an import did.

    Attributes:
        imported: clips that are new in the store.
        already: clips that were in it before; their files were not compared.
        failed: clip id -> why it was left out.
    """

    imported: list[str]
    already: list[str]
    failed: dict[str, str]


def import_npy(
    store: Path,
    streams: Mapping[str, str],
    snippet_seconds: float,
    about: str,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> ImportSummary:
    """Bring features from folders of .npy files into a store.

    The files are found by patterns: ``{clip}`` stands for the clip's id, sub-folders included, and
    ``{crop}`` for the number of a crop. A file is (T, D) of floats. The crops of a clip are put
    side by side: their stream has rows of crops x D values, crop after crop in the order of their
    numbers. Rows with a value that is not finite, or too large for float16, are flagged invalid.
    Where the streams of a clip differ in length, the shorter are flagged invalid at the end; a
    stream that a clip lacks is flagged invalid throughout. What most clips have decides the number
    of crops and of values; clips that differ are left out, like those with a bad file.

    Clips that are in the store already are left alone, so that the same call goes on after an
    interruption.

    >>> import_npy(                                                             # doctest: +SKIP
    ...     Path("xd.store"),
    ...     {"video": "i3d/RGB/{clip}__{crop}.npy", "audio": "vggish/{clip}__vggish.npy"},
    ...     16 / 24,
    ...     "I3D RGB and VGGish of XD-Violence, Wu et al. 2020",
    ... ).failed
    {}

    Args:
        store: folder of the store, made if absent.
        streams: stream name -> the pattern of its files, a relative or absolute path.
        snippet_seconds: how many seconds one row stands for, in every stream.
        about: one line on what these features are. It is part of the recipe, so that unlike
            features are never mixed in one store.
        progress: called with (clips done, clips in all).

    Raises:
        FeatureError: a pattern cannot be used or fits no file, no file of a stream can be read,
            another argument makes no sense, or the store has another recipe.
        WriteError: the store cannot be written.
    """
    about = " ".join(about.split())
    _check_request(streams, snippet_seconds, about)
    patterns = {name: _Pattern.parse(text) for name, text in streams.items()}
    files = {name: pattern.find() for name, pattern in patterns.items()}
    layouts = {name: _usual_layout(name, found) for name, found in files.items()}
    recipe = _recipe(layouts, streams, snippet_seconds, about)
    create(store, recipe)
    recover(store)
    held, clips = Store(store), sorted(set().union(*files.values()))
    summary = ImportSummary([], [], {})

    def fresh() -> Iterator[tuple[str, Features]]:
        for done, clip_id in enumerate(clips):
            progress(done, len(clips))
            if clip_id in held:
                summary.already.append(clip_id)
                continue
            try:
                check_id(clip_id)
                parts = [
                    _read_stream(name, files[name].get(clip_id, {}), layout, snippet_seconds)
                    for name, layout in layouts.items()
                ]
            except FeatureError as error:
                summary.failed[clip_id] = str(error)
                continue
            yield clip_id, merge_streams(clip_id, parts)
            summary.imported.append(clip_id)
        progress(len(clips), len(clips))

    pack(store, fresh(), recipe)
    return summary


def _check_request(streams: Mapping[str, str], snippet_seconds: float, about: str) -> None:
    if not streams:
        raise FeatureError("nothing to import; give a stream and the pattern of its files")
    for name in streams:
        if not STREAM_NAME.fullmatch(name):
            raise FeatureError(
                f"{name!r} cannot name a stream; use letters, digits, - and _ (64 at most), such "
                "as 'video'"
            )
    if not (math.isfinite(snippet_seconds) and snippet_seconds > 0):
        raise FeatureError(
            f"rows of {snippet_seconds} seconds: give how long one row stands for, such as 0.64 "
            "for 16 frames at 25 a second"
        )
    if not about:
        raise FeatureError(
            "say in one line what these features are, such as 'I3D RGB and VGGish of XD-Violence, "
            "Wu et al. 2020': it keeps unlike features apart"
        )


class _Pattern(NamedTuple):
    """Where the files of a stream lie.

    Attributes:
        text: as the user gave it.
        folder: the part before the first placeholder that names a folder; empty if there is none.
        rest: what paths below the folder look like.
    """

    text: str
    folder: str
    rest: re.Pattern[str]

    @classmethod
    def parse(cls, text: str) -> _Pattern:
        """Read a pattern such as ``i3d/RGB/{clip}__{crop}.npy``."""
        problem = ""
        if text.count("{clip}") != 1:
            problem = "it needs {clip} exactly once"
        elif text.count("{crop}") > 1:
            problem = "it may have {crop} only once"
        elif "{clip}{crop}" in text or "{crop}{clip}" in text:
            problem = "something must stand between {clip} and {crop}, or nothing tells them apart"
        elif not text.endswith(".npy"):
            problem = "it must end in .npy"
        if problem:
            raise FeatureError(f"pattern {text}: {problem}; a good one is {EXAMPLE}")
        first = min(text.find(name) for name in PLACEHOLDERS if name in text)
        folder, start = os.path.split(text[:first])
        parts = re.split(r"(\{clip\}|\{crop\})", start + text[first:])
        rest = "".join(PLACEHOLDERS.get(part, re.escape(part)) for part in parts)
        return cls(text, folder, re.compile(rest, re.DOTALL))

    def find(self) -> dict[str, dict[str, Path]]:
        """Return clip id -> number of the crop, empty if there are no crops -> file.

        Raises:
            FeatureError: there are none.
        """
        found: dict[str, dict[str, Path]] = {}
        unfit = ""
        for name in _npy_files(Path(self.folder)):
            match = self.rest.fullmatch(name)
            if match:
                # what is no UTF-8 gets backslashes, by which the id is refused later
                clip_id = os.fsencode(match["clip"]).decode(errors="backslashreplace")
                crop = match.groupdict().get("crop", "")
                found.setdefault(clip_id, {})[crop] = Path(self.folder, name)
            else:
                unfit = unfit or name
        if found:
            return found
        folder = Path(self.folder).absolute()
        if unfit:
            reason = f"{folder} has .npy files, but such as {unfit!r}; write a pattern that fits it"
        elif folder.is_dir():
            reason = f"{folder} has no .npy files"
        else:
            reason = f"{folder} is no folder"
        raise FeatureError(f"no file fits the pattern {self.text}: {reason}")


def _npy_files(folder: Path) -> Iterator[str]:
    """Yield the .npy files below a folder, as paths from there, in order."""
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".npy"):
                yield os.path.relpath(os.path.join(where, name), folder)


class _Layout(NamedTuple):
    """How the files of one clip and stream are laid out."""

    crops: tuple[str, ...]  # their numbers, in order
    features: int  # values in a row of one crop

    @property
    def width(self) -> int:
        return len(self.crops) * self.features

    def __str__(self) -> str:
        values = f"rows of {self.features} values"
        return f"{values} in crops {', '.join(self.crops)}" if any(self.crops) else values


def _usual_layout(name: str, clips: Mapping[str, Mapping[str, Path]]) -> _Layout:
    """Return the layout that most clips of a stream have; the larger one if two are as many.

    Raises:
        FeatureError: no clip has files that can be read.
    """
    counts: Counter[_Layout] = Counter()
    reason = ""
    for files in clips.values():
        try:
            counts[_open_crops(files)[0]] += 1
        except FeatureError as error:
            reason = reason or str(error)
    if not counts:
        raise FeatureError(f"no file of stream {name} can be used, the first because of: {reason}")
    return max(counts, key=lambda layout: (counts[layout], layout.width, layout))


def _recipe(
    layouts: Mapping[str, _Layout], streams: Mapping[str, str], snippet_seconds: float, about: str
) -> Recipe:
    settings: dict[str, dict[str, Any]] = {}
    for name, layout in layouts.items():
        crops = {"crops": len(layout.crops)} if len(layout.crops) > 1 else {}
        settings[name] = {"features": layout.width, **crops, "imported": about}
    source = {name: {"weights": "imported", "name": text} for name, text in streams.items()}
    return Recipe(float(snippet_seconds), "imported", settings, source)


def _read_stream(
    name: str, files: Mapping[str, Path], usual: _Layout, snippet_seconds: float
) -> Features:
    """Return one stream of a clip; of no snippets if there are no files.

    Raises:
        FeatureError: a file cannot be used, or the layout is not the usual one.
    """
    layout, arrays = _open_crops(files) if files else (usual, [])
    if layout != usual:
        raise FeatureError(f"{min(files.values())}: {layout}; most clips have {usual}")
    length = len(arrays[0]) if arrays else 0
    rows = np.zeros((length, usual.width), np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        for at, array in zip(range(0, usual.width, usual.features), arrays, strict=False):
            rows[:, at : at + usual.features] = array
    valid: NDArray[np.bool_] = np.all(np.isfinite(rows), axis=1)
    rows[~valid] = 0
    return Features({name: rows}, {name: valid}, snippet_seconds, length * snippet_seconds)


def _open_crops(files: Mapping[str, Path]) -> tuple[_Layout, list[NDArray[Any]]]:
    """Map the files of one clip and stream, in the order of the crops' numbers.

    Raises:
        FeatureError: one cannot be used, or they differ in shape; the message names it.
    """
    crops = sorted(files, key=lambda crop: (int(crop or 0), crop))
    arrays = [_open_npy(files[crop]) for crop in crops]
    for crop, array in zip(crops, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise FeatureError(
                f"{files[crop]}: shape {array.shape}; crop {crops[0]} of the same clip has "
                f"{arrays[0].shape}"
            )
    return _Layout(tuple(crops), arrays[0].shape[1]), arrays


def _open_npy(path: Path) -> NDArray[Any]:
    """Map a (T, D) array of floats.

    Raises:
        FeatureError: it is none; the message names the file.
    """
    try:
        if not path.is_file():  # a pipe would never end
            raise FeatureError("not a file")
        # unlike np.load, this can unpickle nothing and does not advise to allow it
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # whatever numpy finds in a damaged or hostile file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FeatureError(f"{path}: not a readable .npy file ({reason}); copy it again") from error
    if array.dtype.kind != "f":
        raise FeatureError(f"{path}: holds {array.dtype}, not floats")
    if array.ndim != 2 or 0 in array.shape:
        raise FeatureError(f"{path}: shape {array.shape}; expected (rows, values)")
    stated, size = array.offset + array.nbytes, path.stat().st_size
    if stated != size:
        raise FeatureError(f"{path}: {size} bytes where its header says {stated}; copy it again")
    return array
