"""Clips taken out of pushed stores: afterwards no byte of them is behind the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np
import pytest
import servers
from command import avarnet

from features import FeatureError, Features, Recipe, Remote, Store, pack, pull, push, withdraw
from features.transfer.connection import Connection
from features.transfer.upload import unfinished_uploads

pytestmark = pytest.mark.slow

RECIPE = Recipe(0.25, "fp32", {"video": {"features": 50}})
UNWANTED = ["class-1/clip 4", "class-2/clip 5"]


def clip(seed: int) -> Features:
    rows = np.random.default_rng(seed).normal(size=(40, 50)).astype(np.float16)
    return Features({"video": rows}, {"video": np.ones(40, bool)}, 0.25, 10.0)


CLIPS = {f"class-{n % 3}/clip {n}": clip(n) for n in range(12)}


class Place(NamedTuple):
    """A URL, and the folder behind its server."""

    url: str
    folder: Path

    def traces(self, clip_id: str) -> list[str]:
        """Return the files there that have a clip's id or its first row, as bytes."""
        marks = clip_id.encode(), CLIPS[clip_id].video[0].tobytes()
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        return [f.name for f in files if any(mark in f.read_bytes() for mark in marks)]


@pytest.fixture(params=["folder", "sftp", "s3"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    served = tmp_path / "served"
    folder = served / "team" / "store"
    folder.parent.mkdir(parents=True)
    with ExitStack() as stack:
        url = str(folder)
        if request.param == "sftp":
            (tmp_path / "keys").mkdir()
            port, key = stack.enter_context(servers.sftp(tmp_path / "keys"))
            monkeypatch.setitem(fsspec.config.conf, "sftp", {"key_filename": str(key)})
            monkeypatch.setenv("HOME", str(tmp_path / "home"))
            servers.known_hosts(tmp_path / "home", port, tmp_path / "keys" / "host.pub")
            url = f"sftp://127.0.0.1:{port}{folder}"
        elif request.param == "s3":
            port = stack.enter_context(servers.s3(served))
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.KEY)
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET)
            url = "s3://team/store"
        yield Place(url, folder)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    assert len(pack(path, CLIPS.items(), RECIPE, 16_000)) == 3  # of four clips each
    return path


def test_no_byte_of_them_stays(place: Place, store: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("\n".join([*UNWANTED, "class-1/nobody"]))
    (store / "failures.jsonl").write_text(f'{{"clip": "{UNWANTED[0]}"}}\n')
    avarnet("features", "card", store, "--contact", "ann@lab.example")
    push(store, place.url)
    assert all(place.traces(clip_id) for clip_id in UNWANTED)
    others = {f.name for f in place.folder.glob("*.h5") if f.name not in place.traces(UNWANTED[0])}
    others -= set(place.traces(UNWANTED[1]))
    output = avarnet("features", "drop", store, "--ids", tmp_path / "ids.txt", "--from", place.url)
    assert "2 clips dropped, 1 not there" in output
    assert "2 clips taken out of" in output
    words = " ".join(output.split())
    assert f"{store / 'failures.jsonl'}." in words  # which names one of them
    assert "avarnet/means" in words
    for clip_id in UNWANTED:
        assert place.traces(clip_id) == []
    assert others <= {f.name for f in place.folder.glob("*.h5")}  # what had none is as it was
    assert "ann@lab.example" in (place.folder / "CARD.md").read_text()
    pull(place.url, tmp_path / "laptop")
    kept = Store(tmp_path / "laptop")
    assert sorted(kept) == sorted(set(CLIPS) - set(UNWANTED)) == sorted(Store(store))
    assert all((kept[clip_id].video == CLIPS[clip_id].video).all() for clip_id in kept)
    assert withdraw(store, place.url, UNWANTED) == []  # once more


def test_what_an_interrupted_push_has_left_is_deleted_too(place: Place, store: Path) -> None:
    push(store, place.url)
    connection = Connection(place.url)
    shard = next(file for file in store.glob("*.h5"))
    if place.url.startswith("s3"):
        upload = {"Bucket": "team", "Key": f"store/{shard.name}"}
        upload["UploadId"] = connection.call_s3("create_multipart_upload", **upload)["UploadId"]
        connection.call_s3("upload_part", shard.read_bytes(), **upload, PartNumber=1)
        assert len(unfinished_uploads(connection, "team", "store/")) == 1
    else:
        (place.folder / f".partial-{shard.name}").write_bytes(shard.read_bytes()[:5000])
    withdraw(store, place.url, UNWANTED)
    assert not [*place.folder.glob(".partial-*")]
    if place.url.startswith("s3"):
        assert unfinished_uploads(connection, "team", "store/") == []


def test_a_cut_loses_no_other_clip(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(str(tmp_path / "pushed"), tmp_path / "pushed")
    push(store, place.url)

    def cut(*_: object) -> None:
        raise FeatureError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "delete", cut)  # the new shards are there, and the old ones
        with pytest.raises(FeatureError, match="cut off"):
            withdraw(store, place.url, UNWANTED)
    assert set(Store(place.folder)) == set(CLIPS)
    assert withdraw(store, place.url, UNWANTED) == UNWANTED
    assert set(Store(place.folder)) == set(CLIPS) - set(UNWANTED)
    assert not any(place.traces(clip_id) for clip_id in UNWANTED)


def test_http_is_refused(store: Path, tmp_path: Path) -> None:
    push(store, str(tmp_path / "store-2"))
    with (
        servers.http(tmp_path) as port,
        pytest.raises(FeatureError, match="http can only be pulled from"),
    ):
        withdraw(store, f"http://127.0.0.1:{port}/store-2", UNWANTED)
