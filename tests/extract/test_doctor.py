"""Which codecs can be tried, and what comes of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from extract import doctor
from extract.decoding.messages import End, Sound
from extract.decoding.reader import Reader

pytestmark = pytest.mark.slow


def test_codecs_are_read_or_not_tried(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(doctor.CODECS, "VVC", ("no-such-encoder", None))
    tried = doctor.try_codecs()
    assert tried == dict.fromkeys(("H.264", "HEVC", "AV1", "AAC", "Opus"))
    assert capfd.readouterr() == ("", "")  # encoders are talkative
    if sys.platform == "linux":  # for root, SVT-AV1 makes the thread that calls it a real-time one
        assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("damaged", "its sound track cannot be decoded"),
        ("silent", "the sound is not what was encoded"),
        ("absent", "the sound is not what was encoded"),
    ],
)
def test_sound_that_is_read_wrongly_is_reported(
    monkeypatch: pytest.MonkeyPatch, fault: str, reason: str
) -> None:
    read = Reader.read

    def misread(reader: Reader, *words: Any) -> Iterator[Any]:
        for clip, message in read(reader, *words):
            if isinstance(message, Sound) and fault == "silent":
                yield clip, message._replace(samples=0 * message.samples)
            elif isinstance(message, End) and fault == "damaged":
                yield clip, message._replace(sound_damaged=True)
            elif not (isinstance(message, Sound) and fault == "absent"):
                yield clip, message

    monkeypatch.setattr(Reader, "read", misread)
    found = doctor.try_codecs()
    assert {found["AAC"], found["Opus"]} == {reason}
