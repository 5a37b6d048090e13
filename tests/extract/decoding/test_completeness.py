"""Files that were cut short say so, in every container; whole ones do not."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from command import avarnet
from recorded import ffmpeg, record

from extract.decoding.container import ClipError, probe
from extract.extractor import Extractor
from features import Flag, Recipe

H264 = "-c:v libx264 -preset veryfast -c:a aac"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -c:a libopus"
MPEG2 = "-c:v mpeg2video -c:a mp2"
STATED = "its container states"
INSIDE = "in the middle of a packet"

# name -> ffmpeg's options, what tells that it was cut
KINDS = {
    "a.mp4": (f"{H264} -movflags +faststart", STATED),
    "uneven.mp4": (f"{H264} -movflags +faststart -vf setpts=N*N*8/75/25/TB", STATED),
    "fragments.mp4": (f"{H264} -movflags frag_keyframe+empty_moov -g 25", f"{STATED}|{INSIDE}"),
    "audio-last.mp4": (f"{H264} -movflags +faststart -max_interleave_delta 0", STATED),
    "indexed.mp4": (f"{H264} -movflags frag_keyframe+empty_moov+global_sidx -g 25", STATED),
    "a.mkv": (H264, STATED),
    "live.mkv": (f"{H264} -f matroska -live 1", INSIDE),
    "a.webm": (VP9, STATED),
    "live.webm": (f"{VP9} -f webm -live 1", INSIDE),
    "a.flv": (H264, STATED),
    "live.flv": (f"{H264} -flvflags no_duration_filesize", INSIDE),
    "a.wmv": ("-c:v wmv2 -c:a wmav2", STATED),
    "a.asf": ("-c:v mpeg4 -c:a libmp3lame", STATED),
    "mpeg4.avi": ("-c:v mpeg4 -c:a libmp3lame", STATED),
    "h264.avi": ("-c:v libx264 -bf 3 -c:a libmp3lame", STATED),
    "mjpeg.avi": ("-c:v mjpeg -c:a pcm_s16le", STATED),
    "a.ts": (H264, INSIDE),
    "a.m2ts": (H264, INSIDE),
    "a.mpg": (MPEG2, INSIDE),
    "a.vob": (f"{MPEG2} -f vob", INSIDE),
    "a.ogv": ("-c:v libtheora -c:a libvorbis", INSIDE),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for name, (how, _) in KINDS.items():
        record(folder / name, *shlex.split(how))
    # whose streams do not begin at zero, or do not end together
    record(folder / "later.mkv", *shlex.split(f"{H264} -output_ts_offset 30"))
    record(folder / "later.flv", *shlex.split(f"{H264} -output_ts_offset 30"))
    record(folder / "later.mp4", *shlex.split(f"{H264} -output_ts_offset 30"))
    record(folder / "silent.mp4", *shlex.split(f"{H264} -an"))
    record(folder / "short-sound.mkv", *shlex.split(f"{H264} -af atrim=end=2"))
    record(folder / "long-sound.mp4", *shlex.split(f"{H264} -af apad=pad_dur=4"))
    record(folder / "index-last.mp4", *shlex.split(H264))
    return folder


def cut(path: Path, source: Path, share: float) -> Path:
    path.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])
    return path


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.45, 0.8])
def test_a_file_cut_short(whole: Path, tmp_path: Path, name: str, share: float) -> None:
    path = cut(tmp_path / name, whole / name, share)
    if path.stat().st_size % 188 == 0 and path.suffix == ".ts":
        path.write_bytes(path.read_bytes()[:-1])  # else nothing could tell
    media = probe(path)
    assert media.flags == {"CUT_SHORT"}
    assert re.search(KINDS[name][1], media.cut_short)
    assert "the file was cut short" in media.cut_short


def test_whole_files(whole: Path) -> None:
    for path in sorted(whole.iterdir()):
        media = probe(path)
        assert (media.flags, media.cut_short) == (frozenset(), ""), path.name


def test_an_index_that_stood_at_the_end(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="its index is missing, which stands at the end"):
        probe(cut(tmp_path / "a.mp4", whole / "index-last.mp4", 0.9))


def test_frames_that_were_dropped_at_the_end_of_an_avi(whole: Path, tmp_path: Path) -> None:
    """Recorders write empty packets for frames that are as the one before; so for the last 100."""
    content = bytearray((whole / "mjpeg.avi").read_bytes())
    at, seen = content.index(b"movi") + 4, 0
    while content[at : at + 4] in (b"00dc", b"01wb"):
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        seen += content[at : at + 4] == b"00dc"
        if content[at : at + 4] == b"00dc" and seen > 50:
            content[at + 4 : at + 16] = bytes(4) + b"JUNK" + (length - 8).to_bytes(4, "little")
        at += 8 + length + length % 2
    del content[content.index(b"idx1") :]  # else it is believed
    content[4:8] = (len(content) - 8).to_bytes(4, "little")
    assert seen == 150
    path = tmp_path / "a.avi"
    path.write_bytes(content)
    media = probe(path)
    assert len(media.frame_times) == 50
    assert not media.flags


def test_rewritten_by_pyav(whole: Path, tmp_path: Path) -> None:
    """Its muxers are newer ones than those of the ffmpeg program here."""
    for suffix in ("mp4", "mkv", "ts", "flv"):
        path = tmp_path / f"a.{suffix}"
        with av.open(str(whole / "a.mp4")) as given, av.open(str(path), "w") as made:
            streams = {s.index: made.add_stream_from_template(s) for s in given.streams}
            for packet in given.demux():
                if packet.size:
                    packet.stream = streams[packet.stream_index]
                    made.mux(packet)
        assert probe(path).cut_short == "", suffix


def test_what_follows_the_last_packet_is_no_part_of_one(whole: Path, tmp_path: Path) -> None:
    """Recorders reserve space, and joined files begin with half a packet."""
    for name, before, after in [
        ("a.ts", b"", bytes(1000)),
        ("a.ts", b"\xff" * 77, b""),
        ("a.ts", b"", b"\xff" * 300),
        ("a.mpg", b"", bytes(5000)),
        ("live.mkv", b"", bytes(300)),
        ("a.mp4", b"", bytes(300)),
        ("fragments.mp4", b"", bytes(300)),
        ("a.avi", b"", bytes(300)),
    ]:
        source = whole / name.replace("a.avi", "mpeg4.avi")
        path = tmp_path / name
        path.write_bytes(before + source.read_bytes() + after)
        assert probe(path).cut_short == "", (name, len(before), len(after))


def test_real_files_are_whole(shared: Path) -> None:
    """Every file that can be read, and every sixth of the surveillance clips."""
    clips = sorted((shared / "surv-fight").glob("*/*.mp4"))[::6]
    read = 0
    for path in [*sorted((shared / "media").iterdir()), *clips]:
        try:
            media = probe(path)
        except ClipError:
            continue
        read += 1
        assert not media.flags, (path.name, media.cut_short)
    assert read > 40


def test_real_files_cut_short(shared: Path, tmp_path: Path) -> None:
    """With its index first, which most of them are written without, and cut at 45 %."""
    for number, source in enumerate(sorted((shared / "surv-fight").glob("*/*.mp4"))[::30]):
        path = tmp_path / f"{number}.mp4"
        ffmpeg("-i", source, "-c", "copy", "-movflags", "+faststart", path)
        assert probe(path).cut_short == ""
        assert STATED in probe(cut(path, path, 0.45)).cut_short


def test_the_flag_reaches_the_features(whole: Path, tmp_path: Path, recipe: Recipe) -> None:
    extractor = Extractor(recipe, "cpu")
    try:
        cut_off = extractor(cut(tmp_path / "a.mp4", whole / "a.mp4", 0.45))
        joined = tmp_path / "joined.ts"
        joined.write_bytes((whole / "a.ts").read_bytes() * 2)
        twice = extractor(joined)
        healthy = extractor(whole / "a.mp4")
    finally:
        extractor.close()
    assert Flag.CUT_SHORT in cut_off.flags
    assert len(cut_off) < 13
    assert cut_off.video_valid.all()
    assert Flag.CLOCK_JUMP in twice.flags
    assert Flag.CUT_SHORT not in twice.flags
    assert len(twice) == 48
    assert twice.video_valid.all()
    assert healthy.flags == Flag.NONE


def test_manifest_check_warns(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos" / "Fight"
    folder.mkdir(parents=True)
    cut(folder / "cut.mp4", whole / "a.mp4", 0.45)
    shutil.copy(whole / "a.mkv", folder / "whole.mkv")
    manifest = tmp_path / "m.jsonl"
    avarnet("manifest", "folders", str(tmp_path / "videos"), "-o", str(manifest))
    found = json.loads(avarnet("manifest", "check", str(manifest), "--json"))
    assert [(f["kind"], f["severity"], f["clip"]) for f in found["findings"]] == [
        ("cut-short", "warning", "Fight/cut")
    ]
    assert STATED in found["findings"][0]["problem"]


@pytest.mark.parametrize("name", KINDS)
def test_whatever_is_in_the_file(whole: Path, tmp_path: Path, name: str) -> None:
    """Damaged anywhere, above all at its end: it is read, or refused in words."""
    rng = np.random.default_rng(0)
    source = np.frombuffer((whole / name).read_bytes(), np.uint8)
    path = tmp_path / name
    for span in (len(source), 3000, 200, 20):
        content = source[: rng.integers(1, len(source))].copy() if span == 3000 else source.copy()
        where = len(content) - rng.integers(1, min(span, len(content)) + 1, 12)
        content[where] = rng.integers(0, 256, 12)
        path.write_bytes(content.tobytes())
        try:
            media = probe(path)
        except ClipError:
            continue
        assert media.duration > 0
        assert (np.diff(media.frame_times) >= 0).all()
