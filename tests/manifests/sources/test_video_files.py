"""Folders of videos: links, suffixes, names that can be no id, and what is said of the rest."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from manifests import ManifestError, from_folders, videos_below
from manifests.sources import video_files as listing


def touch(folder: Path, *names: str | bytes) -> Path:
    for name in names:
        file = folder / os.fsdecode(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return folder


def below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in videos_below(folder).videos]


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "disk", "crash/1.mp4", "crash/deep/2.mkv", "one.mp4", "n.txt")
    videos = touch(tmp_path / "videos", "calm/3.mp4")
    (videos / "crash").symlink_to(tmp_path / "disk" / "crash")  # absolute
    (videos / "calm" / "more").symlink_to("../../disk/crash/deep")  # relative, in the other one
    (videos / "calm" / "4.mp4").symlink_to(tmp_path / "disk" / "one.mp4")
    (videos / "far.mp4").symlink_to(tmp_path / "far", target_is_directory=True)
    touch(tmp_path / "far", "5.mp4")
    command = ["find", "-L", ".", "-type", "f", "-name", "*.m??"]
    found = subprocess.run(command, cwd=videos, capture_output=True, text=True, check=True)
    by_find = {line.removeprefix("./") for line in found.stdout.splitlines()}
    # `find` lists what has two names twice; here the one nearer to the top counts
    assert {"calm/more/2.mkv", "crash/deep/2.mkv"} <= by_find
    assert set(below(videos)) == by_find - {"calm/more/2.mkv"}
    assert videos_below(videos).not_followed == {
        videos / "calm" / "more": f"the same folder as {videos / 'crash' / 'deep'}"
    }


def test_loops_end_and_each_folder_is_listed_once(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "b/1.mp4", "b/deep/2.mp4", "c/3.mp4")
    up = {
        "b/deep/here": ".",
        "b/deep/up": "..",
        "b/top": str(videos),
        "b/root": "/",
        "b/out": str(tmp_path),
    }
    again = {"a": "b", "c/side": "../b/deep", "z": str(tmp_path / "videos" / "a")}
    for name, target in (up | again).items():
        (videos / name).symlink_to(target)
    # two folders outside that link to each other
    touch(tmp_path, "east/4.mp4", "west/5.mp4")
    (tmp_path / "east" / "w").symlink_to(tmp_path / "west")
    (tmp_path / "west" / "e").symlink_to(tmp_path / "east")
    (videos / "c" / "e").symlink_to(tmp_path / "east")
    found = videos_below(videos)
    assert below(videos) == ["b/1.mp4", "b/deep/2.mp4", "c/3.mp4", "c/e/4.mp4", "c/e/w/5.mp4"]
    not_followed = {p.relative_to(videos).as_posix(): why for p, why in found.not_followed.items()}
    assert not_followed == {
        **dict.fromkeys(up, "a link to a folder that it is in"),
        **{"a": f"the same folder as {videos}/b", "z": f"the same folder as {videos}/b"},
        "c/side": f"the same folder as {videos}/b/deep",
        "c/e/w/e": f"the same folder as {videos}/c/e",
    }
    assert {clip.label for clip in from_folders(videos, tmp_path).clips} == {"b", "c"}


def test_what_leads_nowhere_or_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a/1.mp4", "closed/2.mp4", "a/.3.mp4", "a/.git/4.mp4")
    for name in ("gone", "gone.mp4", "gone.txt"):
        (tmp_path / "a" / name).symlink_to(tmp_path / "no" / "where")
    for name in ("self", "self.mp4"):
        (tmp_path / "a" / name).symlink_to(name)
    real = os.scandir

    def scandir(path: Path) -> os.ScandirIterator[str]:  # root may read everything
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(listing.os, "scandir", scandir)
    found = videos_below(tmp_path)
    assert below(tmp_path) == ["a/1.mp4", "a/gone.mp4", "a/self.mp4"]  # `check` tells of the last
    assert found.unreadable == {
        tmp_path / "closed": "Permission denied",
        tmp_path / "a" / "gone": "a link that leads nowhere",
        tmp_path / "a" / "self": "a link that leads nowhere",
    }
    assert found.left_out == {".txt": 1}
    assert found.hidden == 2
    with pytest.raises(ManifestError, match="Permission denied; ask its owner"):
        videos_below(tmp_path / "closed")


def test_suffixes_are_taken_or_counted(tmp_path: Path) -> None:
    taken = ["MTS", "m2ts", "asf", "VOB", "3g2", "divx", "rmvb", "MP4", "mp4", "Ts", "dav", "h264"]
    touch(tmp_path / "a", *(f"{n}.{suffix}" for n, suffix in enumerate(taken)))
    touch(tmp_path / "a", "1.wav", "2.WAV", "3.srt", "README", "x.mp4~", "y.mp4.part")
    found = videos_below(tmp_path)
    assert len(found.videos) == len(taken)
    assert found.left_out == {".wav": 2, ".srt": 1, "": 1, ".mp4~": 1, ".part": 1}
    with pytest.raises(ManifestError, match=r"no videos in it \(files .*: \.wav: 1, no suffix: 1"):
        from_folders(touch(tmp_path / "none", "a/1.wav", "a/README"), tmp_path)


BAD = {
    f"a/{'x' * 199}.mp4": "is too long: 201 bytes, of at most 200",
    f"a/{'ü' * 100}.mp4": "is too long: 202 bytes, of at most 200",
    "a/new\nline.mp4": "has a control character or a line break",
    "a/bell\x07.mp4": "has a control character or a line break",
    "a/end .mp4": "has a space at its start or end",
    "a/back\\slash.mp4": "has a backslash",
    os.fsdecode(b"a/\xff.mp4"): "is not Unicode text",
}


def test_names_that_can_be_no_id_are_listed_and_the_rest_is_taken(tmp_path: Path) -> None:
    try:
        touch(tmp_path, *BAD)
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    with pytest.raises(ManifestError, match="none of its videos has a name") as refused:
        from_folders(tmp_path, tmp_path)
    assert all(fault in str(refused.value) for fault in BAD.values())
    touch(tmp_path, f"a/{'x' * 198}.mp4", "a/12:30:00.mp4", "b/ü 1.mp4")
    listed = from_folders(tmp_path, tmp_path)
    assert [clip.id for clip in listed.clips] == ["a/12:30:00", f"a/{'x' * 198}", "b/ü 1"]
    assert listed.refused == BAD
