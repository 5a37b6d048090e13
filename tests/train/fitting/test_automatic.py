"""Settings that follow from the clips."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from train.fitting.automatic import layers_to_cover


@given(st.integers(1, 2000))
def test_layers_cover_the_clips(length: int) -> None:
    layers = layers_to_cover(np.array([length]))
    assert layers == 6 or 2 ** (layers + 1) - 1 >= length
    assert layers == 1 or 2**layers - 1 < length
