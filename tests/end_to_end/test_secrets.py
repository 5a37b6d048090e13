"""Passwords, keys and tokens in what users type are printed nowhere."""

from __future__ import annotations

import getpass
import json
import logging
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import fsspec
import pytest
import servers
from command import avarnet, in_a_process
from small_stores import clip, fill

from avarnet import main

pytestmark = pytest.mark.slow
SECRET = "hunter2"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    fill(tmp_path / "store", {"one": clip(4, 1)})
    return tmp_path / "store"


@pytest.fixture
def web(store: Path, tmp_path: Path):
    with servers.plain_http(tmp_path) as port:
        yield port


@pytest.mark.parametrize(
    "url",
    [
        f"sftp://ann:{SECRET}@127.0.0.1:9/store",
        f"s3://AKIA:{SECRET}@team/store",
        f"s3://AKIA:x/{SECRET}@team/store",
        f"http://ann:{SECRET}@127.0.0.1:9/store",
        f"http://{SECRET}@127.0.0.1:9/store",
        f"http://127.0.0.1:9/store?X-Amz-Signature={SECRET}",
        f"http://ann:{SECRET}@127.0.0.1:WEB/nothing",
        f"http://127.0.0.1:WEB/nothing?sig={SECRET}",
        f"nothing://ann:{SECRET}@host/store",
        f"simplecache::sftp://ann:{SECRET}@host/store",
    ],
)
@pytest.mark.parametrize("debug", [(), ("--debug",)], ids=["", "debug"])
def test_errors_of_every_protocol(
    url: str,
    debug: tuple[str, ...],
    store: Path,
    tmp_path: Path,
    web: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.WARNING)  # what is shown without a logger of the user's
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://ann:{SECRET}@127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    url = url.replace("WEB", str(web))
    for words in (["list", url], ["pull", url, tmp_path / "p"], ["push", store, url]):
        shown = _ends_with_an_error(*debug, "features", *words)
        assert "***" in shown
        assert SECRET not in shown
    assert SECRET not in caplog.text
    assert SECRET not in "".join(capfd.readouterr())


def _ends_with_an_error(*words: object) -> str:
    shown = StringIO()
    with (
        patch("sys.argv", ["avarnet", *map(str, words)]),
        redirect_stderr(shown),
        redirect_stdout(shown),
        pytest.raises(SystemExit, match="1"),
    ):
        main()
    assert ("Traceback" in shown.getvalue()) == ("--debug" in words)
    return shown.getvalue()


def test_output_of_a_push(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "keys").mkdir()
    with servers.sftp(tmp_path / "keys") as (port, key):
        servers.known_hosts(tmp_path / "home", port, tmp_path / "keys" / "host.pub")
        monkeypatch.setitem(
            fsspec.config.conf, "sftp", {"key_filename": str(key), "look_for_keys": False}
        )
        user = getpass.getuser()
        url = f"sftp://{user}:{SECRET}@127.0.0.1:{port}{tmp_path}/there"
        result = json.loads(avarnet("features", "push", store, url, "--json"))
        assert result["to"] == f"sftp://***@127.0.0.1:{port}{tmp_path}/there"
        assert len(result["shards"]) == 1
        output = avarnet("features", "push", store, url)
        assert f"-> {result['to']}" in output
        assert SECRET not in output
    for file in (tmp_path / "there").iterdir():
        assert SECRET.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["features", "info", f"sftp://ann:{SECRET}@host/store"], 1),
        (["train", "m.jsonl", f"s3://AKIA:{SECRET}@team/store", "run"], 1),
        (["watch", f"rtsp://admin:{SECRET}@camera/live", "run"], 1),
        (["watch", "run", "extra", f"rtsp://admin:{SECRET}@camera/live"], 2),
        (["manifest", "check", f"https://h/m.jsonl?token={SECRET}"], 1),
    ],
)
def test_an_address_in_the_wrong_place(words: list[str], code: int) -> None:
    assert SECRET not in in_a_process(*words, code=code)
