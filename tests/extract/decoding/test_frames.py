"""Each snippet's frame is the one that ffmpeg shows then, from every codec and container."""

from __future__ import annotations

import shlex
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from recorded import HEIGHT, RATE, WIDTH, ffmpeg, join, number_of, numbers, record, times

from extract.decoding.container import ClipError, Media, probe
from extract.decoding.frames import CLOCK_SLACK, frames
from extract.live import stream_receiver as receiver
from extract.live.stream_receiver import ReceivedSnippet
from extract.preprocessing import Preparation

STEP = 0.25  # seconds
H264 = "-c:v libx264 -preset veryfast -c:a aac"
HEVC = "-c:v libx265 -preset veryfast -x265-params log-level=none -c:a aac"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -c:a libopus"
UNEVEN = r"-vf 'setpts=PTS+0.013*mod(N\,4)/TB' -fps_mode passthrough"

WHOLE = {
    "a.mp4": f"{H264} -bf 3",
    "b-pyramid.mp4": f"{H264} -bf 5 -b-pyramid normal -refs 4",
    "open.mp4": f"{H264} -g 20 -bf 3 -flags -cgop -x264-params open-gop=1",
    "uneven.mp4": f"{H264} {UNEVEN} -video_track_timescale 12800",
    "fragments.mp4": f"{H264} -movflags frag_keyframe+empty_moov -g 25",
    "hevc.mp4": f"{HEVC} -g 20",
    "mpeg4.mp4": "-c:v mpeg4 -bf 2 -b:v 1M -c:a aac",
    "vp9.mp4": VP9,
    "a.mov": f"{H264} -bf 3",
    "mjpeg.mov": "-c:v mjpeg -c:a pcm_s16le",
    "a.mkv": f"{H264} -bf 3",
    "uneven.mkv": f"{H264} {UNEVEN}",
    "hevc.mkv": f"{HEVC} -g 20",
    "mpeg2.mkv": "-c:v mpeg2video -bf 2 -b:v 1M -c:a mp2",
    "vp9.webm": VP9,
    "vp8.webm": "-c:v libvpx -b:v 200k -auto-alt-ref 1 -lag-in-frames 16 -c:a libvorbis",
    "a.ts": f"{H264} -bf 3",
    "hevc.ts": f"{HEVC} -g 20",
    "a.m2ts": f"{H264} -bf 3",
    "mpeg2.ts": "-c:v mpeg2video -bf 2 -b:v 1M -c:a mp2",
    "a.mpg": "-c:v mpeg2video -b:v 1M -c:a mp2",
    "b-frames.mpg": "-c:v mpeg2video -bf 2 -b:v 1M -c:a mp2",
    "h264.mpg": "-c:v libx264 -preset veryfast -bf 3 -c:a mp2 -f vob",
    "a.flv": f"{H264} -bf 3",
    "flv1.flv": "-c:v flv -b:v 1M -c:a libmp3lame -ar 44100",
    "h264.avi": "-c:v libx264 -preset veryfast -bf 3 -c:a libmp3lame",
    "no-b-frames.avi": "-c:v libx264 -preset veryfast -bf 0 -c:a libmp3lame",
    "mpeg4.avi": "-c:v mpeg4 -bf 2 -b:v 1M -c:a libmp3lame",
    "mjpeg.avi": "-c:v mjpeg -c:a pcm_s16le",
    "wmv2.avi": "-c:v wmv2 -b:v 1M -c:a libmp3lame",
    "a.wmv": "-c:v wmv2 -b:v 1M -c:a wmav2",
    "h264.asf": f"{H264} -bf 3",
    "a.ogv": "-c:v libtheora -b:v 1M -c:a libvorbis",
    "a.nut": f"{H264} -bf 3",
}


def taken(path: Path) -> tuple[list[int], Media]:
    """Return the number that each snippet's frame shows; -1 for one that is missing."""
    media = probe(path)
    middles = (np.arange(int(np.ceil(media.duration / STEP - 1e-3))) + 0.5) * STEP
    wanted = np.searchsorted(media.frame_times, middles + CLOCK_SLACK) - 1
    return [number_of(p) if p.size else -1 for p in frames(path, media, wanted)], media


def shown(path: Path, snippets: int) -> list[int]:
    """Return the number that ffmpeg shows in the middle of each snippet after its first frame."""
    at, seen = times(path)["video"], numbers(path)
    assert len(at) == len(seen)
    middles = (np.arange(snippets) + 0.5) * STEP
    return [seen[k] for k in np.searchsorted(at - at[0], middles + CLOCK_SLACK) - 1]


@pytest.mark.parametrize("name", WHOLE)
def test_every_snippet_s_frame(tmp_path: Path, name: str) -> None:
    path = record(tmp_path / name, *shlex.split(WHOLE[name]))
    ours, media = taken(path)
    assert 24 <= len(ours) <= 25  # ffmpeg writes some AVI files with an empty packet
    assert ours == shown(path, len(ours))
    assert not media.flags
    assert len(set(ours)) == len(ours)  # the pictures do differ


def test_the_picture_need_not_be_the_first_stream(tmp_path: Path) -> None:
    """With B-frames, the last ones come out of the decoder when it is flushed."""
    source = record(tmp_path / "a.mp4", *shlex.split(f"{H264} -bf 3"))
    path = tmp_path / "sound-first.mp4"
    ffmpeg("-i", source, "-map", "0:a", "-map", "0:v", "-c", "copy", path)
    media = probe(path)
    last = list(frames(path, media, np.arange(140, 150)))
    assert [number_of(picture) if picture.size else -1 for picture in last] == [*range(140, 150)]


@pytest.mark.parametrize("second", [0, 600])
@pytest.mark.parametrize("name", ["a.ts", "hevc.ts", "a.m2ts", "b-frames.mpg"])
def test_two_recordings_put_together(tmp_path: Path, second: float, name: str) -> None:
    """Their clock restarts, or jumps to 600 s: every frame of both parts is there, in its place."""
    how = shlex.split(WHOLE[name])
    parts = [
        record(tmp_path / f"{n}-{name}", *how, "-output_ts_offset", offset, frames=75)
        for n, offset in enumerate((0, second))
    ]
    path = join(tmp_path / name, *parts)
    ours, media = taken(path)
    assert ours == shown(path, 24)
    assert media.flags == {"CLOCK_JUMP"}
    theirs = times(path)["video"]
    assert len(media.frame_times) == len(theirs) == 150
    assert np.abs(media.frame_times - (theirs - theirs[0])).max() < 1e-3
    assert media.duration == pytest.approx(6.0, abs=0.05)


def test_a_file_that_gives_decoding_times_for_those_of_display(tmp_path: Path) -> None:
    """As copying a raw stream into an MP4 does: frame k of 25 a second is shown at k / 25 s."""
    source = record(tmp_path / "a.mp4", *shlex.split(f"{H264} -bf 3"), sound=False)
    path = tmp_path / "copied.mp4"
    with av.open(str(source)) as given, av.open(str(path), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.size:
                packet.dts += 10_000  # none below zero, which MP4 would leave out
                packet.pts, packet.stream = packet.dts, stream
                made.mux(packet)
    ours, media = taken(path)
    assert ours == [int((k + 0.5) * STEP * RATE + 1e-6) for k in range(24)]
    assert media.lateness is not None


def test_edits(tmp_path: Path) -> None:
    """A second from frame 0 on, two from frame 76 on; the decoder begins before what is shown."""
    source = record(tmp_path / "a.mp4", *shlex.split(f"{H264} -g 30 -bf 3"), sound=False)
    path = tmp_path / "edited.mp4"
    path.write_bytes(_edited(source.read_bytes(), [(1000, 1024), (2000, 39_936)]))
    ours, media = taken(path)
    assert ours == shown(path, len(ours))
    assert len(media.frame_times) == 75
    assert media.duration == pytest.approx(3.0, abs=0.05)
    assert not media.flags


def _edited(content: bytes, edits: list[tuple[int, int]]) -> bytes:
    """Give an MP4 whose index is at its end other edits: (length in ms, from where in ticks)."""
    result = bytearray(content)
    at = content.index(b"elst") - 4
    size = int.from_bytes(content[at : at + 4])
    body = b"".join(struct.pack(">IiI", *edit, 0x10000) for edit in edits)
    new = struct.pack(">I4sII", 16 + len(body), b"elst", 0, len(edits)) + body
    for name in (b"moov", b"trak", b"edts"):
        box = content.rindex(name, 0, at + 8) - 4
        longer = int.from_bytes(content[box : box + 4]) + len(new) - size
        result[box : box + 4] = struct.pack(">I", longer)
    result[at : at + size] = new
    return bytes(result)


def test_packets_of_which_some_have_no_time(tmp_path: Path) -> None:
    """MPEG-TS need not time every frame; the decoder's order and the times there are tell it."""
    source = record(tmp_path / "a.ts", *shlex.split(f"{H264} -bf 3"))
    ours, media = taken(source)
    path = tmp_path / "untimed.ts"
    path.write_bytes(_without_times(source.read_bytes(), keep_every=7))
    with av.open(str(path)) as container:
        packets = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert packets.count(None) > 100
    again, poorer = taken(path)
    assert again == ours == shown(source, 24)
    assert poorer.duration == pytest.approx(media.duration, abs=0.05)
    assert poorer.first_frame == pytest.approx(media.first_frame, abs=0.05)


def _without_times(content: bytes, keep_every: int) -> bytes:
    """Take the times out of the headers of the picture's packets, but for every n-th of them."""
    result, seen = bytearray(content), 0
    for at in range(0, len(content), 188):
        begins = content[at + 1] & 0x40
        header = at + 4 + (content[at + 4] + 1 if content[at + 3] & 0x20 else 0)
        if not begins or content[header : header + 4] != b"\0\0\1\xe0":
            continue
        if seen % keep_every:
            result[header + 7] &= 0x3F
            length = content[header + 8]
            result[header + 9 : header + 9 + length] = b"\xff" * length
        seen += 1
    return bytes(result)


@pytest.mark.parametrize("name", ["a.mp4", "h264.avi", "no-b-frames.avi", "a.ts", "untimed.ts"])
def test_a_stream_shows_the_same_frames(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `avarnet watch` reads as it comes; a file is a stream that may still grow."""
    monkeypatch.setattr(receiver, "GROWN_SECONDS", 1.0)
    path = record(tmp_path / name, *shlex.split(WHOLE.get(name, WHOLE["a.ts"])))
    if name == "untimed.ts":
        path.write_bytes(_without_times(path.read_bytes(), keep_every=7))
    eye = Preparation(HEIGHT, (HEIGHT, WIDTH), Image.Resampling.BILINEAR)
    events = receiver.Receiver(str(path), STEP, 0.0, {"video": eye})
    snippets = [event for event in events if isinstance(event, ReceivedSnippet)]
    seen = [number_of(snippet.pixels["video"]) for snippet in snippets]
    assert len(seen) == 24
    assert seen == taken(path)[0][:24]


def test_a_raw_stream_cannot_be_watched(tmp_path: Path) -> None:
    path = record(tmp_path / "a.h264", "-c:v", "libx264", "-an")
    eye = Preparation(HEIGHT, (HEIGHT, WIDTH), Image.Resampling.BILINEAR)
    with pytest.raises(ClipError, match=r"raw h264 stream, without times.*-framerate RATE"):
        list(receiver.Receiver(str(path), STEP, 0.0, {"video": eye}))


@pytest.mark.parametrize(
    ("name", "codec", "message"),
    [
        ("a.h264", "-c:v libx264", "raw h264 stream: 150 frames without times.*-framerate 25 "),
        ("a.264", "-c:v libx264 -bf 0", "raw h264 stream: 150 frames without times"),
        ("a.hevc", HEVC, "raw hevc stream: 150 frames without times"),
        ("a.265", HEVC, "raw hevc stream: 150 frames without times"),
        ("a.mjpeg", "-c:v mjpeg", "raw mjpeg stream: 150 frames without times.*-framerate RATE "),
    ],
)
def test_a_raw_stream_is_refused(tmp_path: Path, name: str, codec: str, message: str) -> None:
    path = record(tmp_path / name, *shlex.split(codec), "-an")
    with pytest.raises(ClipError, match=message) as refused:
        probe(path)
    # the way out is one: it makes a file that is read, with each frame in its place
    words = shlex.split(str(refused.value).partition(": ffmpeg ")[2].replace("RATE", "25"))
    assert words[-1] == "a.mp4"
    words[words.index(name)], words[-1] = str(path), str(tmp_path / "a.mp4")
    ffmpeg(*words)
    ours, _ = taken(tmp_path / "a.mp4")
    assert ours == [int((k + 0.5) * STEP * RATE + 1e-6) for k in range(24)]


def test_a_raw_stream_that_must_name_its_rate_is_read(tmp_path: Path) -> None:
    path = record(tmp_path / "a.m2v", "-c:v", "mpeg2video", "-b:v", "1M", "-an")
    assert taken(path)[0] == shown(path, 24)


def test_a_stream_that_begins_in_the_middle_of_a_file(tmp_path: Path) -> None:
    """In MPEG-TS a track can be added at any time; the picture goes on."""
    first = record(tmp_path / "0.ts", *shlex.split(f"{H264} -bf 3"), frames=75, sound=False)
    parts = [first]
    for number, offset in enumerate((3, 6)):
        how = shlex.split(f"{H264} -bf 3 -output_ts_offset {offset} -streamid 1:{0x120 + number}")
        parts.append(record(tmp_path / f"{offset}.ts", *how, frames=75))
    path = join(tmp_path / "whole.ts", *parts)
    for _ in range(5):  # the error that PyAV raises depends on what is in the memory
        ours, media = taken(path)
        assert len(media.frame_times) == 225
        assert ours == shown(path, len(ours))


def test_without_a_decoder(tmp_path: Path) -> None:
    source = record(tmp_path / "a.mp4", *shlex.split(f"{H264} -bf 3")).read_bytes()
    path = tmp_path / "rare.mp4"
    path.write_bytes(source.replace(b"mp4a", b"zzzz"))
    assert taken(path)[0] == taken(tmp_path / "a.mp4")[0]  # the sound does not matter here
    path.write_bytes(source.replace(b"avc1", b"zzzz"))
    with pytest.raises(ClipError, match="no decoder for its picture"):
        probe(path)
