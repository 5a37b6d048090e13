"""The process that receives a stream: connects, decodes, and cuts into snippets."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any

import av

from extract.decoding.container import ClipError, reason
from extract.decoding.frame_times import DisplayTimes
from extract.decoding.isolated_process import Connection
from extract.decoding.packet_clock import demux
from extract.decoding.sound_track import StampFilter, choose_sound_track
from extract.live.messages import Begin, Broken, End, Message, Request, SnippetData
from extract.live.time_grid import TimeGrid

OPEN_SECONDS = 10.0  # to wait for a server's answer
SILENT_SECONDS = 10.0  # without data from a server, after which the stream counts as cut
BLIND_SECONDS = 30.0  # of data without a picture in it; streams have key frames more often
RAW = ("h264", "hevc", "vvc")  # FFmpeg's names of streams that are in no container
# RTSP over TCP: by UDP, what is lost is lost without a word. To guess the rate of frames, which is
# not needed, FFmpeg would keep back the first second
OPTIONS = {"rtsp_transport": "tcp", "analyzeduration": "1000000", "fpsprobesize": "0"}

Send = Callable[[Message], None]


def main(parent: Connection) -> None:
    """Answer requests until there are no more."""
    with suppress(EOFError):
        while True:
            _receive(parent.receive(), parent.send)


def _receive(request: Request, send: Send) -> None:
    """Send what is received of a source until it ends or breaks."""
    why = "the stream ended"
    try:
        with _open(request) as container:
            _decode(container, request, send)
    except av.ExitError:  # FFmpeg's, where a time is over
        patience = SILENT_SECONDS if "://" in request.url else request.grown_seconds
        why = f"nothing came for {patience:g} s"
    except (av.FFmpegError, OSError, ValueError, ClipError) as error:
        why = reason(error)
        send(Broken(why))
    send(End(why))


def _open(request: Request) -> av.container.InputContainer:
    url = request.url
    if "://" in url:
        return av.open(url, options=OPTIONS, timeout=(OPEN_SECONDS, SILENT_SECONDS))
    if url.startswith("pipe:"):
        return av.open(url, options=OPTIONS)
    options = {**OPTIONS, "follow": "1"}  # wait for more at the file's end, till the time is over
    with suppress(OSError):  # FFmpeg says what is wrong with it
        if time.time() - os.path.getmtime(url.removeprefix("file:")) > request.grown_seconds:
            del options["analyzeduration"]  # it is whole: also a track that begins late is found
    return av.open(url, options=options, timeout=request.grown_seconds)


def _decode(container: av.container.InputContainer, request: Request, send: Send) -> None:
    video, track = container.streams.best("video"), choose_sound_track(container)
    if not isinstance(video, av.VideoStream):
        raise ClipError("there is no picture in it")
    if container.format.name in RAW:
        raise ClipError(
            f"it is a raw {container.format.name} stream, without times that say when a frame is "
            "shown; put it into a container at its camera's rate: ffmpeg -framerate RATE -i SOURCE "
            "-c:v libx264 -tune zerolatency -f mpegts - | avarnet watch -"
        )
    video.codec_context.thread_count = 1  # the cores are for the networks
    streams: list[av.VideoStream | av.AudioStream] = [video]
    if track is not None and request.window:
        streams.append(track)
    window = request.window if len(streams) > 1 else 0.0
    began = time.monotonic()
    grid = TimeGrid(request.step, window, request.prepare)
    display_times = DisplayTimes(container, video)
    ahead = 0.0

    def send_complete(last: bool = False) -> None:
        for number, pixels, sound in grid.complete_snippets(last):
            send(SnippetData(number, ahead, pixels, sound, received))

    try:
        for received, frames in _decoded(container, streams, display_times):
            for frame in frames:
                if isinstance(frame, av.AudioFrame):
                    grid.add_sound(frame)
                    continue
                at = display_times.time(frame)
                if at is None:
                    continue
                if grid.jumps(at):
                    send_complete(last=True)
                    send(Broken("the stream's clock jumped"))
                    grid = TimeGrid(request.step, window, request.prepare)
                if grid.origin is None:
                    send(Begin(received))
                grid.add_frame(frame, at)
                assert grid.origin is not None
                ahead = at - grid.origin - received
            send_complete()
            if grid.origin is None and received > began + BLIND_SECONDS:
                raise ClipError(f"none of its frames could be decoded in {BLIND_SECONDS:g} s")
    finally:
        received = time.monotonic()
        send_complete(last=True)


def _decoded(
    container: av.container.InputContainer,
    streams: Sequence[av.VideoStream | av.AudioStream],
    display_times: DisplayTimes,
) -> Iterator[tuple[float, list[av.VideoFrame | av.AudioFrame]]]:
    """Yield when a packet came, and its frames; damaged ones are left out.

    What the decoders still hold comes at the end, also where that is an error.
    """
    stamps = StampFilter(container)
    try:
        for packet in demux(container, streams):
            if isinstance(packet.stream, av.VideoStream):
                display_times.prepare(packet)
                yield time.monotonic(), _frames(packet.decode)
                continue
            came, heard = time.monotonic(), _frames(packet.decode)
            stamps.check(packet, heard)
            yield came, heard
    except av.FFmpegError:
        for stream in streams:
            end = av.Packet()
            end.stream, end.time_base = stream, stream.time_base or Fraction(1)  # of its frames
            yield time.monotonic(), _frames(end.decode)
        raise


def _frames(decode: Callable[[], list[Any]]) -> list[Any]:
    try:
        return [frame for frame in decode() if not frame.is_corrupt]
    except av.FFmpegError:
        return []
