"""The rows of a CLAP are what transformers gives for the windows around their snippets."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from scipy.signal import resample_poly
from small_networks import save_clap
from sound import heard, noise

from extract import WeightsError, make_recipe
from extract.backbones.transformers_audio import AudioBackbone
from extract.centred_windows import CentredWindows
from extract.live.trailing_windows import TrailingWindows

CPU = torch.device("cpu")
rows_of = partial(heard, CentredWindows)
Array = NDArray[np.float32]


def backbone(folder: Path, **source: str) -> AudioBackbone:
    return AudioBackbone({"name": str(folder), "weights": "pretrained", **source}, CPU, "fp32")


def embedding(model: Any, folder: Path, window: Array) -> Array:
    """What CLAP says of a window of 16 kHz."""
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)
    given = extractor(resample_poly(window, 3, 1), sampling_rate=48_000, return_tensors="pt")
    with torch.inference_mode():
        heard = model.audio_model(given.input_features.float(), is_longer=given.is_longer)
        return np.asarray(model.audio_projection(heard.pooler_output)[0])


@pytest.mark.parametrize("fused", [True, False])
def test_a_row_is_that_of_the_window_around_its_snippet(tmp_path: Path, fused: bool) -> None:
    model = save_clap(tmp_path, fused)
    network = backbone(tmp_path)
    sound = noise(70_000)
    rows, valid = rows_of(network, sound, 0, 20)
    assert valid.tolist() == [True] * 18 + [False] * 2
    for snippet in (0, 2, 8, 16, 17):
        low, high = 4000 * snippet + 2000 - 16_000, 4000 * snippet + 2000 + 16_000
        expected = embedding(model, tmp_path, sound[max(0, low) : high])
        assert np.allclose(rows[snippet], expected, atol=1e-5)
        assert not np.allclose(rows[(snippet + 9) % 18], expected, atol=1e-3)
    for block in (1_000, 37_777):
        assert np.array_equal(rows, rows_of(network, sound, 0, 20, block)[0])


def test_a_stride_of_several_snippets(tmp_path: Path) -> None:
    save_clap(tmp_path)
    each, strided = backbone(tmp_path), backbone(tmp_path)
    strided.recipe["stride_seconds"] = 0.75
    sound = noise(70_000)
    rows, valid = rows_of(strided, sound, 2_000, 20)
    fine, heard_at = rows_of(each, sound, 2_000, 20)
    assert valid.tolist() == heard_at.tolist() == [True] * 18 + [False] * 2
    for begin in range(0, 18, 3):
        # the window around three snippets is that around the one in the middle
        assert np.array_equal(rows[begin], rows[begin + 2])
        assert np.array_equal(rows[begin], fine[begin + 1])


@pytest.mark.parametrize("again", [30_000, 45_000])
def test_no_window_reaches_over_a_hole(tmp_path: Path, again: int) -> None:
    save_clap(tmp_path)
    network = backbone(tmp_path)
    runs = [(0, noise(29_000)), (again, noise(80_000)[: 80_000 - again])]
    both = CentredWindows(network, 20, 0.25)
    for first, sound in runs:
        both.add(first, sound)
    rows, valid = both.finish()
    alone = [rows_of(network, sound, first, 20)[0] for first, sound in runs]
    assert np.array_equal(rows[:7], alone[0][:7])
    assert np.array_equal(rows[12:], alone[1][12:])
    assert valid.tolist() == [4000 * (n + 1) > again or n < 8 for n in range(20)]
    # of snippet 7 the first run has 1,000 samples, the second 2,000 or none
    after = 2_000 * (again == 30_000)
    mean = (1_000 * alone[0][7] + after * alone[1][7]) / (1_000 + after)
    assert np.allclose(rows[7], mean, atol=1e-5)


def test_as_in_a_live_stream(tmp_path: Path) -> None:
    model = save_clap(tmp_path)
    network = backbone(tmp_path)
    network.recipe["trailing_seconds"] = 1.0
    sound = noise(40_000)
    rows, valid = heard(TrailingWindows, network, sound, 0, 10)
    assert valid.all()
    for snippet in (1, 6):
        end = 4000 * (snippet + 1)
        expected = embedding(model, tmp_path, sound[max(0, end - 16_000) : end])
        assert np.allclose(rows[snippet], expected, atol=1e-5)


def test_the_recipe(tmp_path: Path) -> None:
    save_clap(tmp_path)
    make = partial(make_recipe, audio_model=str(tmp_path), only=["audio"])
    recipe = make()
    audio = recipe.streams["audio"]
    assert (audio["features"], audio["window_seconds"]) == (24, 2.0)
    assert recipe.streams_with_lookahead == ["audio"]
    assert "48000 Hz; here sound has 16000" in recipe.source["audio"]["assumed"]
    changed = make(audio_stride=0.75).differences(recipe)
    assert changed == ["streams.audio.stride_seconds: 0.75, not absent"]
    for stride in (0.3, 0.0, -0.25, 2.25):
        with pytest.raises(
            ValueError, match=r"expected a multiple of a snippet's 0.25 s, up to 2 "
        ):
            make(audio_stride=stride)
    with pytest.raises(ValueError, match="not for live streams"):
        make(audio_stride=0.5, live=True)
    with pytest.raises(WeightsError, match=r"--layers mean: .* has one row for a window"):
        make(layers="mean")


def test_a_stride_for_a_network_with_a_time_axis(sound_model: str) -> None:
    with pytest.raises(ValueError, match="for networks without a time axis"):
        make_recipe(audio_model=sound_model, weights="random", only=["audio"], audio_stride=0.5)


def test_little_sound_is_kept(tmp_path: Path) -> None:
    class Deaf:
        features, field, stride, window = 1, 400, 0, 32_000
        recipe: dict[str, Any] = {}  # noqa: RUF012

        def __call__(self, windows: Array) -> Array:
            return np.zeros((len(windows), 1, 1), np.float32)

    windows = CentredWindows(Deaf(), 8_000, 0.25)  # type: ignore[arg-type]
    for block in range(200):
        windows.add(160_000 * block, np.zeros(160_000, np.float32))
        assert sum(len(samples) for _, samples in windows._kept._runs) <= 32_000
