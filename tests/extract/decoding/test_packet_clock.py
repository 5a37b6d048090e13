"""One clock for files whose own restarts or jumps; the right times are those of ffmpeg."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from recorded import join, times
from recorded import record as numbered_film

from extract.decoding.packet_clock import PacketClock

TS = ["-c:v", "libx264", "-preset", "veryfast", "-c:a", "aac"]


def record(path: Path, *how: object) -> Path:
    return numbered_film(path, *how, frames=75)


def decoded(path: Path) -> tuple[dict[str, list[float]], int]:
    """Return when our clock has the frames of picture and sound, and how often it was put right."""
    found: dict[str, list[float]] = {"video": [], "audio": []}
    with av.open(str(path)) as container:
        streams = [container.streams.best("video"), container.streams.best("audio")]
        clock = PacketClock(container, [stream for stream in streams if stream is not None])
        for packet in clock.packets():
            for frame in packet.decode():
                found[packet.stream.type].append(frame.time)
        start = container.start_time / av.time_base
    return {kind: [time - start for time in seen] for kind, seen in found.items()}, clock.jumps


def agree(path: Path) -> int:
    """Compare both clocks; return how often ours was put right."""
    ours, jumps = decoded(path)
    for kind, theirs in times(path).items():
        assert len(ours[kind]) == len(theirs) > 0
        assert np.abs(ours[kind] - theirs).max() < 1e-3
    return jumps


@pytest.mark.parametrize(
    ("second", "jumps"),
    [(0, 1), (600, 1), (9, 0), (15, 1), (95_400, 1)],
    ids=["restart", "jump", "gap", "long-gap", "far"],
)
def test_two_recordings_put_together(tmp_path: Path, second: float, jumps: int) -> None:
    """Frames and samples have ffmpeg's times; the second part's clock begins at `second` s."""
    parts = [
        record(tmp_path / f"{start}.ts", *TS, "-output_ts_offset", start)
        for start in (0, second + 1e-3)  # not the same name for both
    ]
    path = join(tmp_path / "whole.ts", *parts)
    assert agree(path) == jumps
    ours, _ = decoded(path)
    assert len(ours["video"]) == 150
    gap = second - 3 if second == 9 else 0
    assert max(ours["video"]) == pytest.approx(6 - 0.04 + gap, abs=0.1)


def test_a_clock_that_restarts_at_an_earlier_time(tmp_path: Path) -> None:
    parts = [
        record(tmp_path / f"{start}.ts", *TS, "-output_ts_offset", start)
        for start in (700, 100, 400)
    ]
    path = join(tmp_path / "whole.ts", *parts)
    assert agree(path) == 2
    assert max(decoded(path)[0]["video"]) == pytest.approx(9 - 0.04, abs=0.2)


def test_a_clock_that_wraps_has_not_jumped(tmp_path: Path) -> None:
    """MPEG-TS counts to 2**33 / 90,000 s = 95,443.7 s; FFmpeg's reader unwraps that once."""
    path = record(tmp_path / "a.ts", *TS, "-output_ts_offset", 2**33 / 90_000 - 2)
    assert agree(path) == 0
    assert max(decoded(path)[0]["video"]) == pytest.approx(3 - 0.04, abs=0.1)


def test_program_streams_of_a_disc(tmp_path: Path) -> None:
    part = record(tmp_path / "part.mpg", "-c:v", "mpeg2video", "-c:a", "mp2")
    assert agree(join(tmp_path / "whole.mpg", part, part)) == 1


def test_picture_alone(tmp_path: Path) -> None:
    part = record(tmp_path / "part.ts", *TS, "-an")
    path = join(tmp_path / "whole.ts", part, part)
    ours, jumps = decoded(path)
    assert jumps == 1
    assert np.abs(ours["video"] - times(path)["video"]).max() < 1e-3


def test_a_recorder_s_parts_put_together(tmp_path: Path) -> None:
    """In Matroska, whose times ffmpeg leaves as they are: frame k of all is shown at k / 25 s."""
    codecs = ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-c:a", "libopus"]
    part = record(tmp_path / "part.webm", *codecs)
    ours, jumps = decoded(join(tmp_path / "whole.webm", part, part))
    assert jumps == 1
    assert np.abs(np.array(ours["video"]) - np.arange(150) / 25).max() < 0.06
    assert len(ours["video"]) == 150


def test_gaps_in_a_container_of_files_stay(tmp_path: Path) -> None:
    """A camera that records on movement leaves minutes out; MP4 and Matroska mean what they say."""
    source = record(tmp_path / "a.mkv", *TS, "-vf", "setpts=PTS+gte(N\\,40)*60/TB")
    assert agree(source) == 0
    assert max(decoded(source)[0]["video"]) == pytest.approx(63 - 0.04, abs=0.1)


@pytest.mark.parametrize(
    ("name", "codecs"),
    [
        ("a.ts", TS),
        ("a.mp4", [*TS, "-bf", "3"]),
        ("a.mkv", [*TS, "-bf", "3"]),
        ("a.flv", TS),
        ("a.avi", ["-c:v", "mpeg4", "-c:a", "libmp3lame"]),
        ("a.wmv", ["-c:v", "wmv2", "-c:a", "wmav2"]),
        ("a.webm", ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-c:a", "libopus"]),
        ("a.ogv", ["-c:v", "libtheora", "-c:a", "libvorbis"]),
        ("a.mpg", ["-c:v", "mpeg2video", "-c:a", "mp2"]),
    ],
)
def test_a_whole_recording_is_left_alone(tmp_path: Path, name: str, codecs: list[str]) -> None:
    path = record(tmp_path / name, *codecs)
    with av.open(str(path)) as container:
        streams = [*container.streams.video, *container.streams.audio]
        plain = [(p.stream.index, p.pts, p.dts) for p in container.demux(streams)]
    with av.open(str(path)) as container:
        clock = PacketClock(container, [*container.streams.video, *container.streams.audio])
        assert [(p.stream.index, p.pts, p.dts) for p in clock.packets()] == plain
    assert clock.jumps == 0


def test_flushing_packets_say_whose_they_are(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mkv", *TS)
    with av.open(str(path)) as container:
        streams = [container.streams.video[0], container.streams.audio[0]]
        packets = list(PacketClock(container, streams).packets())
    assert [p.stream_index for p in packets if not p.size] == [0, 1]


def test_real_files_are_left_alone(shared: Path) -> None:
    """None of them was put together."""
    files = [*(shared / "media").iterdir(), *sorted((shared / "surv-fight/fight").iterdir())[:10]]
    read = 0
    for file in files:
        with av.open(str(file)) as container:
            clock = PacketClock(container, [*container.streams.video, *container.streams.audio])
            try:
                read += sum(packet.size > 0 for packet in clock.packets())
            except av.FFmpegError:
                continue  # the damaged one
        assert clock.jumps == 0, file.name
    assert read > 1000
