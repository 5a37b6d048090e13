"""Work in processes of this machine."""

from __future__ import annotations

import os

import pytest

from extract import Cluster


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux has it")
def test_there_is_one_process_for_each_core_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert Cluster(device="cpu").processes == 1
    finally:
        os.sched_setaffinity(0, cores)
