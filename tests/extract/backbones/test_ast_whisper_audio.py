"""Networks that read spectrograms: their rows are what transformers gives, where it belongs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from small_networks import save_ast, save_whisper
from sound import heard, noise

from extract import WeightsError, make_recipe
from extract.audio_windows import AudioWindows
from extract.backbones.transformers_audio import AudioBackbone
from extract.live.trailing_windows import TrailingWindows

CPU = torch.device("cpu")
SECOND = 16_000
rows_of = partial(heard, AudioWindows)
Array = NDArray[np.float32]


def backbone(folder: Path, **source: str) -> AudioBackbone:
    return AudioBackbone({"name": str(folder), "weights": "pretrained", **source}, CPU, "fp32")


def ast_columns(model: Any, folder: Path, sound: Array, layer: int | None = None) -> Array:
    """Every column of an AST's patches by the words of its paper, those of padding too.

    Patches of 16 x 16, one every 10 spectra and every 10 bands; before them stand two tokens.
    """
    extractor = transformers.ASTFeatureExtractor.from_pretrained(folder)
    given = extractor(sound, sampling_rate=SECOND, return_tensors="pt").input_values
    with torch.inference_mode():
        result = model(given, output_hidden_states=True)
    tokens = result.last_hidden_state if layer is None else result.hidden_states[layer]
    bands, columns = (32 - 16) // 10 + 1, (given.shape[1] - 16) // 10 + 1
    patches = tokens[0, 2:].numpy()
    assert len(patches) == bands * columns
    return np.mean([patches[columns * band : columns * (band + 1)] for band in range(bands)], 0)


def whisper_frames(model: Any, folder: Path, sound: Array, layer: int | None = None) -> Array:
    """Every output frame of Whisper's encoder, those of padding too."""
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    given = extractor(sound, sampling_rate=SECOND, return_tensors="pt").input_features
    with torch.inference_mode():
        result = model.get_encoder()(given, output_hidden_states=True)
    tokens = result.last_hidden_state if layer is None else result.hidden_states[layer]
    return np.asarray(tokens[0])


# seconds on which output k is centred: spectrum n of AST sees the 25 ms from 10 n ms on, and a
# patch 16 of them; Whisper's are centred on 10 n ms, and every other one is kept
CENTRES: dict[str, Callable[[int], float]] = {
    "ast": lambda k: 0.1 * k + (15 * 0.01 + 0.025) / 2,
    "whisper": lambda k: 0.02 * k,
}
OUTPUTS = {"ast": ast_columns, "whisper": whisper_frames}
SAVE: dict[str, Callable[[Path], Any]] = {"ast": save_ast, "whisper": save_whisper}
kinds = pytest.mark.parametrize("kind", SAVE)


@kinds
@pytest.mark.parametrize("samples", [18_000, 7_500])
def test_rows_are_means_of_what_transformers_gives(tmp_path: Path, kind: str, samples: int) -> None:
    model = SAVE[kind](tmp_path)
    rows, valid = rows_of(backbone(tmp_path), noise(samples), 0, 6)
    outputs = OUTPUTS[kind](model, tmp_path, noise(samples))
    end = samples / SECOND
    for snippet in range(6):
        inside = [
            outputs[k]
            for k in range(len(outputs))
            if snippet / 4 <= CENTRES[kind](k) < min((snippet + 1) / 4, end)
        ]
        assert valid[snippet] == bool(inside)
        if inside:
            assert np.allclose(rows[snippet], np.mean(inside, 0), atol=1e-5)
    assert valid.sum() == -(-samples // 4000)


@kinds
@pytest.mark.parametrize("layers", ["1", "2", "last"])
def test_hidden_layers(tmp_path: Path, kind: str, layers: str) -> None:
    model = SAVE[kind](tmp_path)
    network = backbone(tmp_path, layers=layers)
    found = network(noise(9_000)[None])[0]
    expected = OUTPUTS[kind](
        model, tmp_path, noise(9_000), None if layers == "last" else int(layers)
    )
    assert np.allclose(found, expected[: len(found)], atol=1e-5)
    with pytest.raises(WeightsError, match="numbers from 1 to 3"):
        backbone(tmp_path, layers="4")


@kinds
def test_a_click_is_in_its_snippet(tmp_path: Path, kind: str) -> None:
    """The time stamps are right: what a click changes most is the row of its moment."""
    SAVE[kind](tmp_path)
    network = backbone(tmp_path, layers="1")  # before attention has spread it
    silence = noise(18_000) * 0.01
    quiet, _ = rows_of(network, silence, 0, 5)
    for snippet in range(1, 4):
        sound = silence.copy()
        sound[4000 * snippet + 1_900 : 4000 * snippet + 2_100] += 0.5
        loud, _ = rows_of(network, sound, 0, 5)
        assert np.linalg.norm(loud - quiet, axis=1).argmax() == snippet


@kinds
def test_long_sound_in_any_blocks(tmp_path: Path, kind: str) -> None:
    """Windows are as long as the network takes; their rows fade; blocks change no byte."""
    model = SAVE[kind](tmp_path)
    network = backbone(tmp_path)
    sound = noise(10 * SECOND)
    rows, valid = rows_of(network, sound, 0, 40)
    assert valid.all()
    for block in (1_000, 37_777):
        assert np.array_equal(rows, rows_of(network, sound, 0, 40, block)[0])
    length, overlap = {"ast": (5, 1), "whisper": (8, 2)}[kind]  # of 1.275 s, and of 2 s
    compared = 0
    for start in range(length - overlap, 40 - 2 * length, length - overlap):
        outputs = OUTPUTS[kind](model, tmp_path, sound[4000 * start : 4000 * (start + length)])
        at = np.array([CENTRES[kind](k) for k in range(len(outputs))])
        for inner in range(overlap, length - overlap):  # snippets that this window alone decides on
            inside = (at >= inner / 4) & (at < (inner + 1) / 4)
            assert np.allclose(rows[start + inner], outputs[inside].mean(0), atol=1e-5)
            compared += 1
    assert compared > 10


@pytest.mark.parametrize(
    ("save", "length"),
    [(partial(save_ast, length=1024), 40), (partial(save_whisper, seconds=30), 120)],
)
def test_no_seams_between_windows(tmp_path: Path, save: Callable[[Path], Any], length: int) -> None:
    """Where windows as long as the published networks' begin and end, rows change as always."""
    save(tmp_path)
    rng = np.random.default_rng(0)
    loudness = np.interp(np.arange(60 * SECOND) / SECOND, range(61), rng.uniform(0.01, 0.5, 61))
    sound = (rng.normal(0, 1, 60 * SECOND) * loudness).astype(np.float32)
    rows, _ = rows_of(backbone(tmp_path), sound, 0, 240)
    change = np.linalg.norm(np.diff(rows, axis=0), axis=1)
    starts = [*range(length - length // 5, 240 - length, length - length // 5), 240 - length]
    at_edges = change[[edge - 1 for start in starts for edge in (start, start + length // 5)]]
    assert at_edges.max() < np.percentile(change, 99)
    assert np.median(at_edges) < 1.5 * np.median(change)


@kinds
def test_as_in_a_live_stream(tmp_path: Path, kind: str) -> None:
    model = SAVE[kind](tmp_path)
    network = backbone(tmp_path)
    network.recipe["trailing_seconds"] = 1.0
    sound = noise(30_000)
    rows, valid = heard(TrailingWindows, network, sound, 0, 8)
    assert valid.all()
    for snippet in (1, 3, 6):
        low, stop = max(0, 4000 * (snippet - 3)), 4000 * (snippet + 1)
        outputs = OUTPUTS[kind](model, tmp_path, sound[low:stop])
        at = low / SECOND + np.array([CENTRES[kind](k) for k in range(len(outputs))])
        inside = (at >= snippet / 4) & (at < stop / SECOND)
        assert np.allclose(rows[snippet], outputs[inside].mean(0), atol=1e-5)


@pytest.mark.parametrize("task", ["ConditionalGeneration", "AudioClassification"])
def test_any_checkpoint_that_has_the_encoder(tmp_path: Path, task: str) -> None:
    model = save_whisper(tmp_path / "one")
    whole = getattr(transformers, f"WhisperFor{task}")(model.config)
    whole.get_encoder().load_state_dict(model.get_encoder().state_dict())
    whole.save_pretrained(tmp_path / "other")
    extractor = tmp_path / "one" / "preprocessor_config.json"
    (tmp_path / "other" / extractor.name).write_text(extractor.read_text())
    one, other = backbone(tmp_path / "one"), backbone(tmp_path / "other")
    assert one.recipe == other.recipe
    assert np.array_equal(one(noise(9_000)[None]), other(noise(9_000)[None]))


@kinds
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, kind: str) -> None:
    SAVE[kind](tmp_path)
    file = tmp_path / "preprocessor_config.json"
    published = json.loads(file.read_text())
    other = {"ast": {"num_mel_bins": 64}, "whisper": {"chunk_length": 30}}[kind]
    for wrong in ({"sampling_rate": 8000}, other):
        file.write_text(json.dumps({**published, **wrong}))
        with pytest.raises(WeightsError, match=r"preprocessor_config.json gives .*; expected \d+"):
            backbone(tmp_path)
    file.unlink()
    with pytest.raises(WeightsError, match=r"no preprocessor_config.json of .* was found"):
        backbone(tmp_path)


@kinds
def test_the_recipe_has_all_that_decides(tmp_path: Path, kind: str) -> None:
    SAVE[kind](tmp_path)
    make = partial(make_recipe, audio_model=str(tmp_path), only=["audio"])
    recipe = make()
    settings = recipe.streams["audio"]
    window = {"ast": (11 * 10 + 15) * 0.01 + 0.025, "whisper": 2.0}[kind]
    assert settings["window_seconds"] == pytest.approx(window)
    assert settings["overlap_seconds"] == pytest.approx(window / 5)
    file = tmp_path / "preprocessor_config.json"
    if kind == "ast":
        published = json.loads(file.read_text())
        file.write_text(json.dumps({**published, "mean": -4.0}))
        assert make().differences(recipe) == ["streams.audio.preprocessing.mean: -4.0, not -5.0"]
    if kind == "ast":
        with pytest.raises(
            ValueError, match=r"seconds: 0.05; expected at least 0.1, .* stream audio"
        ):
            make(snippet_seconds=0.05)
    with pytest.raises(ValueError, match=r"seconds: 2.5; .* reads (1.275|2) s of sound at once"):
        make(snippet_seconds=2.5)
    assert "trailing_seconds" in make(live=True).streams["audio"]


def test_snippets_longer_than_a_window(sound_model: str) -> None:
    """Of a network that reads any number of samples; such a snippet is a window."""
    network = AudioBackbone({"name": sound_model, "weights": "random"}, CPU, "fp32")
    sound = noise(100 * SECOND)
    windows = AudioWindows(network, 2, 50.0)
    windows.add(0, sound)
    rows, valid = windows.finish()
    assert valid.all()
    assert np.allclose(rows[0], network(sound[None, : 50 * SECOND])[0].mean(0), atol=1e-5)
