"""What the tests of stage 1 share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from forked_workers import forked_workers


@pytest.fixture(scope="module", autouse=True)
def _forked_workers() -> Iterator[None]:
    with forked_workers():
        yield
