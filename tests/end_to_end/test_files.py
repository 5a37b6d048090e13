"""Files of any name and kind, as the commands find, check and read them."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from command import as_json, at_a_terminal, avarnet, in_a_process
from rich.text import Text
from small_stores import clip, fill

from avarnet.console import plain, shown
from extract.decoding.container import probe
from extract.synthetic import make_clip
from manifests import VIDEO_SUFFIXES, Clip, write

pytestmark = pytest.mark.slow

# FFmpeg's muxers and the encoder that each can hold -> suffixes
KINDS = {
    ("mp4", "mpeg4"): [".mp4", ".m4v"],
    ("mov", "mpeg4"): [".mov", ".qt"],
    ("3gp", "mpeg4"): [".3gp"],
    ("3g2", "mpeg4"): [".3g2"],
    ("f4v", "libx264"): [".f4v"],
    ("flv", "flv1"): [".flv"],
    ("matroska", "mpeg4"): [".mkv", ".mk3d"],
    ("webm", "libvpx"): [".webm"],
    ("ogg", "libvpx"): [".ogv", ".ogm"],
    ("avi", "mpeg4"): [".avi", ".divx", ".xvid"],
    ("asf", "msmpeg4"): [".wmv", ".asf"],
    ("wtv", "mpeg2video"): [".wtv"],
    ("rm", "rv10"): [".rm", ".rmvb"],
    ("mpeg", "mpeg2video"): [".mpg", ".mpeg", ".mpe", ".mod"],
    ("mpeg1video", "mpeg1video"): [".m1v"],
    ("mpeg2video", "mpeg2video"): [".m2v"],
    ("vob", "mpeg2video"): [".vob"],
    ("mpegts", "libx264"): [".ts", ".mts", ".m2ts", ".m2t", ".mpegts", ".tp", ".trp", ".tod"],
    ("dv", "dvvideo"): [".dv", ".dif"],
    ("mxf", "mpeg2video"): [".mxf"],
    ("nut", "mpeg4"): [".nut"],
    ("ivf", "libvpx"): [".ivf"],
    ("yuv4mpegpipe", "wrapped_avframe"): [".y4m"],
}
# Dahua's recorders: FFmpeg reads it and writes none; the others have no clock
# raw streams have no times, and are refused with what to do: tests/extract/decoding
NOT_WRITTEN = {".dav", ".mjpeg", ".mjpg", ".h264", ".264", ".avc", ".h265", ".265", ".hevc"}


def test_each_suffix_that_is_taken_can_be_read(tmp_path: Path) -> None:
    assert {suffix for kind in KINDS.values() for suffix in kind} | NOT_WRITTEN == VIDEO_SUFFIXES
    for (muxer, codec), suffixes in KINDS.items():
        for suffix in suffixes:
            file = tmp_path / f"x{suffix}"
            with av.open(str(file), "w", format=muxer) as container:
                stream = container.add_stream(codec, rate=25)
                stream.width, stream.height = (720, 576) if muxer == "dv" else (64, 64)
                stream.pix_fmt = "yuv420p"
                for number in range(25):
                    grey = np.full((stream.height, stream.width, 3), 8 * number, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
                container.mux(stream.encode())
            assert len(probe(file).frame_times) == 25, suffix
            assert probe(file).duration == pytest.approx(1, abs=0.05), suffix
            file.unlink()


@pytest.fixture(scope="module")
def run(clips: Path, sound_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    avarnet("manifest", "folders", clips, "-o", folder / "m.jsonl")
    avarnet("manifest", "split", folder / "m.jsonl", "--test", 0.3, "--val", 0.3)
    network = ["--weights", "random", "--video-model", "mobilevit_xxs"]
    network += ["--audio-model", sound_model, "--workers", "1"]
    avarnet("extract", folder / "m.jsonl", folder / "store", *network)
    avarnet("train", folder / "m.jsonl", folder / "store", folder / "run", "--epochs", 1)
    return folder / "run"


STRANGE = "12:car:00 [b]", "back\\[x]", "new\nline", os.fsdecode(b"\xff")


@pytest.fixture
def cameras(tmp_path: Path) -> Path:
    """Recordings of one second: two of usual names, one behind a link, and some of other names."""
    disk = tmp_path / "disk"
    made = make_clip(disk / "1.mp4", "Normal", 3, seconds=1.0)
    folder = tmp_path / "cameras" / "door"
    folder.mkdir(parents=True)
    try:
        for name in ("plain", *STRANGE):
            shutil.copy(made, folder / f"{name}.mp4")
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    (folder.parent / "yard").symlink_to(disk)
    (folder.parent / "round").symlink_to(".")
    for name in ("x.wav", "y.wav", "README", ".hidden.mp4"):
        (folder / name).touch()
    return folder.parent


def test_folders_lists_the_files_that_are_left_out(
    cameras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")  # which is for terminals
    manifest = tmp_path / "m.jsonl"
    result = as_json("manifest", "folders", cameras, "-o", manifest, code=3)
    assert result["clips"] == 3
    assert result["refused"] == {
        f"door/{STRANGE[1]}.mp4": "has a backslash",
        f"door/{STRANGE[2]}.mp4": "has a control character or a line break",
        f"door/{STRANGE[3]}.mp4": "is not Unicode text",
    }
    assert result["left_out"] == {".wav": 2, "": 1}
    assert result["hidden"] == 1
    assert result["not_followed"] == {f"{cameras}/round": "a link to a folder that it is in"}
    assert result["unreadable"] == {}
    listed = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [entry["id"] for entry in listed] == [f"door/{STRANGE[0]}", "door/plain", "yard/1"]
    lines = avarnet("manifest", "folders", cameras, "-o", manifest, code=3).splitlines()
    for line in (
        "left out, no videos by suffix: 3 files (.wav 2, no suffix 1)",
        "left out, hidden: 1 name with a dot in front",
        f"not followed: {cameras}/round (a link to a folder that it is in)",
        "left out, as its name cannot be a clip's id: 3 videos (rename the file)",
        "  door/back\\[x].mp4: has a backslash",
        "  door/new\\nline.mp4: has a control character or a line break",
        "  door/\\xff.mp4: is not Unicode text",
    ):
        assert line in lines
    assert "unreadable" not in avarnet("manifest", "check", manifest)
    for name in STRANGE[1:]:
        (cameras / "door" / f"{name}.mp4").unlink()
    avarnet("manifest", "folders", cameras, "-o", manifest)  # exit code 0
    (cameras / "gone").symlink_to("/no/where")
    output = avarnet("manifest", "folders", cameras, "-o", manifest, code=3)
    assert f"cannot be read: {cameras}/gone (a link that leads nowhere)" in output


def test_official_videos_are_listed_the_same_way(shared: Path, tmp_path: Path) -> None:
    name = "Bad.Boys.1995__#01-11-55_01-12-40_label_G-B2-B6"
    (tmp_path / "disk").mkdir()
    (tmp_path / "videos").mkdir()
    (tmp_path / "disk" / f"{name}.MTS").write_bytes(b"x")
    (tmp_path / "disk" / f"{name}.npy").write_bytes(b"x")
    (tmp_path / "videos" / "test").symlink_to(tmp_path / "disk")
    command = ["manifest", "xd-violence", "--lists", shared / "xd-violence"]
    command += ["--videos", tmp_path / "videos", "-o", tmp_path / "m.jsonl"]
    result = as_json(*command)
    assert (result["clips"], len(result["missing"]), result["left_out"]) == (1, 4753, {".npy": 1})
    assert "1 file (.npy 1)" in avarnet(*command)


def test_predict_takes_a_folder_as_it_is(
    run: Path,
    cameras: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    answers = as_json("predict", run, "cameras", code=3)
    folder = "cameras/door"
    by_name = {answer["video"]: answer for answer in answers}
    expected = by_name[f"{folder}/plain.mp4"]["scores"]
    for name in STRANGE[:3]:  # no id is needed
        assert by_name[f"{folder}/{name}.mp4"]["scores"] == expected
    assert by_name["cameras/yard/1.mp4"]["scores"] == expected
    assert "rename the file" in by_name[f"{folder}/{STRANGE[3]}.mp4"]["error"]
    assert len(answers) == 6
    # a name that FFmpeg would take for a protocol
    shutil.copy(cameras / "door" / "plain.mp4", "12:30:00.mp4")
    (alone,) = as_json("predict", run, "12:30:00.mp4", "--html", "pages")
    assert alone["scores"] == expected
    assert 'src="12%3A30%3A00.mp4"' in Path("pages/12:30:00.html").read_text().replace("../", "")
    output = avarnet("predict", run, "cameras", code=3)
    assert "cameras/door/12:car:00 [b].mp4: " in output
    assert "cameras/door/back\\[x].mp4: " in output
    assert "cameras/door/new\\nline.mp4: " in output
    rows = csv.DictReader(avarnet("predict", run, "cameras", "--csv", code=3).splitlines(True))
    assert {row["video"] for row in rows} == set(by_name) - {f"{folder}/{STRANGE[3]}.mp4"}


def test_predict_warns_once_that_no_class_is_normal(
    run: Path, cameras: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(run, tmp_path / "run"))
    text = (changed / "run.json").read_text()
    (changed / "run.json").write_text(text.replace('"Normal"', '"Calm"'))
    output = avarnet("predict", changed, cameras, code=3)
    assert output.count(".mp4: ") == 5
    assert output.count("knows no normal class (train --normal LABEL)") == 1


def problems(folder: Path) -> Path:
    """A manifest of 200 clips without sound or intervals to check, and some faults."""
    clips = []
    for number in range(200):
        clips.append(Clip(f"calm/{number:03d}", f"calm/{number}.mp4", ("calm",)))
    make_clip(folder / "calm" / "0.mp4", "Normal", 3, seconds=1.0, sound=False)
    for number in range(1, 200):
        content = (folder / "calm" / "0.mp4").read_bytes()
        # as many bytes that no decoder reads, so that no two files are equal
        (folder / "calm" / f"{number}.mp4").write_bytes(content + b"\0\0\0\x0cfree%04d" % number)
    clips.append(Clip("gone/1", f"{'long ' * 20}/1.mp4", ("gone",)))
    clips.append(Clip("gone/2", f"{'long ' * 20}/2.mp4", ("gone",)))
    write(folder / "m.jsonl", clips)
    return folder / "m.jsonl"


def test_check_prints_equal_findings_once_and_cuts_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")  # which is for terminals
    manifest = problems(tmp_path)
    lines = in_a_process("manifest", "check", manifest, code=1).splitlines()
    missing, no_sound = (f"{kind}: " for kind in ("missing-file (2 times)", "no-sound (200 times)"))
    assert lines[0].startswith(f"error {missing}")
    where = tmp_path / ("long " * 20)
    assert lines[1:3] == [
        f"  line {200 + n}, gone/{n}: {where}/{n}.mp4 does not exist" for n in (1, 2)
    ]
    assert lines[3].startswith(f"warning {no_sound}")
    assert lines[4].startswith("  the clip has no sound: calm/000 (line 1), calm/001 (line 2), ")
    assert "(200 in all; --json names each)" in lines[4]
    assert lines[5:] == ["2 errors, 200 warnings"]
    found = as_json("manifest", "check", manifest, code=1)["findings"]
    assert [f["severity"] for f in found] == ["error"] * 2 + ["warning"] * 200
    assert [f["line"] for f in found] == [201, 202, *range(1, 201)]


def test_no_table_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")  # which is for terminals
    name = f"{'recorder-' * 20}/1:30"
    fill(tmp_path / "store", {name: clip(4, 1)})
    assert f"│ {name} │ 1.00 " in in_a_process("features", "list", tmp_path / "store")
    folded = at_a_terminal("features", "list", tmp_path / "store", COLUMNS="60", NO_COLOR="1")
    assert "…" not in folded
    assert max(len(line.rstrip()) for line in re.sub(r"\x1b\[[^m]*m", "", folded).split("\n")) <= 60
    cells = [line.split("│")[1].strip() for line in folded.splitlines() if line.count("│") == 5]
    assert "".join(cells) == name


def test_foreign_text_is_shown_as_it_is() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choice("\\\\[[]]/ab#@=: A1") for _ in range(rng.randint(1, 9)))
        for before, after in (("[red]", "[/]"), ("", ""), ("", "a"), ("(", "): [bold]x[/]")):
            markup = before + plain(text) + after
            bare = [re.sub(r"\[[a-z/]*\]", "", part) for part in (before, after)]
            assert Text.from_markup(markup, emoji=False).plain == bare[0] + text + bare[1]
    assert Text.from_markup(shown("\x1b]0;t\x07\x9b1m\u2028\udcff\ud800\n")).plain == (
        r"\x1b]0;t\x07\x9b1m\u2028\xff\ud800\n"
    )
