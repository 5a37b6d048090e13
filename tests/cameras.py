"""Cameras for the tests: clips that are sent as MPEG-TS over HTTP, in real time or all at once."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import av

Chunks = list[tuple[float, bytes]]  # seconds of the clip, what is sent by then


def transport_stream(clip: Path) -> Chunks:
    """Return a clip as MPEG-TS, packet by packet."""
    chunks: Chunks = []
    buffer = BytesIO()
    options = {"flush_packets": "1"}
    with av.open(str(clip)) as source, av.open(buffer, "w", "mpegts", options) as sink:
        streams = {s.index: sink.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            at = float(packet.dts * packet.time_base)
            packet.stream = streams[packet.stream.index]
            sink.mux(packet)
            chunks.append((at, _taken(buffer)))
    return [*chunks, (chunks[-1][0], _taken(buffer))]


def _taken(buffer: BytesIO) -> bytes:
    content = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return content


def whole(chunks: Chunks) -> bytes:
    return b"".join(content for _, content in chunks)


class Camera:
    """An HTTP server that has something else for each connection, and then nothing any more.

    Args:
        shows: what each connection gets before it is cut; None refuses it.
        paced: send in real time.
    """

    def __init__(self, shows: list[Chunks | None], paced: bool = True) -> None:
        rest = list(shows)
        self.sent = threading.Event()  # the first show is over

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:
                show = rest.pop(0) if rest else None
                handler.send_response(503 if show is None else 200)
                handler.send_header("Content-Type", "video/mp2t")
                handler.end_headers()
                began = time.monotonic()
                for at, content in show or []:
                    if paced:
                        time.sleep(max(0.0, began + at - time.monotonic()))
                    handler.wfile.write(content)
                self.sent.set()

            def log_message(handler, *words: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/live"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
