"""Stores over real networks: S3, SFTP, HTTP; cut off in the middle and resumed."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np
import pytest
import servers

import features
from features import FeatureError, Features, Recipe, Remote, Store, pack, pull, push, verify

pytestmark = pytest.mark.slow

WIDTH = 1000
RECIPE = Recipe(0.25, "fp32", {"video": {"features": WIDTH}, "audio": {"features": 8}})
MB = 10**6


def clip(seed: int, length: int = 500) -> Features:
    rng = np.random.default_rng(seed)
    sizes = {"video": WIDTH, "audio": 8}
    return Features(
        {n: rng.integers(0, 999, (length, d)).astype(np.float16) for n, d in sizes.items()},
        {n: rng.random(length) < 0.5 for n in sizes},
        0.25,
        length / 4,
    )


CLIPS = {f"class-{n % 3}/clip {n}": clip(n) for n in range(60)}  # 1 MB each


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of 20 MB."""
    path = tmp_path_factory.mktemp("sharing") / "store"
    assert len(pack(path, CLIPS.items(), RECIPE, 20 * MB)) == 3
    features.write_card(path)
    return path


class Place(NamedTuple):
    """Where a store can be sent to: its URL over a cable, and the folder behind it."""

    url: str
    cable: servers.Cable
    folder: Path


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    return _place(request.param, tmp_path, monkeypatch, request)


def _place(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Place:
    stack = ExitStack()
    request.addfinalizer(stack.close)
    served = tmp_path / "served"
    folder = served / "team" / "store"
    (served / "team").mkdir(parents=True)
    if kind == "sftp":
        (tmp_path / "keys").mkdir()
        port, key = stack.enter_context(servers.sftp(tmp_path / "keys"))
        monkeypatch.setitem(fsspec.config.conf, "sftp", {"key_filename": str(key)})
        cable = servers.Cable(port)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        servers.known_hosts(tmp_path / "home", cable.port, tmp_path / "keys" / "host.pub")
        url = f"sftp://127.0.0.1:{cable.port}{folder}"
    elif kind == "s3":
        cable = servers.Cable(stack.enter_context(servers.s3(served)))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{cable.port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET)
        url = "s3://team/store"
    else:
        server = {"http": servers.http, "plain_http": servers.plain_http}[kind]
        cable = servers.Cable(stack.enter_context(server(served)))
        url = f"http://127.0.0.1:{cable.port}/team/store"
    stack.callback(cable.close)
    return Place(url, cable, folder)


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.h5"))


def same(one: Path, other: Path) -> bool:
    return not any(features.diff(one, other)) and verify(other) == (len(Store(one)), [])


@pytest.mark.parametrize("place", ["s3", "sftp"], indirect=True)
def test_push_cut_off_and_resumed(store: Path, place: Place, tmp_path: Path) -> None:
    place.cable.left = 31 * MB
    with pytest.raises(FeatureError, match=r"cut off.*run the same command again"):
        push(store, place.url)
    assert place.cable.left == 0
    place.cable.left, place.cable.moved = None, 0
    transfer = push(store, place.url)
    # what was cut was at most one block in flight for each of the transfers at once
    assert transfer.nbytes < size(store) - 5 * MB
    assert same(store, place.folder) or place.url.startswith("s3")
    again = push(store, place.url)
    assert (again.shards, again.nbytes, again.already) == ([], 0, 3)
    pull(place.url, tmp_path / "laptop")
    assert same(store, tmp_path / "laptop")
    assert (tmp_path / "laptop" / "CARD.md").read_text() == (store / "CARD.md").read_text()


@pytest.mark.parametrize("place", ["s3", "sftp", "http"], indirect=True)
def test_pull_cut_off_and_resumed(store: Path, place: Place, tmp_path: Path) -> None:
    features.merge([store], place.folder)
    laptop = tmp_path / "laptop"
    place.cable.left = 40 * MB
    with pytest.raises(FeatureError, match=r"cut off.*run the same command again"):
        pull(place.url, laptop)
    assert set(Store(laptop)) < set(CLIPS)
    place.cable.left, place.cable.moved = None, 0
    done: list[tuple[int, int]] = []
    transfer = pull(place.url, laptop, progress=lambda *some: done.append(some))
    assert transfer.nbytes < size(store) - 5 * MB
    assert place.cable.moved < size(store) - 5 * MB
    assert done[-1][0] == done[-1][1]
    assert same(store, laptop)
    assert {file.suffix for file in laptop.iterdir()} <= {".h5", ".json", ".md"}
    assert pull(place.url, laptop).nbytes == 0


@pytest.mark.parametrize("place", ["plain_http"], indirect=True)
def test_pull_from_a_server_that_only_sends_whole_files(
    store: Path, place: Place, tmp_path: Path
) -> None:
    features.merge([store], place.folder)
    pull(place.url, tmp_path / "laptop")
    assert same(store, tmp_path / "laptop")


@pytest.mark.parametrize("place", ["s3", "sftp", "http"], indirect=True)
def test_list_and_choose_without_fetching_all(store: Path, place: Place, tmp_path: Path) -> None:
    features.merge([store], place.folder)
    listed = sorted(Remote(place.url).entries())
    assert listed == sorted(features.entries(Store(place.folder)))
    assert place.cable.moved < size(store) / 5
    wanted = ["class-0/clip 3", "class-1/clip 4", "not there"]
    transfer = pull(place.url, tmp_path / "trimmed", wanted, trim=True)
    assert transfer.missing == ["not there"]
    assert set(Store(tmp_path / "trimmed")) == set(wanted[:2])
    for clip_id in wanted[:2]:
        assert (Store(tmp_path / "trimmed")[clip_id].video == CLIPS[clip_id].video).all()
        assert (
            Store(tmp_path / "trimmed")[clip_id].valid["audio"] == CLIPS[clip_id].valid["audio"]
        ).all()
    assert transfer.nbytes < 3 * MB
    transfer = pull(place.url, tmp_path / "whole", wanted)
    assert len(transfer.shards) == 1
    assert set(wanted[:2]) < set(Store(tmp_path / "whole"))
    assert pull(place.url, tmp_path / "whole", wanted).shards == []


def test_a_folder_is_a_place_too(store: Path, tmp_path: Path) -> None:
    assert len(push(store, str(tmp_path / "nas")).shards) == 3
    assert same(store, tmp_path / "nas")
    assert len(pull(f"file://{tmp_path}/nas", tmp_path / "laptop").shards) == 3
    assert same(store, tmp_path / "laptop")


def test_a_partial_push_to_a_folder_resumes(store: Path, tmp_path: Path) -> None:
    (tmp_path / "nas").mkdir()
    first = sorted(store.glob("*.h5"))[0]
    (tmp_path / "nas" / f".partial-{first.name}").write_bytes(first.read_bytes()[: 5 * MB])
    assert push(store, str(tmp_path / "nas")).nbytes == size(store) - 5 * MB
    assert same(store, tmp_path / "nas")


def test_a_partial_of_other_content_is_fetched_again(store: Path, tmp_path: Path) -> None:
    first = sorted(store.glob("*.h5"))[0]
    partial = tmp_path / "laptop" / f".partial-{first.name}"
    features.create(partial.parent, RECIPE)
    partial.write_bytes(bytes(5 * MB))
    with pytest.raises(FeatureError, match=f"{first.name}.*not what its name says"):
        pull(str(store), tmp_path / "laptop")
    assert not partial.exists()
    pull(str(store), tmp_path / "laptop")
    assert same(store, tmp_path / "laptop")


def test_damage_does_not_travel(store: Path, tmp_path: Path) -> None:
    features.merge([store], tmp_path / "hurt")
    first, *others = sorted((tmp_path / "hurt").glob("*.h5"))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    with pytest.raises(FeatureError, match=f"{first.name}.*what arrived is not what its name says"):
        pull(str(tmp_path / "hurt"), tmp_path / "laptop")
    assert {file.name for file in (tmp_path / "laptop").glob("*.h5")} == {f.name for f in others}
    with pytest.raises(FeatureError, match=f"{first.name}: damaged.*features verify"):
        push(tmp_path / "hurt", str(tmp_path / "nas"))
    assert len(Store(tmp_path / "nas").shards) == 2


def hurt(store: Path, number: int = 0) -> Path:
    """Change a byte in the middle of a shard, and return it."""
    shard = sorted(store.glob("*.h5"))[number]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    return shard


@pytest.mark.parametrize("place", ["s3", "sftp"], indirect=True)
def test_a_damaged_distant_shard_is_sent_again(store: Path, place: Place, tmp_path: Path) -> None:
    features.merge([store], place.folder)
    damaged = hurt(place.folder)
    assert push(store, place.url).shards == []
    with pytest.raises(FeatureError, match="'avarnet features push STORE URL --repair'"):
        pull(place.url, tmp_path / "laptop")
    transfer = push(store, place.url, repair=True)
    assert (transfer.shards, transfer.already) == ([damaged.name], 2)
    assert transfer.nbytes == damaged.stat().st_size
    assert same(store, place.folder)
    pull(place.url, tmp_path / "laptop")
    assert same(store, tmp_path / "laptop")
    assert push(store, place.url, repair=True).shards == []


def test_a_store_that_is_compacted_while_it_is_pushed(store: Path, tmp_path: Path) -> None:
    ours, begun = tmp_path / "ours", False
    features.merge([store], ours)

    def compact_late(done: int, of: int) -> None:
        nonlocal begun
        if not begun:
            begun = True
            features.compact(ours)

    with pytest.raises(FeatureError, match=r"is gone: was its store compacted.*Push it again"):
        push(ours, str(tmp_path / "nas"), progress=compact_late)
    push(ours, str(tmp_path / "nas"))
    assert set(Store(tmp_path / "nas")) == set(CLIPS)


@pytest.mark.parametrize("kind", ["folder", "sftp"])
def test_two_pushes_to_one_place_at_once(
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    kind: str,
) -> None:
    """One pauses in the middle of each shard, and goes on when the other one has sealed it."""
    folder, url = tmp_path / "nas", str(tmp_path / "nas")
    if kind == "sftp":
        place = _place(kind, tmp_path, monkeypatch, request)
        folder, url = place.folder, place.url
    paused, go_on = threading.Event(), threading.Event()
    outcomes: list[object] = []

    def pause(done: int, _: int) -> None:
        if done > 5 * MB:
            paused.set()
            go_on.wait(60)

    def push_slowly() -> None:
        try:
            outcomes.append(push(store, url, progress=pause))
        except FeatureError as error:
            outcomes.append(error)

    thread = threading.Thread(target=push_slowly)
    thread.start()
    assert paused.wait(60)
    push(store, url)
    assert same(store, folder)
    go_on.set()
    thread.join(60)
    assert isinstance(outcomes[0], features.Transfer)
    assert same(store, folder)
    assert not list(folder.glob(".partial-*"))


def test_names_that_lead_elsewhere_are_not_fetched(store: Path, tmp_path: Path) -> None:
    features.merge([store], tmp_path / "theirs")
    (tmp_path / "theirs" / "..h5").write_bytes(b"x")
    (tmp_path / "theirs" / "evil.h5").write_bytes(b"x")
    pull(str(tmp_path / "theirs"), tmp_path / "laptop")
    assert same(store, tmp_path / "laptop")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/nowhere/at/all", "not a feature store"),
        ("s3x://team/store", "cannot be reached"),
        ("http://127.0.0.1:9/store", "cannot be reached"),
        ("sftp://127.0.0.1:9/store", "cannot be reached"),
    ],
)
def test_places_that_are_none(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=f"{url}.*{message}"):
        pull(url, tmp_path / "laptop")
    assert not (tmp_path / "laptop").exists()


def test_another_recipe_is_refused_both_ways(store: Path, tmp_path: Path) -> None:
    other = Recipe(0.5, "fp32", RECIPE.streams)
    pack(tmp_path / "other", [], other)
    for attempt in (
        lambda: push(store, str(tmp_path / "other")),
        lambda: pull(str(store), tmp_path / "other"),
    ):
        with pytest.raises(FeatureError, match=r"another recipe.*snippet_seconds: 0.25, not 0.5"):
            attempt()
    with pytest.raises(FeatureError, match="only be pulled"):
        push(store, "http://127.0.0.1:9/store")
