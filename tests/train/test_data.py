"""Moments and averages of clips against plain computations."""

from __future__ import annotations

import numpy as np
import pytest
from small_avarnet import SIZES, some_clip

from train.data import Clips


def test_moments_are_those_of_all_valid_rows_together() -> None:
    rng = np.random.default_rng(0)
    clips = {f"c{n}": some_clip(rng, 1 + 3 * n) for n in range(6)}
    for n, clip in enumerate(clips.values()):
        clip.streams["video"][:] += np.float16(5 * n)
        clip.valid["video"][::3] = n == 4
        clip.valid["audio"][:] = False
    data = Clips(clips, list(clips), list(SIZES), {})
    chosen = np.array([1, 2, 4, 5])
    rows = [(clips[f"c{n}"].video.astype(float), clips[f"c{n}"].video_valid) for n in chosen]
    values = np.concatenate([x[valid] for x, valid in rows])
    changes = np.concatenate([np.abs(np.diff(x, axis=0))[v[1:] & v[:-1]] for x, v in rows])
    found = data.moments("video", chosen)
    for part, expected in (("value", values), ("change", changes)):
        assert found[part][0].numpy() == pytest.approx(expected.mean(0), rel=1e-4)
        assert found[part][1].numpy() == pytest.approx(expected.std(0), rel=1e-4)
    assert data.moments("audio", chosen) == {}


@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_averages_are_those_of_the_snippets(length: int) -> None:
    data = Clips({"a": some_clip(np.random.default_rng(0), length)}, ["a"], list(SIZES), {})
    table, (average,) = data.snippets(0), data.averages(np.array([0]))
    assert table.shape == (length, 2 * (5 + 3) + 2)
    assert average[:5] == pytest.approx(table[:, :5].mean(0), abs=1e-5)
    changes = table[1:, 5:10].mean(0) if length > 1 else table[0, 5:10]  # the first one's is twice
    assert average[5:10] == pytest.approx(changes, abs=1e-5)
