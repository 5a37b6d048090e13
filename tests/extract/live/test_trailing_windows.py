"""Rows of sound that a live stream can have too: from the second that ends with the snippet."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sound import heard, noise

from extract import make_recipe
from extract.backbones.transformers_audio import AudioBackbone
from extract.live.trailing_windows import TrailingWindows
from features import FeatureError, Recipe, Store, Writer

rows_of = partial(heard, TrailingWindows)


@pytest.fixture(scope="module")
def network(sound_model: str) -> AudioBackbone:
    made = AudioBackbone({"name": sound_model, "weights": "random"}, torch.device("cpu"), "fp32")
    made.recipe["trailing_seconds"] = 1.0
    return made


@pytest.mark.parametrize("first", [0, 5_000])
def test_a_row_is_the_network_s_output_for_its_window_alone(
    network: AudioBackbone, first: int
) -> None:
    sound = noise(90_000)
    rows, valid = rows_of(network, sound, first, 24)
    track = np.concatenate([np.full(first, np.nan, np.float32), sound])
    for snippet in range(24):
        begin, stop = 4000 * snippet, 4000 * (snippet + 1)
        assert valid[snippet] == (begin < len(track) and stop > first)
        if valid[snippet]:
            low = max(first, stop - 16_000)
            (outputs,) = network(track[None, low:stop])
            centres = low + 320 * np.arange(len(outputs)) + 200
            assert np.allclose(rows[snippet], outputs[centres >= begin].mean(0), atol=1e-5)


@pytest.mark.parametrize("again", [47_000, 29_700])
def test_no_window_reaches_over_a_hole(network: AudioBackbone, again: int) -> None:
    runs = [(0, noise(29_000)), (again, noise(70_000 - again))]
    trailing = TrailingWindows(network, 18, 0.25)
    for first, sound in runs:
        for begin in range(0, len(sound), 6_000):
            trailing.add(first + begin, sound[begin : begin + 6_000])
    rows, valid = trailing.finish()
    for snippet in range(18):
        frames: list[NDArray[np.float32]] = []
        for first, sound in runs:
            low = max(0, 4000 * (snippet + 1) - 16_000 - first)
            window = sound[low : max(0, 4000 * (snippet + 1) - first)]
            if len(window) >= 400:
                outputs = network(window[None])[0]
                centres = first + low + 320 * np.arange(len(outputs)) + 200
                frames += list(outputs[centres >= 4000 * snippet])
        assert valid[snippet] == bool(frames)
        if frames:
            assert np.allclose(rows[snippet], np.mean(frames, axis=0), atol=1e-5)
    assert valid.tolist() == [not (again > 40_000 and 8 <= n < 11) for n in range(17)] + [True]


class Recorder:
    """A network whose output frames last a snippet and say which one they saw."""

    reads: Literal["sound"] = "sound"
    features = 1
    field = stride = 4000

    def __init__(self, seconds: float = 1.0) -> None:
        self.recipe: dict[str, Any] = {"trailing_seconds": seconds}
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        self.batches.append(windows.shape)
        return windows[:, 2000::4000, None] // 4000


@given(st.integers(1, 400), st.integers(0, 50), st.integers(4000, 500_000))
@settings(max_examples=60, deadline=None)
def test_every_row_has_its_own_sound_in_any_blocks(snippets: int, late: int, block: int) -> None:
    network = Recorder()
    sound = np.arange(snippets * 4000).astype(np.float32)
    rows, valid = rows_of(network, sound, 4000 * late, snippets + late, block)
    assert valid.tolist() == [False] * late + [True] * snippets
    assert np.allclose(rows[late:, 0], np.arange(snippets))
    # which windows share a batch is decided by the clip, never by the blocks that it came in
    alone = [(1, 4000 * n) for n in range(1, min(snippets, 3) + 1)]
    full, rest = divmod(max(0, snippets - 3), 16)
    assert network.batches == alone + [(16, 16_000)] * full + [(rest, 16_000)] * (rest > 0)


def test_long_snippets_are_covered_whole() -> None:
    network = Recorder(2.0)
    heard = TrailingWindows(network, 3, 2.0)
    heard.add(0, np.arange(96_000).astype(np.float32))
    rows, valid = heard.finish()
    assert valid.all()
    assert np.allclose(rows[:, 0], [3.5, 11.5, 19.5])


def test_too_little_sound_is_none(network: AudioBackbone) -> None:
    for sound in (noise(399), noise(0)):
        rows, valid = rows_of(network, sound, 0, 10)
        assert not valid.any()
        assert not rows.any()


def test_little_sound_is_kept() -> None:
    heard = TrailingWindows(Recorder(), 40_000, 0.25)
    for block in range(200):
        heard.add(160_000 * block, np.zeros(160_000, np.float32))
        assert sum(len(samples) for _, samples in heard._kept._runs) <= 16_000
        assert len(heard._pending) < 16


def test_trailing_windows_are_in_the_recipe(
    recipe: Recipe, sound_model: str, tmp_path: Path
) -> None:
    live = make_recipe("mobilevit_xxs", sound_model, weights="random", live=True)
    changed = [line.split(":")[0] for line in live.differences(recipe)]
    assert changed == [f"streams.audio.{n}_seconds" for n in ("overlap", "trailing", "window")]
    assert live.fingerprint != recipe.fingerprint
    assert (live.streams_with_lookahead, recipe.streams_with_lookahead) == ([], ["audio"])
    with Writer(tmp_path / "store", recipe):
        pass
    with pytest.raises(FeatureError, match=r"audio.trailing_seconds: 1.0, not absent"):
        Writer(tmp_path / "store", live)
    assert Store(tmp_path / "store").recipe == recipe
    slow = make_recipe("mobilevit_xxs", sound_model, "random", snippet_seconds=2.0, live=True)
    assert slow.streams["audio"]["trailing_seconds"] == 2.0
