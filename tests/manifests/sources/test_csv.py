"""Tables of clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests import ManifestError, from_csv


def test_csv_with_everything(tmp_path: Path) -> None:
    table = tmp_path / "sub" / "t.csv"
    table.parent.mkdir()
    table.write_bytes(
        b"\xef\xbb\xbfpath,label,group,start,end,audio\r\n"
        b"v/a.mp4,crash|fire,cam1,1.5,2,v/a.wav\r\nv/a.mp4,crash|fire,cam1,4,5,v/a.wav\r\n"
        b"v/b.mp4,normal,cam2,,,\r\n"
    )
    a, b = from_csv(table, tmp_path)
    assert (a.id, a.path, a.audio) == ("v/a", "sub/v/a.mp4", "sub/v/a.wav")
    assert a.labels == ("crash", "fire")
    assert a.intervals == ((1.5, 2.0), (4.0, 5.0))
    assert b.intervals == ()


def test_csv_repeated_rows_and_default_ids(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        "path,label,start,end\na.mp4,x,,\na.mp4,x,3,4\na.mp4,x,1,2\na.mp4,x,,\n../b.mp4,x,,\n"
        "/videos/c.mp4,x,,\n"
    )
    a, b, c = from_csv(table, tmp_path)
    assert a.intervals == ((1.0, 2.0), (3.0, 4.0))
    assert [b.id, b.path, b.intervals] == ["b", "../b.mp4", None]
    assert c.id == "c"
    assert c.resolve(tmp_path).resolve() == Path("/videos/c.mp4").resolve()
    table.write_text("path,label\na.mp4,x\n")
    assert from_csv(table, tmp_path)[0].intervals is None


ANNOTATED = "path,label,start,end\na.mp4,Crash,2,4\nb.mp4,Crash,,\nc.mp4,Normal,,\nd.mp4,calm,,\n"


def test_unannotated_is_not_the_same_as_no_anomaly(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(ANNOTATED)
    crash = ((2.0, 4.0),)
    for settings, others in (
        ({}, [None, (), None]),
        ({"normal": "calm"}, [None, None, ()]),
        ({"unannotated": "normal"}, [(), (), ()]),
    ):
        assert [c.intervals for c in from_csv(table, tmp_path, **settings)] == [crash, *others]
    table.write_text(ANNOTATED.replace("c.mp4,Normal", "c.mp4,Normal|Crash"))
    assert from_csv(table, tmp_path)[2].intervals is None


def test_two_labels_that_may_be_normal(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(ANNOTATED.replace("calm", "A"))
    with pytest.raises(ManifestError, match=r"t\.csv: A and Normal may each be .* with --normal"):
        from_csv(table, tmp_path)
    assert [c.intervals for c in from_csv(table, tmp_path, normal="A")][1:] == [None, None, ()]
    with pytest.raises(ManifestError, match="no clip is labelled quiet, which --normal names"):
        from_csv(table, tmp_path, normal="quiet")


@pytest.mark.parametrize(
    "content",
    [
        b"path,label,start,end\na.mp4,Crash,2.5,4\n,,,\n,,,\n",
        b"path,label,start,end,,\r\na.mp4,Crash,2.5,4,,\r\n\r\n",
        b"path;label;start;end\na.mp4;Crash;2,5;4\n",
        b" path , label ,start,end\n a.mp4 , Crash ,2.5,4\n",
        "path\tlabel\tstart\tend\r\na.mp4\tCrash\t2,5\t4\r\n".encode("utf-16"),
        b"\xfe\xff" + "path,label,start,end\na.mp4,Crash,2.5,4\n".encode("utf-16-be"),
    ],
)
def test_tables_of_spreadsheets(tmp_path: Path, content: bytes) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(content)
    (clip,) = from_csv(table, tmp_path)
    assert (clip.path, clip.labels, clip.intervals) == ("a.mp4", ("Crash",), ((2.5, 4.0),))


def test_csv_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.csv.*give a CSV file"):
        from_csv(tmp_path / "none.csv", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\na.mp4\n", "columns path and label"),
        ("path,label,colour\na.mp4,x,red\n", "it has path, label, colour"),
        ("path,label\n", "no clips"),
        ("path,label\n,x\n", "line 2: the path is empty"),
        ("path,label\na.mp4,\n", "line 2: clip a: needs a label"),
        ("path,label,start,end\na.mp4,x,1,\n", "line 2: an anomaly needs both"),
        ("path,label,start,end\na.mp4,x,one,2\n", "start: expected a number, found 'one'"),
        ("path,label,start,end\na.mp4,x,3,2\n", "expected 0 <= start < end"),
        (
            "path,label\na.mp4,x\na.mp4,y\n",
            "line 3: clip a is in the file already with different labels",
        ),
        ("path,label\na.mp4,x\na.mp4,x\n", "line 3: clip a is in the file already"),
        ("path,label\na.mp4,x,more\n", "more cells than columns"),
        ("path,label,,\na.mp4,x,,more\n", "line 2: more cells than columns"),
        ("path,label,label\na.mp4,x,y\n", "has the column label more than once"),
        ("path,label\na.mp4,A|A\n", r"line 2: a label is twice in A\|A"),
        ('path,label,start,end\na.mp4,x,"1,5",2\n', "start: expected a number, found '1,5'"),
        ("path,label\n,x\nb.mp4,x\nc.mp4,\na .mp4,x\n", "line 2: .*; mistakes are .* lines 4, 5$"),
    ],
)
def test_csv_mistakes(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(ManifestError, match=message):
        from_csv(table, tmp_path)
