"""Features that other people extracted, brought into a store from folders of .npy files.

The files come from strangers: nothing that a header claims is believed before the size of the file
bears it out, and nothing is ever unpickled.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.clip_features import Features
from features.format.shard_index import check_id
from features.joined_store import merge_streams
from features.recipe import STREAM_NAME, FeatureError, Recipe
from features.resample import RESAMPLED, resampled
from features.store import Store, create
from features.writer import pack, recover

PLACEHOLDERS = {"{clip}": "(?P<clip>.+)", "{crop}": "(?P<crop>[0-9]+)"}
EXAMPLE = "i3d/RGB/{clip}__{crop}.npy"
CropFiles = dict[str, Path]  # number of a crop ("" if the stream has no crops) -> its file


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
    store: str | Path,
    streams: Mapping[str, str],
    snippet_seconds: float,
    about: str,
    progress: Callable[[int, int], None] = lambda *_: None,
    resample: Mapping[str, float] | None = None,
) -> ImportSummary:
    """Bring features from folders of .npy files into a store.

    The files are found by patterns: ``{clip}`` stands for the clip's id, sub-folders included, and
    ``{crop}`` for the number of a crop. A file is (T, D) of floats. The crops of a clip are put
    side by side: their stream has rows of crops x D values, crop after crop in the order of their
    numbers. Rows with a value that is not finite, or too large for float16, are flagged invalid.
    Where the streams of a clip differ in length, the shorter are flagged invalid at the end; a
    stream that a clip lacks is flagged invalid throughout. What most clips have decides the number
    of crops and of values; clips that differ are left out, like those with a bad file.

    Clips that are in the store already are left alone, so that the same call resumes after an
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
        snippet_seconds: how many seconds one row stands for, in every stream of the store.
        about: one line on what these features are. It is part of the recipe, so that unlike
            features are never mixed in one store.
        progress: called with (clips done, clips in all).
        resample: stream name -> how many seconds a row of its files stands for, where these are
            others; they are averaged over the store's snippets, see `resampled`.

    Raises:
        FeatureError: a pattern cannot be used or fits no file, no file of a stream can be read,
            another argument makes no sense, or the store has another recipe.
        WriteError: the store cannot be written.
    """
    store = Path(store)
    about = " ".join(about.split())
    resample = resample or {}
    _check_request(streams, snippet_seconds, about)
    for name, seconds in resample.items():
        _check_request([name], seconds, about)
        if name not in streams:
            raise FeatureError(f"no stream {name} to resample; there are {', '.join(streams)}")
    patterns = {name: _Pattern.parse(text) for name, text in streams.items()}
    files = {name: pattern.find() for name, pattern in patterns.items()}
    layouts = {name: _usual_layout(name, found) for name, found in files.items()}
    recipe = _recipe(layouts, streams, snippet_seconds, about, resample)
    create(store, recipe)
    recover(store)
    existing, clips = Store(store), sorted(set().union(*files.values()))
    summary = ImportSummary([], [], {})

    def new_clips() -> Iterator[tuple[str, Features]]:
        for done, clip_id in enumerate(clips):
            progress(done, len(clips))
            if clip_id in existing:
                summary.already.append(clip_id)
                continue
            try:
                check_id(clip_id)
                parts = [
                    _read_stream(
                        name,
                        files[name].get(clip_id, {}),
                        layout,
                        resample.get(name, snippet_seconds),
                        snippet_seconds,
                    )
                    for name, layout in layouts.items()
                ]
            except FeatureError as error:
                summary.failed[clip_id] = str(error)
                continue
            yield clip_id, merge_streams(clip_id, parts)
            summary.imported.append(clip_id)
        progress(len(clips), len(clips))

    pack(store, new_clips(), recipe)
    return summary


def _check_request(streams: Collection[str], snippet_seconds: float, about: str) -> None:
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

    def find(self) -> dict[str, CropFiles]:
        """Return clip id -> its files.

        Raises:
            FeatureError: no file fits.
        """
        found: dict[str, CropFiles] = {}
        unmatched = ""
        for name in _npy_files(Path(self.folder)):
            match = self.rest.fullmatch(name)
            if match:
                # what is not UTF-8 gets backslashes, by which the id is refused later
                clip_id = os.fsencode(match["clip"]).decode(errors="backslashreplace")
                crop = match.groupdict().get("crop", "")
                found.setdefault(clip_id, {})[crop] = Path(self.folder, name)
            else:
                unmatched = unmatched or name
        if found:
            return found
        folder = Path(self.folder).absolute()
        if unmatched:
            reason = (
                f"{folder} has .npy files, but such as {unmatched!r}; write a pattern that fits it"
            )
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


class _Crops(NamedTuple):
    """The files of one clip and stream, opened."""

    layout: _Layout
    arrays: list[NDArray[Any]]  # of each crop, (T, D)


def _usual_layout(name: str, clips: Mapping[str, CropFiles]) -> _Layout:
    """Return the layout that most clips of a stream have; the larger one if two are as many.

    Raises:
        FeatureError: no clip has files that can be read.
    """
    counts: Counter[_Layout] = Counter()
    reason = ""
    for files in clips.values():
        try:
            counts[_open_crops(files).layout] += 1
        except FeatureError as error:
            reason = reason or str(error)
    if not counts:
        raise FeatureError(f"no file of stream {name} can be used, the first because of: {reason}")
    return max(counts, key=lambda layout: (counts[layout], layout.width, layout))


def _recipe(
    layouts: Mapping[str, _Layout],
    streams: Mapping[str, str],
    snippet_seconds: float,
    about: str,
    resample: Mapping[str, float],
) -> Recipe:
    settings: dict[str, dict[str, Any]] = {}
    for name, layout in layouts.items():
        crops = {"crops": len(layout.crops)} if len(layout.crops) > 1 else {}
        settings[name] = {"features": layout.width, **crops, "imported": about}
        if resample.get(name, snippet_seconds) != snippet_seconds:
            settings[name][RESAMPLED] = float(resample[name])
    source = {name: {"weights": "imported", "name": text} for name, text in streams.items()}
    return Recipe(float(snippet_seconds), "imported", settings, source)


def _read_stream(
    name: str, files: CropFiles, usual: _Layout, row_seconds: float, snippet_seconds: float
) -> Features:
    """Return one stream of a clip on the store's time grid; of no snippets if there are no files.

    Raises:
        FeatureError: a file cannot be used, or the layout is not the usual one.
    """
    layout, arrays = _open_crops(files) if files else _Crops(usual, [])
    if layout != usual:
        raise FeatureError(f"{min(files.values())}: {layout}; most clips have {usual}")
    length = len(arrays[0]) if arrays else 0
    rows = np.zeros((length, usual.width), np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        for at, array in zip(range(0, usual.width, usual.features), arrays, strict=False):
            rows[:, at : at + usual.features] = array
    valid: NDArray[np.bool_] = np.all(np.isfinite(rows), axis=1)
    rows[~valid] = 0
    clip = Features({name: rows}, {name: valid}, row_seconds, length * row_seconds)
    return clip if row_seconds == snippet_seconds else resampled(clip, snippet_seconds)


def _open_crops(files: CropFiles) -> _Crops:
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
    return _Crops(_Layout(tuple(crops), arrays[0].shape[1]), arrays)


def _open_npy(path: Path) -> NDArray[Any]:
    """Map a (T, D) array of floats.

    Raises:
        FeatureError: it is not one; the message names the file.
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
