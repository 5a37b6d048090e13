"""Shards from strangers: refused with a reason or read right, and nothing outside is touched.

A forged shard is opened in a process of its own with little memory, so that a crash, a hang or an
absurd allocation of HDF5 is a failed test and not the end of all of them.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import resource
import shutil
import sys
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from memory import resident
from small_stores import RECIPE, SIZES, clip, fill, same

from features import FeatureError, Features, Flag, Recipe, Shard, Store, compact, verify
from features.format.shard_index import COLUMNS, clip_digest, clip_header, tables_checksum
from features.format.shard_name import file_hash

pytestmark = pytest.mark.slow

CASES, SOAK_CASES = 2000, 100_000  # each has a seed of its own
BATCH = 250  # cases in one process
PATIENCE = 30.0  # seconds without a sign of life, after which a process hangs
ADDRESS_SPACE = 4 * 2**30  # bytes that a process may ask for
LITTLE = 10 * 2**20  # bytes that opening a forged shard may take: they are of a few KB
CLIPS = {f"clip-{number}": clip(2 + number % 3, number) for number in range(64)}
LONGEST_HEADER = 800  # bytes of what one of HDF5's checksums guards
SOUND = clip(3, 99)  # of another shard in the store, which must stay readable
Change = Callable[[h5py.File], object]

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["features", "small"])


def in_child(work: Callable[..., None], *args: Any) -> Iterator[Any]:
    """Yield what `work` sends from another process; its crash or hang fails the test."""
    receiving, sending = SERVER.Pipe(duplex=False)
    child = SERVER.Process(target=in_limits, args=(sending, work, *args))
    child.start()
    sending.close()
    last = None
    try:
        while receiving.poll(PATIENCE):
            last = receiving.recv()
            if isinstance(last, Exception):
                raise last
            yield last
        pytest.fail(f"it hangs; its last word was {last}")
    except EOFError:
        child.join()
        if child.exitcode:
            pytest.fail(f"it ended with {child.exitcode}; its last word was {last}")
    finally:
        child.kill()
        child.join()


def in_limits(sending: Connection, work: Callable[..., None], *args: Any) -> None:
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    try:
        work(sending, *args)
    except Exception:
        sending.send(AssertionError(traceback.format_exc()))


def jenkins(data: bytes | bytearray) -> int:
    """Return Bob Jenkins' lookup3, by which HDF5 guards its headers."""

    def turned(value: int, by: int) -> int:
        return value << by & 0xFFFFFFFF | value >> 32 - by

    words = np.frombuffer(bytes(data) + bytes(-len(data) % 12), "<u4").tolist()
    state = [(0xDEADBEEF + len(data)) & 0xFFFFFFFF] * 3
    for start in range(0, len(words), 3):
        for place in range(3):
            state[place] = (state[place] + words[start + place]) & 0xFFFFFFFF
        if start + 3 < len(words):
            for step, by in enumerate((4, 6, 8, 16, 19, 4)):
                x, y, z = step % 3, (step + 1) % 3, (step + 2) % 3
                state[x] = (state[x] - state[z]) & 0xFFFFFFFF ^ turned(state[z], by)
                state[z] = (state[z] + state[y]) & 0xFFFFFFFF
    for step, by in enumerate((14, 11, 25, 16, 4, 14, 24)):
        x, y = (step + 2) % 3, (step + 1) % 3
        state[x] = (state[x] ^ state[y]) - turned(state[y], by) & 0xFFFFFFFF
    return state[2]


def guarded_end(content: bytes | bytearray, start: int) -> int:
    """Return where the header ends that begins at `start`, by its checksum; 0 if it has none."""
    for end in range(start + 4, min(start + LONGEST_HEADER, len(content) - 3)):
        if jenkins(content[start:end]) == int.from_bytes(content[end : end + 4], "little"):
            return end
    return 0


# Forged shards: h5py changes one thing in a real one


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("real")
    fill(path, CLIPS)
    (shard,) = path.glob("*.h5")
    return shard


@pytest.fixture
def store(tmp_path: Path) -> Path:
    fill(tmp_path / "store", {"sound": SOUND})
    return tmp_path / "store"


def forge(store: Path, real: Path, change: Change, reseal: bool = False) -> Path:
    """Put a changed copy of the real shard into the store.

    Args:
        store: the store's folder.
        real: the shard to copy.
        change: what is done to it.
        reseal: make its checksums right again, so that they are not what gives it away.
    """
    copy = store / f"{RECIPE.fingerprint}-forged"
    shutil.copyfile(real, copy)
    with h5py.File(copy, "r+", libver=("v108", "v110")) as file:
        change(file)
        if reseal:
            seal(file)
    return copy.rename(store / f"{RECIPE.fingerprint}-{file_hash(copy)}.h5")


def seal(file: h5py.File) -> None:
    """Make the digests and the checksum of the tables right again."""
    recipe = file.attrs["recipe"].decode()
    tables = {name: file[f"clips/{name}"][()] for name in ("id", *COLUMNS, "source")}
    clips = list(zip(*tables.values(), strict=True))
    for stream in SIZES:
        group = file["streams"][stream]
        rows, valid = group["rows"][()], group["valid"][()]
        digests = [
            clip_digest(
                clip_header(clip_id, duration, flags, source.tobytes()),
                rows[first:][:count],
                valid[first:][:count],
            )
            for clip_id, first, count, duration, flags, source in clips
        ]
        tables[stream] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
        group["digest"][...] = tables[stream]
    write_text(file, "tables", tables_checksum(recipe, tables.values()))


def write_text(file: h5py.File, name: str, text: str) -> None:
    file.attrs.create(name, text, dtype=h5py.string_dtype("utf-8", len(text.encode())))


def try_to_open(sending: Connection, path: Path) -> None:
    """Tell why a shard is refused, and how many bytes that took."""
    before = resident()
    tracemalloc.start()
    try:
        Shard(path)
        reason = ""
    except FeatureError as error:
        reason = str(error)
    allocated = tracemalloc.get_traced_memory()[1]
    sending.send((reason, max(allocated, resident() - before)))


def assert_refused(store: Path, hostile: Path, match: str) -> None:
    ((reason, taken),) = in_child(try_to_open, hostile)
    assert re.search(match, reason), reason
    assert reason.startswith(f"{hostile}: ")
    assert taken < LITTLE
    opened = Store(store)
    assert opened.unreadable == {hostile: reason}
    assert same(opened["sound"], SOUND)
    assert list(opened) == ["sound"]


def remake(name: str, **options: Any) -> Change:
    """Write an array anew, with other options of h5py than its own."""

    def change(file: h5py.File) -> None:
        given = options if "shape" in options else {"data": file[name][()], **options}
        del file[name]
        file.create_dataset(name, **given)

    return change


def link(name: str, target: Any) -> Change:
    """Replace something by a link; `target` may be made from the file."""

    def change(file: h5py.File) -> None:
        to = target(file) if callable(target) else target
        del file[name]
        file[name] = to

    return change


def attribute(name: str, value: Any, dtype: Any = None) -> Change:
    return lambda file: file.attrs.create(name, value, dtype=dtype)


def pipe(file: h5py.File) -> str:
    """Return a path outside the store; whoever opens it waits for ever."""
    path = str(Path(file.filename).parents[1] / "outside")
    os.mkfifo(path)
    return path


def elsewhere(file: h5py.File) -> None:
    """Let the rows lie in another file."""
    shape, outside = file["streams/video/rows"].shape, pipe(file)
    del file["streams/video/rows"]
    external = [(outside, 0, 2 * int(np.prod(shape)))]
    file.create_dataset("streams/video/rows", shape, "<f2", external=external)


def virtual(file: h5py.File) -> None:
    """Let the rows be put together from as many rows as another file happens to have."""
    shape, outside = file["streams/video/rows"].shape, pipe(file)
    del file["streams/video/rows"]
    endless = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED, shape[1]))
    endless.select_hyperslab((0, 0), (1, 1), (1, 1), (h5py.h5s.UNLIMITED, shape[1]))
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_virtual(endless, outside.encode(), b"rows", endless)
    parent = file["streams/video"].id
    h5py.h5d.create(parent, b"rows", h5py.h5t.IEEE_F16LE, endless, settings)


def compact_layout(file: h5py.File) -> None:
    ids = file["clips/id"][()]
    del file["clips/id"]
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.COMPACT)
    space, kind = h5py.h5s.create_simple(ids.shape), h5py.h5t.py_create(ids.dtype)
    h5py.h5d.create(file["clips"].id, b"id", kind, space, settings).write(
        h5py.h5s.ALL, h5py.h5s.ALL, ids
    )


def one_group_for_many_streams(file: h5py.File) -> None:
    """Name the same tables so often that all of them are far larger than the file."""
    many = {f"s{number}": {"features": 3} for number in range(900)}
    write_text(file, "recipe", Recipe(0.25, "fp32", many).to_json())
    for name in many:
        file[f"streams/{name}"] = file["streams/video"]


def claim(file: h5py.File, total: int) -> None:
    """Let the headers of the rows and of their validity say, under right checksums, a lie."""
    path, group = Path(file.filename), file["streams/video"]
    claims = []
    for array in (group["rows"], group["valid"]):
        row = array.nbytes // len(array)
        sizes = {len(array): total, array.nbytes: row * total % 2**64}
        claims.append((h5py.h5o.get_info(array.id).addr, sizes))
    file.close()
    content = bytearray(path.read_bytes())
    for start, sizes in claims:
        end = guarded_end(content, start)
        header = bytes(content[start:end])
        for right, wrong in sizes.items():
            assert right.to_bytes(8, "little") in header
            header = header.replace(right.to_bytes(8, "little"), wrong.to_bytes(8, "little"))
        content[start : end + 4] = header + jenkins(header).to_bytes(4, "little")
    path.write_bytes(content)


STRUCTURES: dict[str, tuple[Change, str]] = {
    "rows of 2^40 never stored": (
        remake("streams/video/rows", shape=(2**40, 3), dtype="<f2"),
        "rows is not a plain array",
    ),
    "ids of 2^40 never stored": (
        remake("clips/id", shape=(2**40,), dtype="S5"),
        "id is not a plain array",
    ),
    "rows beyond the end": (
        lambda file: claim(file, 2**20),
        # from its version 2 on, HDF5 finds that by itself
        "stream video reaches beyond the end of the file|invalid dataset size",
    ),
    "rows of 2^62": (
        lambda file: claim(file, 2**62),
        "not a plain array|damaged, or not a feature",
    ),
    "one group for many streams": (one_group_for_many_streams, "larger than those of a shard"),
    "no clips": (
        lambda file: [remake(f"clips/{n}", data=file["clips"][n][:0])(file) for n in file["clips"]],
        "not a plain array",
    ),
    "chunks": (remake("streams/video/rows", chunks=(1, 3)), "rows is not one stretch"),
    "compressed": (remake("clips/id", compression="gzip"), "id is not one stretch"),
    "compact": (compact_layout, "id is not one stretch"),
    "virtual": (virtual, "rows is not one stretch"),
    "external": (elsewhere, "rows is not one stretch"),
    "external link to the clips": (
        link("clips", lambda file: h5py.ExternalLink(pipe(file), "clips")),
        "clips is a link",
    ),
    "external link to the rows": (
        link("streams/video/rows", lambda file: h5py.ExternalLink(pipe(file), "rows")),
        "rows is a link",
    ),
    "soft link to a group": (link("streams/video", h5py.SoftLink("/streams/audio")), "is a link"),
    "soft link to an array": (link("clips/rows", h5py.SoftLink("/clips/first_row")), "is a link"),
    "soft link to nothing": (link("clips", h5py.SoftLink("/nothing")), "clips is a link"),
    "soft link to itself": (link("clips", h5py.SoftLink("/clips")), "clips is a link"),
    "cyclic clips": (link("clips", lambda file: file["/"]), "damaged, or not a feature shard"),
    "cyclic stream": (link("streams/video", lambda file: file["streams"]), "damaged, or not"),
    "an array for a group": (link("clips", lambda file: file["clips/id"]), "damaged, or not"),
    "a group for an array": (link("clips/id", lambda file: file["clips"]), "damaged, or not"),
    "no streams": (lambda file: file.pop("streams"), "damaged, or not"),
    "rows of 8 bytes": (remake("streams/video/rows", dtype="<f8"), "rows is not a plain array"),
    "rows of integers": (remake("streams/video/rows", dtype="<i2"), "rows is not a plain array"),
    "big-endian rows": (remake("streams/video/rows", dtype=">f2"), "rows is not a plain array"),
    "first rows of 4 bytes": (remake("clips/first_row", dtype="<i4"), "not a plain array"),
    "unsigned rows": (remake("clips/rows", dtype="<u8"), "rows is not a plain array"),
    "big-endian duration": (remake("clips/duration", dtype=">f8"), "not a plain array"),
    "ids of any length": (remake("clips/id", dtype=h5py.string_dtype()), "id is not a plain array"),
    "ids of references": (
        remake("clips/id", shape=(64,), dtype=h5py.ref_dtype, fillvalue=None),
        "id is not a plain array",
    ),
    "ids of 201 bytes": (
        remake("clips/id", data=np.array([b"x" * 201] * 64)),
        "id is not a plain array",
    ),
    "compound": (
        remake("clips/duration", shape=(64,), dtype=[("x", "<f4"), ("y", "<f4")]),
        "not a plain array",
    ),
    "flat rows": (
        remake("streams/video/rows", shape=(9,), dtype="<f2"),
        "rows is not a plain array",
    ),
    "nested rows": (remake("clips/rows", shape=(64, 1), dtype="<i8"), "not a plain array"),
    "a single value": (remake("clips/rows", data=np.int64(1)), "not a plain array"),
    "wide rows": (
        remake("streams/video/rows", data=np.ones((9, 4), "<f2")),
        "stream video is not as its recipe says",
    ),
    "few valid": (
        remake("streams/video/valid", data=np.ones(9, "u1")),
        "stream video is not as its recipe says",
    ),
    "short table": (remake("clips/duration", data=np.ones(63)), "tables differ in length"),
    "narrow source": (
        remake("clips/source", data=np.ones((64, 31), "u1")),
        "tables are not as the format requires",
    ),
    "wide digests": (
        remake("streams/video/digest", data=np.ones((64, 2**16), "u1")),
        "tables are not as the format requires",
    ),
    "huge recipe": (lambda file: write_text(file, "recipe", "x" * 2**20), "recipe is not a text"),
    "huge version": (attribute("version", np.zeros(2**20, "u1")), "version is not a text"),
    "huge checksum": (
        lambda file: write_text(file, "tables", "x" * 60_001),
        "tables is not a text",
    ),
    "recipe of any length": (
        attribute("recipe", RECIPE.to_json(), h5py.string_dtype()),
        "recipe is not a text",
    ),
    "recipe of lines": (
        attribute("recipe", np.array([b"x", b"y"])),
        "recipe is not a text",
    ),
    "recipe that is a number": (attribute("recipe", 1), "recipe is not a text"),
    "recipe that is empty": (attribute("recipe", h5py.Empty("S1")), "recipe is not a text"),
    "no format": (lambda file: file.attrs.pop("format"), "not a feature shard"),
    "no version": (lambda file: file.attrs.pop("version"), "damaged, or not a feature shard"),
    "no recipe": (lambda file: file.attrs.pop("recipe"), "damaged, or not a feature shard"),
    "no checksum": (lambda file: file.attrs.pop("tables"), "damaged, or not a feature shard"),
    "other format": (lambda file: write_text(file, "format", "other"), "not a feature shard"),
    "format not in UTF-8": (attribute("format", np.bytes_(b"\xff")), "damaged, or not"),
    "old version": (lambda file: write_text(file, "version", "1"), "format version 1, this"),
    "wrong checksum": (lambda file: write_text(file, "tables", "0" * 32), "tables were changed"),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_wrong_structures_are_refused(store: Path, real: Path, name: str) -> None:
    change, match = STRUCTURES[name]
    assert_refused(store, forge(store, real, change), match)


def recipe_text(streams: dict[str, Any], snippet_seconds: float = 0.25) -> str:
    return Recipe(snippet_seconds, "fp32", streams).to_json()


RECIPES: dict[str, tuple[str, str]] = {
    "absurd width": (
        recipe_text({**RECIPE.streams, "video": {"features": 10**400}}),
        "stream video is not as its recipe says",
    ),
    "negative width": (
        recipe_text({**RECIPE.streams, "video": {"features": -3}}),
        "not a recipe: stream 'video'",
    ),
    "width that is a text": (
        recipe_text({**RECIPE.streams, "video": {"features": "3"}}),
        "not a recipe: stream 'video'",
    ),
    "crops that do not fit": (
        recipe_text({**RECIPE.streams, "video": {"features": 3, "crops": 2}}),
        "not a recipe: stream 'video'",
    ),
    "stream that is a way out": (
        recipe_text({**RECIPE.streams, "../x": {"features": 3}}),
        "not a recipe: stream '../x'",
    ),
    "stream that is not there": (
        recipe_text({**RECIPE.streams, "other": {"features": 3}}),
        "damaged, or not a feature shard",
    ),
    "no streams": (recipe_text({}), "it has no streams"),
    "streams that are a list": (
        RECIPE.to_json().replace('"streams": {', '"streams": [], "x": {'),
        "not a recipe",
    ),
    "endless snippets": (recipe_text(RECIPE.streams, float("inf")), "snippet_seconds inf"),
    "no length of snippets": (recipe_text(RECIPE.streams, float("nan")), "snippet_seconds nan"),
    "negative snippets": (recipe_text(RECIPE.streams, -1.0), "snippet_seconds -1"),
    "a number beyond all": (RECIPE.to_json().replace("0.25", "1" + "0" * 400), "too large"),
    "a number of many digits": (RECIPE.to_json().replace("0.25", "1" * 9000), "not a recipe"),
    "not JSON": ("{", "not a recipe"),
    "a list": ("[1]", "not a recipe"),
    "deep": ("[" * 50_000, "not a recipe"),
    "deep and right": (
        RECIPE.to_json().replace('"a"', '{"a":' * 500 + "1" + "}" * 500),
        "edited or damaged",
    ),
    "fingerprint of another": (
        RECIPE.to_json().replace(RECIPE.fingerprint, "0" * 16),
        "says fingerprint 0000000000000000 but",
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_absurd_recipes_are_refused(store: Path, real: Path, name: str) -> None:
    text, match = RECIPES[name]
    hostile = forge(store, real, lambda file: write_text(file, "recipe", text))
    assert_refused(store, hostile, match)


def ids(*new: bytes) -> Change:
    """Give the first clips other ids."""

    def change(file: h5py.File) -> None:
        every = file["clips/id"][()].tolist()
        every[: len(new)] = new
        remake("clips/id", data=np.array(every))(file)

    return change


def cell(column: str, value: float, at: int = 5) -> Change:
    """Write one value into a table."""
    return lambda file: file[f"clips/{column}"].__setitem__(at, value)


CONTENTS: dict[str, tuple[Change, str]] = {
    **{
        f"id {clip_id!r}": (ids(clip_id), "clip id")
        for clip_id in (
            b"../../x",
            b"a/../../x",
            b"..",
            b"/etc/x",
            b"a\\b",
            b"a\0b",
            b"a\nb",
            b"\x1b[2J",
            b"\x7f",
            "\x85".encode(),
            "\u2028".encode(),
            b"",
        )
    },
    "id not in UTF-8": (ids(b"\xff\xfe"), "ids are not UTF-8"),
    "id with a surrogate": (ids("\ud800".encode(errors="surrogatepass")), "ids are not UTF-8"),
    "ids that make one character": (ids(b"a\xc3", b"\xa9b"), "ids are not UTF-8"),
    **{
        f"{column} {value}": (cell(column, value), "points outside its rows")
        for column, value in (
            ("first_row", -1),
            ("first_row", 10**6),
            ("first_row", 2**63 - 1),  # the sum of it and of the rows is negative
            ("first_row", -(2**63)),
            ("rows", 0),
            ("rows", -1),
            ("rows", 10**6),
            ("rows", 2**63 - 1),
            ("rows", -(2**63)),
        )
    },
    **{
        f"duration {value}": (cell("duration", value), "invalid durations")
        for value in (float("nan"), float("inf"), -1.0)
    },
}


@pytest.mark.parametrize("name", CONTENTS)
def test_tables_that_lead_astray_are_refused(store: Path, real: Path, name: str) -> None:
    change, match = CONTENTS[name]
    assert_refused(store, forge(store, real, change, reseal=True), match)


HARMLESS: dict[str, Change] = {
    "nothing": lambda file: None,  # or the tests above would test `seal`
    "a fingerprint that lies": lambda file: write_text(file, "fingerprint", "0" * 16),
    "a cycle beside the tables": lambda file: file.__setitem__("loop", file["/"]),
    "a way out beside the tables": lambda file: file.__setitem__(
        "out", h5py.ExternalLink(pipe(file), "/")
    ),
    "a huge attribute": lambda file: file.attrs.__setitem__("x", np.zeros(2**20, "u1")),
    "many attributes": lambda file: [file.attrs.__setitem__(f"x{n}", n) for n in range(2000)],
    "a dangling object": lambda file: file.create_dataset("x", (2**40,), "<f8"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_not_read_changes_nothing(store: Path, real: Path, name: str) -> None:
    hostile = forge(store, real, HARMLESS[name], reseal=True)
    ((reason, taken),) = in_child(try_to_open, hostile)
    assert (reason, taken < LITTLE) == ("", True)
    shard = Shard(hostile)
    assert shard.ids == list(CLIPS)
    assert shard.recipe == RECIPE
    assert all(same(shard.read(number), CLIPS[i]) for number, i in enumerate(shard.ids))


def test_a_file_of_holes_cannot_ask_for_much(store: Path, real: Path) -> None:
    """On disk it is small, but its tables do lie inside it."""
    count = 2**24

    def change(file: h5py.File) -> None:
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        for group in (file["clips"], *file["streams"].values()):
            for name in group.keys() - {"rows", "valid"} if "digest" in group else list(group):
                shape, kind = (count, *group[name].shape[1:]), group[name].id.get_type()
                del group[name]
                space = h5py.h5s.create_simple(shape)
                h5py.h5d.create(group.id, name.encode(), kind, space, settings)

    copy = store / f"{RECIPE.fingerprint}-{0:016x}.h5"  # to hash it would take long
    shutil.copyfile(real, copy)
    with h5py.File(copy, "r+") as file:
        change(file)
    if copy.stat().st_blocks * 512 > 2**20:
        pytest.skip("this file system has no files with holes")
    assert copy.stat().st_size > 2**30
    assert_refused(store, copy, "larger than those of a shard")


def test_an_id_twice_in_a_shard_is_one_clip(store: Path, real: Path) -> None:
    """The writer never does that; a reader must not lose its way by it."""
    forge(store, real, ids(b"clip-7", b"clip-7"), reseal=True)
    for _ in range(2):
        opened = Store(store)
        assert set(opened) == {"sound", *CLIPS} - {"clip-0", "clip-1"}
        assert same(opened["clip-7"], CLIPS["clip-7"])
        assert len(opened.column("rows")) == len(list(opened)) == len(opened)
        compact(store)
    assert sum(map(len, Store(store).shards)) == len(CLIPS) - 1
    assert verify(store) == (len(CLIPS) - 1, [])


def test_validity_that_is_neither_is_refused(store: Path, real: Path) -> None:
    forge(store, real, lambda file: file["streams/video/valid"].__setitem__(0, 2), reseal=True)
    opened = Store(store)
    with pytest.raises(FeatureError, match="clip clip-0: damaged"):
        opened["clip-0"]
    assert same(opened["clip-1"], CLIPS["clip-1"])


def test_unknown_flags_are_kept(store: Path, real: Path) -> None:
    forge(store, real, cell("flags", 0x81), reseal=True)
    assert Store(store)["clip-5"].flags == Flag(0x81)


def test_a_recipe_that_differs_from_the_shards(store: Path, real: Path) -> None:
    Recipe(0.5, "fp32", RECIPE.streams).save(store / "recipe.json")
    with pytest.raises(FeatureError, match=r"another recipe.*snippet_seconds: 0\.25, not 0\.5"):
        Store(store)


def try_to_list(sending: Connection, store: Path) -> None:
    opened = Store(store)
    assert same(opened["sound"], SOUND)
    sending.send({file.name: reason for file, reason in opened.unreadable.items()})


def test_what_is_not_a_regular_file(store: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("a secret\n")
    names = [f"{RECIPE.fingerprint}-{number:016x}.h5" for number in range(8)]
    places = [store / name for name in names]
    os.mkfifo(places[0])
    places[1].mkdir()
    places[2].touch()
    places[3].symlink_to(outside)
    places[4].symlink_to(tmp_path / "nowhere")
    places[5].symlink_to(places[5])
    places[6].symlink_to(places[0])
    places[7].symlink_to("/dev/zero")
    (unreadable,) = in_child(try_to_list, store)
    assert list(unreadable) == names[::-1]
    for number in (0, 1, 6, 7):
        assert "not a regular file" in unreadable[names[number]]
    assert "secret" not in unreadable[names[3]]
    assert outside.read_text() == "a secret\n"


# The fuzz


@dataclass(frozen=True)
class Base:
    """A real shard that is going to be damaged.

    Attributes:
        name: of its file.
        content: of its file.
        clips: the right answers.
        recipe: as it stands in the file.
        tables: (first byte, bytes) of every table, in the order of their checksum.
        checksum: first byte of that.
        guarded: (first byte, end) of what a checksum of HDF5, which follows it, guards.
    """

    name: str
    content: bytes
    clips: dict[str, Features]
    recipe: str
    tables: list[tuple[int, int]]
    checksum: int
    guarded: list[tuple[int, int]]


def read_base(path: Path, clips: dict[str, Features]) -> Base:
    content = path.read_bytes()
    with h5py.File(path) as file:
        tables = [file[f"clips/{name}"] for name in ("id", *COLUMNS, "source")]
        tables += [file[f"streams/{name}/digest"] for name in SIZES]
        places = [(table.id.get_offset(), table.nbytes) for table in tables]
        recipe, checksum = file.attrs["recipe"].decode(), content.index(file.attrs["tables"])
    starts = [found.start() for found in re.finditer(rb"\x89HDF|OHDR|OCHK", content)]
    guarded = [(start, end) for start in starts if (end := guarded_end(content, start))]
    return Base(path.name, content, clips, recipe, places, checksum, guarded)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Base]:
    """Two shards as they are written, and one in HDF5's first format, which has no checksums."""
    found = []
    for clips in (
        {"a": clip(4), "b": clip(5, 1)},
        {f"класс/{number}": clip(3 + number, number, Flag.SOUND_DAMAGED) for number in range(9)},
    ):
        path = tmp_path_factory.mktemp("base")
        fill(path, clips)
        (shard,) = path.glob("*.h5")
        found.append(read_base(shard, clips))
    old = shard.with_name("old")
    align = {"alignment_threshold": 1, "alignment_interval": 64}
    with h5py.File(shard) as source, h5py.File(old, "w", libver="earliest", **align) as target:
        for name in (*COLUMNS, "id", "source"):
            target[f"clips/{name}"] = source[f"clips/{name}"][()]
        for stream in SIZES:
            for name in (f"streams/{stream}/{part}" for part in ("digest", "valid", "rows")):
                target[name] = source[name][()]
        for name, text in source.attrs.items():
            target.attrs[name] = text
    old = old.rename(shard.with_name(f"{RECIPE.fingerprint}-{file_hash(old)}.h5"))
    found.append(read_base(old, clips))
    assert [len(base.guarded) > 15 for base in found] == [True, True, False]
    return found


def damage(content: bytearray, rng: np.random.Generator, other: bytes) -> None:
    """Change a shard in one place, mostly where there is something: HDF5 leaves gaps."""
    filled = np.flatnonzero(np.frombuffer(bytes(content), np.uint8))
    places = filled if rng.random() < 0.7 else np.arange(len(content))
    at = max(0, int(rng.choice(places)) + int(rng.integers(-4, 5)))
    size, begin = int(rng.integers(1, 40)), int(rng.integers(len(other)))
    numbers = (0, 1, 2**31, 2**32 - 1, 2**48, 2**63 - 1, 2**63, 2**64 - 1, len(content), at)
    number, width = numbers[rng.integers(len(numbers))], 2 ** int(rng.integers(4))
    kind = rng.integers(10)
    if kind == 0 and at:
        del content[at:]
    elif kind == 1:
        content += rng.bytes(10 * size)
    else:
        patch = (
            bytes([content[min(at, len(content) - 1)] ^ 1 << int(rng.integers(8))]),
            rng.bytes(1),
            rng.bytes(size),
            bytes(size),
            b"\xff" * size,
            (number % 256**width).to_bytes(width, "little"),
            (number % 2**64).to_bytes(8, "little"),
            other[begin : begin + 4 * size],
        )[kind - 2]
        content[at : at + len(patch)] = patch


def damaged(bases: list[Base], seed: int) -> tuple[Base, bytes, bool]:
    """Return a base, what became of it, and whether its tables' checksum was made right again."""
    rng = np.random.default_rng(seed)
    base, other = (bases[number] for number in rng.integers(len(bases), size=2))
    content = bytearray(base.content)
    for _ in range(int(rng.choice((1, 1, 1, 2, 4)))):
        damage(content, rng, other.content)
    whole = len(content) >= len(base.content)
    reseal_headers, reseal_tables = whole and rng.random() < 0.6, whole and rng.random() < 0.3
    if reseal_tables:
        parts = [np.frombuffer(content[at : at + size], "u1") for at, size in base.tables]
        text = tables_checksum(base.recipe, parts).encode()
        content[base.checksum : base.checksum + len(text)] = text
    for start, end in base.guarded if reseal_headers else ():
        content[end : end + 4] = jenkins(content[start:end]).to_bytes(4, "little")
    return base, bytes(content), reseal_tables


def fuzz(sending: Connection, store: Path, bases: list[Base], seeds: range) -> None:
    """Try some cases, each of which is announced; tell how many had which outcome."""
    outcomes: Counter[str] = Counter()
    before = resident()
    for seed in seeds:
        sending.send(f"case {seed}")
        base, content, resealed = damaged(bases, seed)
        file = store / base.name
        if seed % 2:
            file = store / f"{base.name[:17]}{hashlib.sha256(content).hexdigest()[:16]}.h5"
        file.write_bytes(content)
        try:
            outcomes[try_shard(file, base, content, resealed)] += 1
        except Exception as error:
            raise AssertionError(f"case {seed}") from error
        file.unlink()
    assert resident() - before < 10 * LITTLE
    sending.send(outcomes)


def try_shard(file: Path, base: Base, content: bytes, resealed: bool) -> str:
    """Hold what is read of a damaged shard against the right answers."""
    hurt: list[str] = []
    store = Store(file.parent)
    assert same(store["sound"], SOUND)
    if file in store.unreadable:
        outcome = "refused"
    else:
        (shard,) = (shard for shard in store.shards if shard.path == file)
        assert resealed or shard.ids == list(base.clips)
        for number, clip_id in enumerate(shard.ids):
            try:
                assert same(shard.read(number), base.clips[clip_id])
            except FeatureError:
                hurt.append(clip_id)
        outcome = "some clips refused" if hurt else "right"
    intact, damages = verify(file.parent)
    assert intact >= 1
    assert [one.shard for one in damages] == [file] * len(damages)
    if outcome == "refused" or (file.name == base.name and content != base.content):
        assert len(damages) == 1
    if damages and outcome != "refused":
        assert damages[0].clips == hurt
    return outcome


@pytest.mark.parametrize(
    "first",
    [
        *range(0, CASES, BATCH),
        *(pytest.param(n, marks=pytest.mark.soak) for n in range(CASES, SOAK_CASES, BATCH)),
    ],
)
def test_damaged_shards_are_refused_or_read_right(
    store: Path, bases: list[Base], first: int
) -> None:
    seeds = range(first, first + BATCH)
    *announced, outcomes = in_child(fuzz, store, bases, seeds)
    assert len(announced) == outcomes.total() == len(seeds)
    # or the cases would be too tame, or too wild
    assert outcomes["refused"] > BATCH / 4
    assert outcomes["right"] > BATCH / 20
    assert outcomes["some clips refused"] > 0
