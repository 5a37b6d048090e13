"""What the tests of the commands share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from forked_workers import forked_workers


@pytest.fixture(scope="module", autouse=True)
def _forked_workers() -> Iterator[None]:
    with forked_workers():
        yield


@pytest.fixture(scope="module", autouse=True)
def _few_steps() -> Iterator[None]:
    """Of the attention pooling beside each run; what it learns is tested with the baselines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.baselines.snippet_pooling.STEPS", 50)
        yield
