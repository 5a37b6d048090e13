"""How fast is a feature store to read, beside the formats one would otherwise take?

Claimed: clips in random order come out of a store at 0.9 of the speed of a bare memory map or
better, and at least twice as fast as out of every other format here; the store takes at most 1 %
more space than the bare values.

Measured: the same clips, as long as those of the VAAR data set (20 to 480 snippets, drawn
uniformly) and with 640 video and 768 audio values a snippet in float16, are written in every
format. Reading means the same for all of them: the rows of a clip, or of 64 snippets of it, end in
writable memory, and nothing is done to them there. Everything is copied once, into buffers that are
allocated once and used again; where a library insists on an array of its own, that array is taken
as it is. Formats that keep the two streams apart deliver two arrays, (time, 640) and (time, 768),
which is what training takes; the others deliver one, (time, 1408), the cheaper way. In each round
every format makes the same pass before the next pass begins, so that a busy moment of the machine
hits all formats alike; the median over the rounds is reported. MB are 10^6 bytes of float16 values.

Writing counts until every file, and the folder, is flushed with fsync. Everything is then read from
the page cache, which has to hold all formats at once, and last from the disk, after the files have
been dropped from the cache.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median

import h5py
import numpy as np
import webdataset
import zarr
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from features import Features, Recipe, Store, pack

Rows = NDArray[np.float16]
Parts = tuple[Rows, ...]  # one array, or one for each stream

SEED = 0
SHORTEST, LONGEST = 20, 480  # snippets
STREAMS = {"video": 640, "audio": 768}
VIDEO, AUDIO = np.s_[:, : STREAMS["video"]], np.s_[:, STREAMS["video"] :]
WIDTH = sum(STREAMS.values())
CROP = 64  # snippets
CHUNK = 256  # rows
WHOLE = slice(None)
MB = 10**6
NOT_DROPPED = 0.8  # of the warm speed: few disks come near memory
MILLION = 1_000_000
LOOKUPS = 100_000

console = Console()


class Buffers:
    """Where the rows end: of both streams in one, or of each in its own."""

    def __init__(self) -> None:
        # ones, since zeros are not there before they are written to
        self.joined = np.ones((LONGEST, WIDTH), np.float16)
        self.video = np.ones((LONGEST, STREAMS["video"]), np.float16)
        self.audio = np.ones((LONGEST, STREAMS["audio"]), np.float16)


class Data:
    """The clips to be written.

    They are windows, each with a start of its own, on one long array: no two are the same bytes,
    and making them takes no time from writing.
    """

    def __init__(self, clips: int) -> None:
        rng = np.random.default_rng(SEED)
        self.rows = rng.standard_normal((clips + LONGEST, WIDTH), np.float32).astype(np.float16)
        self.video = self.rows[VIDEO].copy()
        self.audio = self.rows[AUDIO].copy()
        starts = rng.permutation(clips)
        lengths = rng.integers(SHORTEST, LONGEST, clips, endpoint=True)
        self.windows = {
            f"clip{number:06d}": slice(int(start), int(start + length))
            for number, (start, length) in enumerate(zip(starts, lengths, strict=True))
        }
        self.lengths = {clip: window.stop - window.start for clip, window in self.windows.items()}
        self.total = sum(self.lengths.values())
        self.nbytes = 2 * WIDTH * self.total

    def blocks(self, size: int) -> Iterator[tuple[int, Rows]]:
        """Yield the rows of all clips in blocks, for formats that write whole chunks best."""
        first, waiting = 0, np.empty((0, WIDTH), np.float16)
        for window in self.windows.values():
            waiting = np.concatenate([waiting, self.rows[window]])
            if len(waiting) >= size:
                yield first, waiting[:size]
                first, waiting = first + size, waiting[size:]
        yield first, waiting

    def index(self) -> dict[str, tuple[int, int]]:
        """Return the first and the last row of each clip, where all lie one behind the other."""
        ends = np.cumsum(list(self.lengths.values())).tolist()
        return dict(zip(self.windows, zip([0, *ends], ends, strict=False), strict=True))


class Format:
    """A way to keep the clips in a folder.

    Attributes:
        files: its folder; formats that read the same files share one.
        random: whether clips can be read in any order.
    """

    name: str
    files: str
    random = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, data: Data) -> None:
        raise NotImplementedError

    def open(self) -> None:
        """Get ready to read any clip by its id."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the files; mapped ones could not be dropped from the page cache."""
        for name in set(vars(self)) - {"folder"}:
            delattr(self, name)
        gc.collect()

    def read(self, clip: str, part: slice, out: Buffers) -> Parts:
        """Return the `part` of a clip: in `out`, or in an array that is writable as well."""
        raise NotImplementedError

    def scan(self, clips: Iterable[str], out: Buffers) -> Iterator[Parts]:
        """Read all clips in the order they were written in."""
        return (self.read(clip, WHOLE, out) for clip in clips)


class Raw(Format):
    """The bound: nothing is read faster than mapped memory."""

    name = "memory map (the bound)"
    files = "raw"

    def write(self, data: Data) -> None:
        with open(self.folder / "rows", "wb") as file:
            for window in data.windows.values():
                data.rows[window].tofile(file)
        write_index(self.folder, data)

    def open(self) -> None:
        mapped = np.memmap(self.folder / "rows", np.float16, "r").reshape(-1, WIDTH)
        self.rows = np.asarray(mapped)  # slices of a plain array are made faster
        self.index = read_index(self.folder)

    def read(self, clip: str, part: slice, out: Buffers) -> Parts:
        first, last = self.index[clip]
        rows = self.rows[first:last][part]
        delivered = out.joined[: len(rows)]
        delivered[:] = rows
        return (delivered,)


class Ours(Format):
    """Keeps the streams apart."""

    name = "feature store"
    files = "store"

    def write(self, data: Data) -> None:
        streams = {name: {"features": width} for name, width in STREAMS.items()}
        all_valid = np.ones(LONGEST, dtype=bool)

        def clips() -> Iterator[tuple[str, Features]]:
            for clip, window in data.windows.items():
                rows = {"video": data.video[window], "audio": data.audio[window]}
                valid = all_valid[: data.lengths[clip]]
                features = Features(rows, dict.fromkeys(rows, valid), 0.25, 0.25 * len(valid))
                yield clip, features

        pack(self.folder, clips(), Recipe(0.25, "fp32", streams))

    def open(self) -> None:
        self.store = Store(self.folder)

    def read(self, clip: str, part: slice, out: Buffers) -> Parts:
        features = self.store[clip]
        video, audio = features.video[part], features.audio[part]
        delivered = out.video[: len(video)], out.audio[: len(audio)]
        delivered[0][:], delivered[1][:] = video, audio
        return delivered


class Npy(Format):
    name = ".npy, np.load"
    files = "npy"

    def write(self, data: Data) -> None:
        for clip, window in data.windows.items():
            np.save(self.folder / f"{clip}.npy", data.rows[window])

    def open(self) -> None:
        self.paths = {entry.name[:-4]: entry.path for entry in os.scandir(self.folder)}

    def read(self, clip: str, part: slice, out: Buffers) -> Parts:
        rows: Rows = np.load(self.paths[clip])
        return (rows[part],)


class NpyByHand(Npy):
    """Does less than np.load: it allocates no array, and it reads no rows that are not wanted."""

    name = ".npy, read by hand"

    def read(self, clip: str, part: slice, out: Buffers) -> Parts:
        with open(self.paths[clip], "rb", buffering=0) as file:
            np.lib.format.read_magic(file)
            (length, _), _, _ = np.lib.format.read_array_header_1_0(file)
            first, last = within((0, length), part)
            file.seek(2 * WIDTH * first, os.SEEK_CUR)
            delivered = out.joined[: last - first]
            file.readinto(delivered.data)
            return (delivered,)


class Grouped(Format):
    """Keeps the streams apart."""

    name = "HDF5, group per clip"
    files = "grouped"

    def write(self, data: Data) -> None:
        with h5py.File(self.folder / "clips.h5", "w") as file:
            for clip, window in data.windows.items():
                file[f"{clip}/video"] = data.video[window]
                file[f"{clip}/audio"] = data.audio[window]

    def open(self) -> None:
        self.file = h5py.File(self.folder / "clips.h5", "r")

    def close(self) -> None:
        self.file.close()
        super().close()

    def read(self, clip: str, part: slice, out: Buffers) -> Parts:
        video, audio = self.file[f"{clip}/video"], self.file[f"{clip}/audio"]
        first, last = within((0, len(video)), part)
        delivered = out.video[: last - first], out.audio[: last - first]
        video.read_direct(delivered[0], np.s_[first:last])
        audio.read_direct(delivered[1], np.s_[first:last])
        return delivered


class Chunked(Format):
    name = "HDF5, chunked"
    files = "chunked"

    def write(self, data: Data) -> None:
        with h5py.File(self.folder / "clips.h5", "w") as file:
            shape = (data.total, WIDTH)
            rows = file.create_dataset("rows", shape, np.float16, chunks=(CHUNK, WIDTH))
            for first, block in data.blocks(16 * CHUNK):
                rows[first : first + len(block)] = block
        write_index(self.folder, data)

    def open(self) -> None:
        self.file = h5py.File(self.folder / "clips.h5", "r")
        self.rows = self.file["rows"]
        self.index = read_index(self.folder)

    def close(self) -> None:
        self.file.close()
        super().close()

    def read(self, clip: str, part: slice, out: Buffers) -> Parts:
        first, last = within(self.index[clip], part)
        rows: Rows = self.rows[first:last]
        return (rows,)


class Zarr(Format):
    name = "zarr"
    files = "zarr"

    def write(self, data: Data) -> None:
        rows = zarr.create_array(
            self.folder / "rows",
            shape=(data.total, WIDTH),
            chunks=(CHUNK, WIDTH),
            dtype=np.float16,
            compressors=None,
        )
        for first, block in data.blocks(16 * CHUNK):
            rows[first : first + len(block)] = block
        write_index(self.folder, data)

    def open(self) -> None:
        self.rows = zarr.open_array(self.folder / "rows", mode="r")
        self.index = read_index(self.folder)

    def read(self, clip: str, part: slice, out: Buffers) -> Parts:
        first, last = within(self.index[clip], part)
        return (np.asarray(self.rows[first:last]),)


class WebDataset(Format):
    """Streams tar files: made for reading in order, and for nothing else."""

    name = "WebDataset"
    files = "tars"
    random = False

    def write(self, data: Data) -> None:
        pattern = str(self.folder / "%06d.tar")
        with webdataset.ShardWriter(pattern, maxsize=256 * 2**20, verbose=0) as writer:
            for clip, window in data.windows.items():
                writer.write({"__key__": clip, "npy": data.rows[window]})

    def open(self) -> None:
        tars = sorted(map(str, self.folder.glob("*.tar")))
        self.clips = webdataset.WebDataset(tars, shardshuffle=False).decode().to_tuple("npy")

    def scan(self, clips: Iterable[str], out: Buffers) -> Iterator[Parts]:
        return iter(self.clips)


FORMATS: tuple[type[Format], ...] = (
    Raw,
    Ours,
    Npy,
    NpyByHand,
    Grouped,
    Chunked,
    Zarr,
    WebDataset,
)


def write_index(folder: Path, data: Data) -> None:
    (folder / "index.json").write_text(json.dumps(data.index()))


def read_index(folder: Path) -> dict[str, list[int]]:
    index: dict[str, list[int]] = json.loads((folder / "index.json").read_text())
    return index


def within(window: Sequence[int], part: slice) -> tuple[int, int]:
    """Return the rows that are the `part` of a window."""
    first, last = window
    start, stop, _ = part.indices(last - first)
    return first + start, first + stop


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def flush(folder: Path) -> None:
    for path in (*files(folder), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def drop(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    flush(folder)  # what is not yet on the disk cannot be dropped
    for path in files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class Pass:
    """Clips, or crops of them, in the order they are read in."""

    def __init__(self, data: Data, kind: str, seed: int) -> None:
        self.kind = kind
        draw = random.Random(seed)
        clips = list(data.windows)
        if kind != "in order":
            draw.shuffle(clips)
        self.reads = [(clip, WHOLE) for clip in clips]
        self.rows = data.total
        if kind == "random crops":
            clips = [clip for clip in clips if data.lengths[clip] >= CROP]
            starts = [draw.randint(0, data.lengths[clip] - CROP) for clip in clips]
            self.reads = [
                (clip, slice(start, start + CROP))
                for clip, start in zip(clips, starts, strict=True)
            ]
            self.rows = CROP * len(clips)

    def speed(self, form: Format, out: Buffers) -> float:
        """Return the MB/s at which `form` delivers them."""
        start = time.perf_counter()
        if self.kind == "in order":
            rows = sum(len(parts[0]) for parts in form.scan((c for c, _ in self.reads), out))
        else:
            rows = sum(len(form.read(clip, part, out)[0]) for clip, part in self.reads)
        seconds = time.perf_counter() - start
        assert rows == self.rows, f"{form.name}: {rows} rows, not {self.rows}"
        return 2 * WIDTH * rows / MB / seconds


def check(form: Format, data: Data, out: Buffers) -> None:
    """Make sure that a format gives back what was written."""
    for clip, parts in zip(data.windows, form.scan(data.windows, out), strict=True):
        rows = np.concatenate(parts, axis=1)
        assert np.array_equal(rows, data.rows[data.windows[clip]]), (form.name, clip)
        assert all(part.flags.writeable for part in parts), form.name
    for clip, part in Pass(data, "random crops", SEED).reads if form.random else []:
        rows = np.concatenate(form.read(clip, part, out), axis=1)
        assert np.array_equal(rows, data.rows[data.windows[clip]][part]), (form.name, clip, part)


def compare(folder: Path, clips: int, repeats: int) -> None:
    data = Data(clips)
    out = Buffers()
    forms: list[Format] = []
    console.print(f"{clips} clips, {data.nbytes / MB:.0f} MB of float16, {repeats} rounds\n")

    table = results(
        "written once, opened, read for the first time", "write", "open", "size on disk"
    )
    table.add_column("first pass", justify="right")
    sizes: dict[str, float] = {}
    for format_class in FORMATS:
        form = format_class(folder / format_class.files)
        write = "as above"
        if not form.folder.exists():
            form.folder.mkdir()
            os.sync()  # what others left to be written would count as well
            start = time.perf_counter()
            form.write(data)
            flush(form.folder)
            write = f"{data.nbytes / MB / (time.perf_counter() - start):.0f} MB/s"
        start = time.perf_counter()
        form.open()
        opened = time.perf_counter() - start
        first = Pass(data, "in order", SEED).speed(form, out)
        # in allocated blocks, as many small files take more than their bytes
        size = sum(512 * path.stat().st_blocks for path in files(form.folder)) / data.nbytes
        sizes[form.name] = size
        table.add_row(
            form.name,
            write,
            f"{1000 * opened:.1f} ms",
            f"{100 * (size - 1):+.2f} %",
            f"{first:.0f} MB/s",
        )
        check(form, data, out)
        forms.append(form)
    console.print(table)
    console.print(
        "The first pass is in order, from the page cache; in it the feature store\n"
        "holds each clip against its checksum. WebDataset opens nothing before it reads.\n"
    )

    kinds = ("in order", "random clips", "random crops")
    warm: dict[tuple[str, str], list[float]] = {}
    for turn in range(repeats):
        for kind in kinds:
            order = Pass(data, kind, SEED + turn)
            for form in forms:
                if form.random or kind == "in order":
                    speed = order.speed(form, out)
                    warm.setdefault((form.name, kind), []).append(speed)
    show("later passes, from the page cache: MB/s (of the bound)", forms, warm, kinds)
    console.print("WebDataset reads in order only; random reading is n/a.\n")

    cold: dict[tuple[str, str], list[float]] = {}
    for kind in kinds[1:]:
        order = Pass(data, kind, SEED)
        for form in forms:
            if form.random:
                form.close()
                drop(form.folder)
                form.open()
                cold[form.name, kind] = [order.speed(form, out)]
    show("one pass from the disk: MB/s (of the bound)", forms, cold, kinds[1:])
    console.print(
        "Each format was opened anew, so the feature store read and checked all of a\n"
        f"clip even where only {CROP} snippets of it were asked for. Opening is not counted."
    )
    for (name, kind), (speed,) in cold.items():
        if speed > NOT_DROPPED * median(warm[name, kind]):
            console.print(
                f"{name}, {kind}: as fast from the disk as from the page cache:\n"
                "it is not the disk that limits it, or dropping its pages did not work."
            )

    ours = median(warm[Ours.name, "random clips"])
    bound = ours / median(warm[Raw.name, "random clips"])
    others = {
        form.name: ours / median(warm[form.name, "random clips"])
        for form in forms
        if form.random and form.name not in (Raw.name, Ours.name)
    }
    console.print("\nGoals, for random clips from the page cache:")
    verdict(bound >= 0.9, f"at least 0.9 of the bound: {bound:.2f}")
    for name, factor in others.items():
        verdict(factor >= 2, f"at least 2 x {name}: {factor:.1f} x")
    verdict(sizes[Ours.name] <= 1.01, f"size within 1 %: {100 * (sizes[Ours.name] - 1):+.2f} %")


def results(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("format", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def show(
    title: str,
    forms: list[Format],
    speeds: dict[tuple[str, str], list[float]],
    kinds: tuple[str, ...],
) -> None:
    table = results(title, *kinds)
    for form in forms:
        cells = []
        for kind in kinds:
            if (form.name, kind) in speeds:
                speed = median(speeds[form.name, kind])
                share = speed / median(speeds[Raw.name, kind])
                cells.append(f"{speed:.0f} ({share:.2f})")
            else:
                cells.append("n/a")
        table.add_row(form.name, *cells)
    console.print(table)


def verdict(met: bool, text: str) -> None:
    console.print(f"  {'met   ' if met else 'MISSED'}  {text}")


def million(folder: Path) -> None:
    """Build a store of a million tiny clips, open it and look clips up."""
    rows = np.random.default_rng(SEED).standard_normal((MILLION + 2, 5)).astype(np.float16)
    valid = dict.fromkeys(STREAMS, np.ones(2, dtype=bool))
    recipe = Recipe(0.25, "fp32", {"video": {"features": 3}, "audio": {"features": 2}})

    def clips() -> Iterator[tuple[str, Features]]:
        for number in range(MILLION):
            two = rows[number : number + 2]
            streams = {"video": two[:, :3], "audio": two[:, 3:]}
            yield f"clip{number:06d}", Features(streams, valid, 0.25, 0.5)

    start = time.perf_counter()
    shards = pack(folder, clips(), recipe, shard_bytes=5 * 2**20)
    console.print(
        f"{MILLION} clips written into {len(shards)} shards: {time.perf_counter() - start:.1f} s"
    )
    start = time.perf_counter()
    store = Store(folder)
    console.print(f"opened, from the page cache: {time.perf_counter() - start:.2f} s")
    drawn = random.Random(SEED).sample(range(MILLION), LOOKUPS)
    chosen = [f"clip{number:06d}" for number in drawn]
    for what in ("for the first time, checked", "again"):
        start = time.perf_counter()
        for clip in chosen:
            store[clip]
        each = 1e6 * (time.perf_counter() - start) / LOOKUPS
        console.print(f"{LOOKUPS} random clips looked up {what}: {each:.1f} µs each")
    for number, clip in zip(drawn, chosen, strict=True):
        assert np.array_equal(store[clip].video, rows[number : number + 2, :3]), clip


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the feature store with other formats.")
    parser.add_argument("--clips", type=int, default=3000, help="how many clips to write")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    parser.add_argument("--repeats", type=int, default=5, help="how many rounds of reading")
    parser.add_argument(
        "--million", action="store_true", help="only open a store of a million tiny clips"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, ignore_cleanup_errors=True) as folder:
        if arguments.million:
            million(Path(folder))
        else:
            compare(Path(folder), arguments.clips, arguments.repeats)


if __name__ == "__main__":
    main()
