"""What is hidden of an address, and what is not; JSON that every reader takes."""

from __future__ import annotations

import json
import math
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import json_text, redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sftp://ann:hunter2@host:22/store", "sftp://***@host:22/store"),
        ("rtsp://admin:p@ss:w%20d@10.0.0.7/live", "rtsp://***@10.0.0.7/live"),
        ("rtsp://admin:pw@[::1]:554/live", "rtsp://***@[::1]:554/live"),
        # of S3, where the key may have a slash in it
        ("s3://AKIA:wJal/rXUt+nFEMI@team/store", "s3://***@team/store"),
        ("https://ghp_16C7e42F292c@github.com/x", "https://***@github.com/x"),
        (
            "https://b.s3.amazonaws.com/store/recipe.json?X-Amz-Credential=A%2F1&X-Amz-Signature=9f",
            "https://b.s3.amazonaws.com/store/recipe.json?***",
        ),
        ("https://host/x?token=abc#y", "https://host/x?***"),
        # in the middle of a text, several, and as a Path makes them
        (
            "it's at 'ftp://u:p1@a/x' (and http://u:p2@b/y?sig=3): no",
            "it's at 'ftp://***@a/x' (and http://***@b/y?***): no",
        ),
        ("sftp:/ann:hunter2@host/store is no store", "sftp:/***@host/store is no store"),
        ("simplecache::http://u:p@h/s", "simplecache::http://***@h/s"),
    ],
)
def test_names_passwords_and_queries_are_hidden(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s3://team/store",
        "sftp://host:22/a/b@c/d",
        "http://[::1]:80/a@b",
        "tcp://10.0.0.1:8786",
        "/videos/mail@home/a: b?.mp4",
        "1:car:2.mp4",
        "c:/videos/what?.mp4",
        "ratio 3://4",
        "who? ann:pw@host",  # no address
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    "text",
    [
        'Invalid bucket name "AKIA:hunter2@team"',
        "user AKIA:hunter2 denied",
        "hunter2",
    ],
)
def test_a_secret_that_stands_alone_is_hidden(text: str) -> None:
    assert "hunter2" not in redacted(text, "s3://AKIA:hunter2@team/store")


def test_a_signature_that_stands_alone_is_hidden() -> None:
    address = "https://h/s?X-Amz-Signature=0123456789abcdef&part=1"
    assert redacted("bad 0123456789abcdef in part 1", address) == "bad *** in part 1"


@given(
    st.text("abcXYZ019-._~!$&()*+,;=:%/@", min_size=8, max_size=20),
    st.sampled_from(["sftp", "s3", "https", "rtsp"]),
)
def test_no_password_is_shown_however_it_is_written(password: str, scheme: str) -> None:
    written = quote(password, safe="")
    address = f"{scheme}://ann:{written}@host/store"
    assert written not in redacted(f"{address}: no such file", address)
    assert "@host/store" in redacted(address)
    alone = redacted(f"denied ({password}) and ({written})", address)
    assert f"({password})" not in alone
    assert f"({written})" not in alone


def test_numbers_that_json_does_not_have_are_null() -> None:
    text = json_text({"a": [math.nan, (math.inf, 1.5)], "b": -math.inf, "c": 1e308})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [None, [None, 1.5]],
        "b": None,
        "c": 1e308,
    }
