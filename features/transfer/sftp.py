"""SFTP as `ssh` does it: only servers whose key is in known_hosts, and none is waited for long."""

from __future__ import annotations

import binascii
import shlex
from pathlib import Path
from typing import Any, NoReturn

import paramiko
from fsspec.implementations.sftp import SFTPFileSystem
from paramiko.hostkeys import HostKeyEntry, InvalidHostKey

from features.recipe import FeatureError
from features.transfer.stall_timeout import SILENCE

KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts")
SSH_PORT = 22


class CheckedSFTP(SFTPFileSystem):  # type: ignore[misc]
    """fsspec's SFTP, which itself takes any server's key, with the check of `ssh`."""

    def _connect(self) -> None:
        options: dict[str, Any] = {
            "timeout": SILENCE,
            "banner_timeout": SILENCE,
            "auth_timeout": SILENCE,
            "channel_timeout": SILENCE,
            **self.ssh_kwargs,
        }
        options.pop("host_key_policy", None)  # fsspec's, which could take unknown keys
        self.client = paramiko.SSHClient()
        _add_known_hosts(self.client.get_host_keys())
        self.client.set_missing_host_key_policy(_Refuse())
        try:
            # keys are compared before the user's name or password is sent
            self.client.connect(self.host, **options)
        except paramiko.BadHostKeyException as error:
            name = _name(self.host, int(options.get("port", SSH_PORT)))
            raise FeatureError(
                f"the key of the SFTP server {name} is not the one in ~/.ssh/known_hosts "
                f"({_shown(error.key)}, known is {_shown(error.expected_key)}): it may be another "
                "server that pretends to be it, and nothing was sent. If its administrator says "
                f"that the key was changed: ssh-keygen -R {shlex.quote(name)}, and then once "
                f"{_ssh(name)}"
            ) from error
        self.ftp = self.client.open_sftp()
        self.ftp.get_channel().settimeout(SILENCE)


class _Refuse(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> NoReturn:
        raise FeatureError(
            f"the SFTP server {hostname} is not in ~/.ssh/known_hosts ({_shown(key)}), and nothing "
            f"was sent to it. Run once {_ssh(hostname)}, compare the key with what its "
            "administrator says, and answer yes"
        )


def _add_known_hosts(keys: paramiko.HostKeys) -> None:
    """Add what the known_hosts files say; a key that one of them revokes is unknown."""
    entries, revoked = [], []
    for file in KNOWN_HOSTS:
        try:
            text = Path(file).expanduser().read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # most machines have one of them
        for line in map(str.strip, text.splitlines()):
            if line.startswith("@revoked"):
                revoked.append(_entry(line.partition(" ")[2].strip()))
            elif line and not line.startswith(("#", "@")):
                entries.append(_entry(line))
    refused = [entry.key for entry in revoked if entry]
    for entry in entries:
        if entry and entry.key and entry.key not in refused:
            for name in entry.hostnames or ():
                # the first line of a host and type counts, as for ssh
                if entry.key.get_name() not in (keys.lookup(name) or {}):
                    keys.add(name, entry.key.get_name(), entry.key)


def _entry(line: str) -> HostKeyEntry | None:
    try:
        return HostKeyEntry.from_line(line)
    except (InvalidHostKey, paramiko.SSHException, binascii.Error, ValueError):
        return None  # as ssh, which skips such lines


def _shown(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.fingerprint}"


def _name(host: str, port: int) -> str:
    """Return how known_hosts names a server."""
    return host if port == SSH_PORT else f"[{host}]:{port}"


def _ssh(name: str) -> str:
    """Return the command that connects to a server, given by its name in known_hosts."""
    host, found, port = name.rpartition("]:")
    return f"'ssh -p {port} {host[1:]}'" if found else f"'ssh {name}'"
