"""Which SFTP servers are taken: those that OpenSSH's own client takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import fsspec
import pytest
import servers

from features import FeatureError, Recipe, Remote, pack

pytestmark = pytest.mark.slow
RECIPE = Recipe(0.25, "fp32", {"video": {"features": 2}})


class Server(NamedTuple):
    port: int
    key: Path  # the user's
    host_key: Path  # the public one
    home: Path  # the user's folder
    url: str

    def ssh_takes_it(self) -> bool:
        """Whether OpenSSH's client, which nobody can ask, gets as far as its SFTP program."""
        command = ["sftp", "-P", str(self.port), "-i", str(self.key), "-b", "/dev/null"]
        command += ["-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=/dev/null"]
        command += ["-o", f"UserKnownHostsFile={self.home}/.ssh/known_hosts", "-F", "/dev/null"]
        return subprocess.run([*command, "127.0.0.1"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    folder = tmp_path_factory.mktemp("sftp")
    pack(folder / "store", [], RECIPE)
    with servers.sftp(folder) as (port, _):
        yield port, folder


@pytest.fixture
def server(started: tuple[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    port, folder = started
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(fsspec.config.conf, "sftp", {"key_filename": str(folder / "user")})
    url = f"sftp://127.0.0.1:{port}{folder}/store"
    return Server(port, folder / "user", folder / "host.pub", tmp_path, url)


def another_key(folder: Path) -> str:
    key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "other")]
    subprocess.run(key, check=True)
    return (folder / "other.pub").read_text()


def fingerprint(public: Path) -> str:
    printed = subprocess.check_output(["ssh-keygen", "-lf", str(public)], text=True)
    return printed.split()[1]


def test_a_known_key_is_taken_plain_and_hashed(server: Server) -> None:
    file = servers.known_hosts(server.home, server.port, server.host_key)
    assert server.ssh_takes_it()
    assert Remote(server.url).recipe == RECIPE
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
    assert "127.0.0.1" not in file.read_text()
    assert server.ssh_takes_it()
    assert Remote(server.url).recipe == RECIPE


def test_an_unknown_key_is_refused_with_the_way_out(server: Server) -> None:
    assert not server.ssh_takes_it()
    with pytest.raises(FeatureError) as caught:
        Remote(server.url)
    for part in (
        f"[127.0.0.1]:{server.port} is not in ~/.ssh/known_hosts",
        fingerprint(server.host_key),
        f"'ssh -p {server.port} 127.0.0.1'",
    ):
        assert part in str(caught.value)
    # neither is it learned
    assert not (server.home / ".ssh" / "known_hosts").exists()
    with pytest.raises(FeatureError, match="not in"):
        Remote(server.url)


def test_a_changed_key_is_refused_with_the_way_out(server: Server, tmp_path: Path) -> None:
    kind, public = another_key(tmp_path).split()[:2]
    file = server.home / ".ssh" / "known_hosts"
    file.write_text(f"[127.0.0.1]:{server.port} {kind} {public}\n")
    assert not server.ssh_takes_it()
    with pytest.raises(FeatureError) as caught:
        Remote(server.url)
    for part in (
        fingerprint(server.host_key),
        fingerprint(tmp_path / "other.pub"),
        "pretends to be it",
        f"ssh-keygen -R '[127.0.0.1]:{server.port}'",
    ):
        assert part in str(caught.value)


def test_a_revoked_key_is_refused(server: Server) -> None:
    file = servers.known_hosts(server.home, server.port, server.host_key)
    kind, public = server.host_key.read_text().split()[:2]
    file.write_text(f"{file.read_text()}@revoked * {kind} {public}\n")
    assert not server.ssh_takes_it()
    with pytest.raises(FeatureError, match="not in"):
        Remote(server.url)


@pytest.mark.parametrize(
    "line", ["x", "[127.0.0.1]:1 ssh-ed25519 %%%", "a b c d", "@revoked", "h no-such-kind AAAA"]
)
def test_lines_that_are_none_hide_no_other(server: Server, line: str) -> None:
    file = servers.known_hosts(server.home, server.port, server.host_key)
    file.write_text(f"# a comment\n\n{line}\n{file.read_text()}")
    assert Remote(server.url).recipe == RECIPE


def test_a_chain_of_file_systems_is_no_way_round(server: Server) -> None:
    for url in (f"simplecache::{server.url}", f"dir://::{server.url}"):
        with pytest.raises(FeatureError, match="give the plain address"):
            Remote(url)


@pytest.mark.parametrize("known", [True, False])
def test_no_user_is_named_to_a_changed_server(server: Server, tmp_path: Path, known: bool) -> None:
    sshd = shutil.which("sshd", path=f"/usr/sbin:{os.environ['PATH']}")
    assert sshd
    port, log = servers.free_port(), tmp_path / "log"
    other = tmp_path / "other.pub"
    other.write_text(another_key(tmp_path))
    servers.known_hosts(server.home, port, server.host_key if known else other)
    config = (server.host_key.parent / "sshd_config").read_text().splitlines()
    own = [line for line in config if not line.startswith(("Port", "ListenAddress"))]
    (tmp_path / "config").write_text("\n".join([*own, f"ListenAddress 127.0.0.1:{port}"]) + "\n")
    with open(log, "wb") as target:
        command = [sshd, "-d", "-e", "-f", str(tmp_path / "config")]  # one connection, told in full
        process = subprocess.Popen(command, stdout=target, stderr=target)
    try:
        for _ in range(200):
            if b"Server listening" in log.read_bytes():
                break
            time.sleep(0.05)
        with pytest.raises(FeatureError) as caught:
            Remote(f"sftp://someone:hunter2@127.0.0.1:{port}/store")
    finally:
        process.terminate()
        process.wait(30)
    assert ("pretends to be it" in str(caught.value)) != known
    assert (b"userauth-request for user someone" in log.read_bytes()) == known
