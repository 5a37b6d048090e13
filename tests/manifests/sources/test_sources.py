"""Manifests from folders, tables and the official lists."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from manifests import (
    CODES,
    ManifestError,
    from_folders,
    from_ucf_crime,
    from_xd_violence,
    with_groups,
)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_surv_fight_with_its_recordings(shared: Path, tmp_path: Path) -> None:
    folder = shared / "surv-fight"
    clips = with_groups(from_folders(folder, tmp_path).clips, folder / "sources.csv").clips
    assert len(clips) == 236
    assert {clip.label for clip in clips} == {"fight", "noFight"}
    named = {clip.id: clip for clip in clips}
    assert named["fight/fi001"].group == "yt-7q6KJoSgxmY"
    assert all(clip.resolve(tmp_path).is_file() for clip in clips)


def test_folders_ids_and_hidden_files(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.mp4", "a/x.avi", "a/deep/y.MKV", "b/x.mp4", "b/.hidden.mp4", "b/n.txt")
    clips = from_folders(tmp_path, tmp_path).clips
    assert [clip.id for clip in clips] == ["a/deep/y", "a/x.avi", "a/x.mp4", "b/x"]
    assert [clip.label for clip in clips] == ["a", "a", "a", "b"]
    assert clips[0].path == "a/deep/y.MKV"


def test_folders_named_like_videos_and_names_within_names(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.mp4", "a/x.avi", "a/x.mp4.avi", "a/dir.mp4/n.txt")
    (tmp_path / "a" / "gone.mp4").symlink_to(tmp_path / "nowhere")
    ids = [clip.id for clip in from_folders(tmp_path, tmp_path).clips]
    assert ids == ["a/gone", "a/x.avi", "a/x.mp4", "a/x.mp4.avi"]


def test_folders_refuse_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    try:
        os.close(os.open(os.fsencode(tmp_path / "a") + b"/\xff.mp4", os.O_CREAT | os.O_WRONLY))
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    with pytest.raises(ManifestError, match="Rename the file"):
        from_folders(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a/n.txt"], "no videos"), (["x.mp4", "a/y.mp4"], "no class folder"), ([], "no videos")],
)
def test_folders_of_the_wrong_shape(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        from_folders(touch(tmp_path, *names), tmp_path)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such folder"):
        from_folders(tmp_path / "nowhere", tmp_path)


def test_groups_name_some_clips_in_any_way(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.mp4", "a/y.mp4", "a/z.mp4", "b/z.mp4", "b/w.mp4", "b/w.avi")
    groups = tmp_path / "g.csv"
    groups.write_text(
        "clip,source\nx,one\na/y.mp4,two\na/z,two\nb/w.avi,two\nz-9,one\n,three\nb/z,\n"
    )
    clips, ungrouped, unknown = with_groups(from_folders(tmp_path, tmp_path).clips, groups)
    assert {clip.id: clip.group for clip in clips} == {
        **{"a/x": "one", "a/y": "two", "a/z": "two"},
        **{"b/z": None, "b/w.avi": "two", "b/w.mp4": None},
    }
    assert ungrouped == ["b/w.mp4", "b/z"]
    assert unknown == ["z-9", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name,source\nx,one\n", "columns clip and source"),
        (b"clip,source\nx,one\na/y,two\nx,three\n", "line 4: clip x has source one already"),
        (b"clip,source\nx,one\na/x,two\n", "clip a/x has source one and, as a/x, two"),
        (b"clip,source\nx,one\nz,two\n", r"z may be any of 2 clips \(a/z, b/z\)"),
        (b"clip,source\nq,one\n", r"none of its 1 clips is here \(first: 'q'\).*such as a/x"),
        (b"clip,source\n", "none of its 0 clips"),
        (b"clip;source\nx;one\n;\na/x;two\n", "clip a/x has source one and, as a/x, two"),
        (b"clip,source\n\xff,one\n", "UTF-8"),
    ],
)
def test_groups_that_cannot_be(tmp_path: Path, text: bytes, message: str) -> None:
    touch(tmp_path, "a/x.mp4", "a/y.mp4", "a/z.mp4", "b/z.mp4")
    groups = tmp_path / "g.csv"
    groups.write_bytes(text)
    with pytest.raises(ManifestError, match=message):
        with_groups(from_folders(tmp_path, tmp_path).clips, groups)


def test_xd_violence(shared: Path, tmp_path: Path) -> None:
    lists = shared / "xd-violence"
    clips, missing, *_ = from_xd_violence(lists, tmp_path)
    assert not missing
    assert sum(clip.split == "train" for clip in clips) == 3954
    test = {clip.id: clip for clip in clips if clip.split == "test"}
    assert len(test) == 800
    assert sum(clip.label != "A" for clip in test.values()) == 500
    assert test["Bad.Boys.1995__#01-11-55_01-12-40_label_G-B2-B6"].labels == ("G", "B2", "B6")
    # the truth by an independent path: straight from the annotated frame numbers
    marked = 0
    for line in (lists / "annotations.txt").read_text().splitlines():
        name, *numbers = line.split()
        name = name[:-4] if name.endswith(".mp4") else name
        frames = list(map(int, numbers))
        truth = np.zeros(max(frames) + 50, np.uint8)
        for k in range(0, len(frames), 2):
            truth[frames[k] : frames[k + 1]] = 1
        assert (test[name].frame_labels(len(truth)) == truth).all(), name
        marked += 1
    assert marked == 500
    assert sum(len(clip.intervals or ()) > 0 for clip in test.values()) == 500
    normal = next(clip for clip in test.values() if clip.label == "A")
    assert not normal.frame_labels(100).any()


def test_xd_violence_refuses_annotations_without_a_clip(shared: Path, tmp_path: Path) -> None:
    for name in ("train.txt", "test.txt", "annotations.txt"):
        (tmp_path / name).write_bytes((shared / "xd-violence" / name).read_bytes())
    with open(tmp_path / "annotations.txt", "a") as file:
        file.write("\nnobody__#1_label_B1-0-0 3 4\n")
    with pytest.raises(ManifestError, match="nobody"):
        from_xd_violence(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train.txt", None, "train.txt.*give the folder of the official lists"),
        ("train.txt", "film__#1_label_B9-0-0", "film__#1_label_B9-0-0: expected"),
        ("test.txt", "film__#1_label_B1-0-0", "in the test list, but not annotated: 1 .*film__#1"),
        ("annotations.txt", "film__#1_label_B1-0-0 3", "expected pairs of frame numbers"),
        ("annotations.txt", "film__#1_label_B1-0-0 3 x", "expected pairs of frame numbers"),
        ("annotations.txt", "film__#1_label_B1-0-0", "no frame numbers"),
    ],
)
def test_xd_violence_refuses_damaged_lists(
    shared: Path, tmp_path: Path, file: str, text: str | None, message: str
) -> None:
    lists = Path(shutil.copytree(shared / "xd-violence", tmp_path / "lists"))
    if text is None:
        (lists / file).unlink()
    else:
        with open(lists / file, "a") as opened:
            opened.write(f"\n{text}\n")
    with pytest.raises(ManifestError, match=message):
        from_xd_violence(lists, tmp_path)


def test_xd_violence_with_some_of_its_videos(shared: Path, tmp_path: Path) -> None:
    name = "Bad.Boys.1995__#01-11-55_01-12-40_label_G-B2-B6"
    touch(tmp_path, f"videos/test/{name}.mp4")
    clips, missing, *_ = from_xd_violence(shared / "xd-violence", tmp_path, tmp_path / "videos")
    assert [clip.path for clip in clips] == [f"videos/test/{name}.mp4"]
    assert len(missing) == 4753
    with pytest.raises(ManifestError, match="none of the 4754"):
        from_xd_violence(shared / "xd-violence", tmp_path, touch(tmp_path / "none", "x.mp4"))


def test_ucf_crime(shared: Path, tmp_path: Path) -> None:
    lists = shared / "ucf-crime"
    clips, missing, *_ = from_ucf_crime(lists, tmp_path)
    assert not missing
    assert len(clips) == 1900
    assert sum(clip.label == "Normal" for clip in clips) == 950
    test = {clip.id: clip for clip in clips if clip.split == "test"}
    assert len(test) == 290
    checked = 0
    for line in (lists / "Temporal_Anomaly_Annotation.txt").read_text().splitlines():
        name, _, *numbers = line.split()
        truth = np.zeros(20_000, np.uint8)
        for first, last in (numbers[:2], numbers[2:]):
            if first != "-1":
                truth[int(first) : int(last)] = 1
        assert (test[name].frame_labels(len(truth)) == truth).all(), name
        checked += 1
    assert checked == 290
    assert test["Abuse028_x264"].path == "Abuse/Abuse028_x264.mp4"


def test_every_xd_violence_code_has_a_name(shared: Path, tmp_path: Path) -> None:
    clips, *_ = from_xd_violence(shared / "xd-violence", tmp_path)
    assert {label for clip in clips for label in clip.labels} == CODES.keys()
    assert CODES["A"] == "Normal"
    assert all(clip.intervals is None for clip in clips if clip.split == "train")


def test_ucf_crime_takes_the_listed_file_before_another_of_its_name(
    shared: Path, tmp_path: Path
) -> None:
    touch(tmp_path, "v/Abuse/Abuse028_x264.mp4", "v/A/Abuse028_x264.mp4", "v/A/Abuse030_x264.mp4")
    clips, missing, *_ = from_ucf_crime(shared / "ucf-crime", tmp_path, tmp_path / "v")
    assert {clip.id: clip.path for clip in clips} == {
        "Abuse028_x264": "v/Abuse/Abuse028_x264.mp4",
        "Abuse030_x264": "v/A/Abuse030_x264.mp4",
    }
    assert len(missing) == 1898


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Nobody_x264  Abuse  1  2  -1  -1", "clips annotated, but .*: 1 .*Nobody_x264"),
        ("Nobody_x264", "Nobody_x264: no frame numbers"),
        ("Nobody_x264  Abuse  1  2  -1", "expected pairs of frame numbers"),
    ],
)
def test_ucf_crime_refuses_damaged_annotations(
    shared: Path, tmp_path: Path, line: str, message: str
) -> None:
    lists = Path(shutil.copytree(shared / "ucf-crime", tmp_path / "lists"))
    with open(lists / "Temporal_Anomaly_Annotation.txt", "a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ManifestError, match=message):
        from_ucf_crime(lists, tmp_path)


def test_annotated_frames_become_seconds_of_each_data_set(shared: Path, tmp_path: Path) -> None:
    clips = from_xd_violence(shared / "xd-violence", tmp_path).clips
    riot = next(clip for clip in clips if clip.id == "v=S-7rRLrxnVQ__#1_label_B4-0-0")
    assert riot.intervals == ((0.0, 1517 / 24), (1970 / 24, 3038 / 24))
    assert np.flatnonzero(riot.frame_labels(1970)).tolist() == list(range(1517))
    clips = from_ucf_crime(shared / "ucf-crime", tmp_path).clips
    abuse = next(clip for clip in clips if clip.id == "Abuse028_x264")
    assert abuse.intervals == ((5.5, 8.0),)  # frames 165 to 240 at 30 a second
