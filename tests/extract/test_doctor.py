"""Which codecs can be tried, and what comes of it."""

from __future__ import annotations

import os
import sys

import pytest

from extract import doctor


def test_codecs_are_read_or_not_tried(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(doctor.CODECS, "VVC", ("no-such-encoder", None))
    tried = doctor.try_codecs()
    assert tried == dict.fromkeys(("H.264", "HEVC", "AV1", "AAC", "Opus"))
    assert capfd.readouterr() == ("", "")  # encoders are talkative
    if sys.platform == "linux":  # for root, SVT-AV1 makes the thread that calls it a real-time one
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
