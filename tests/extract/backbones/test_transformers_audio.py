"""The rows of sound are what transformers gives, whichever window, block or layer they came by."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_networks import LITTLE, save_wav2vec2
from sound import heard, noise
from transformers import Wav2Vec2FeatureExtractor

from extract import WeightsError
from extract.audio_windows import AudioWindows
from extract.backbones.transformers_audio import AudioBackbone

CPU = torch.device("cpu")


rows_of = partial(heard, AudioWindows)


@pytest.mark.parametrize("normalize", [True, False])
def test_sound_gives_what_transformers_gives(tmp_path: Path, normalize: bool) -> None:
    model = save_wav2vec2(tmp_path)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalize)
    extractor.save_pretrained(tmp_path)
    network = AudioBackbone({"name": str(tmp_path), "weights": "pretrained"}, CPU, "fp32")
    rows, valid = rows_of(network, noise(33_000), 0, 9)
    values = extractor(noise(33_000), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        outputs = model(values).last_hidden_state[0].numpy()
    # output frame k of Wav2Vec2 sees the 400 samples from 320 k on
    centres = (320 * np.arange(len(outputs)) + 200) / 4000
    expected = np.stack([outputs[(centres >= t) & (centres < t + 1)].mean(0) for t in range(9)])
    assert valid.all()
    assert np.allclose(rows, expected, atol=1e-5)


KINDS = {
    "Wav2Vec2": {},
    "Wav2Vec2 ": {"do_stable_layer_norm": True, "feat_extract_norm": "layer"},  # as the large one
    "Hubert": {},
    "WavLM": {},
    "WavLM ": {"do_stable_layer_norm": True, "feat_extract_norm": "layer"},
    "Data2VecAudio": {"conv_pos_kernel_size": 7, "num_conv_pos_embeddings": 2},
}


@pytest.mark.parametrize("layers", ["last", "1", "1,3", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_encoder_and_its_hidden_layers(tmp_path: Path, kind: str, layers: str) -> None:
    config = getattr(transformers, f"{kind.strip()}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind.strip()}Model")(
        config(**{**LITTLE, "num_hidden_layers": 3, **KINDS[kind]})
    ).eval()
    model.save_pretrained(tmp_path)
    source = {"name": str(tmp_path), "weights": "pretrained", "layers": layers}
    network = AudioBackbone(source, CPU, "fp32")
    values = network.extractor(noise(8000), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        expected = model(values).last_hidden_state[0]
        if KINDS[kind].get("do_stable_layer_norm"):  # some versions normalise the last of these
            model.encoder.layer_norm = torch.nn.Identity()
        hidden = model(values, output_hidden_states=True).hidden_states
    chosen = {"1": [1], "1,3": [1, 3], "mean": [1, 2, 3]}.get(layers)
    if chosen:
        expected = torch.stack([hidden[n][0] for n in chosen]).mean(0)
    assert np.allclose(network(noise(8000)[None]), expected.numpy(), atol=1e-5)
    assert network.recipe["model"] == model.config.model_type
    assert network.recipe["layer"] == (
        f"mean of {', '.join(map(str, chosen))}" if chosen else "last"
    )


@pytest.mark.parametrize("layers", ["0", "3", "2-1", "1-9", "first", "1,", "-1", ""])
def test_layers_that_do_not_exist(sound_model: str, layers: str) -> None:
    with pytest.raises(WeightsError, match="numbers from 1 to 2"):
        AudioBackbone({"name": sound_model, "weights": "random", "layers": layers}, CPU, "fp32")


def test_a_network_that_reads_no_sound_is_refused(tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="is a bert, which does not read sound in a known way"):
        AudioBackbone({"name": str(tmp_path), "weights": "random"}, CPU, "fp32")


def test_sound_that_starts_late_and_ends_early_is_flagged(sound_model: str) -> None:
    network = AudioBackbone({"name": sound_model, "weights": "random"}, CPU, "fp32")
    rows, valid = rows_of(network, noise(16_000), 8_000, 10)
    assert valid.tolist() == [False] * 2 + [True] * 4 + [False] * 4
    assert not rows[~valid].any()
    _, valid = rows_of(network, noise(399), 0, 10)
    assert not valid.any()
    _, valid = rows_of(network, noise(0), 0, 10)
    assert not valid.any()


@pytest.mark.parametrize("again", [41_000, 29_700, 29_100])
def test_a_hole_parts_the_sound(sound_model: str, again: int) -> None:
    """A row is the mean of the frames in its snippet, of each run as the network hears it alone."""
    network = AudioBackbone({"name": sound_model, "weights": "random"}, CPU, "fp32")
    runs = [(2_000, noise(29_000 - 2_000)), (again, noise(50_000)), (again + 60_000, noise(700))]
    listening = AudioWindows(network, 30, 0.25)
    for first, sound in runs:
        listening.add(first, sound[:5_000])
        listening.add(first + 5_000, sound[5_000:]) if len(sound) > 5_000 else None
    rows, valid = listening.finish()
    frames: list[NDArray[np.float32]] = []
    snippets: list[int] = []
    for first, sound in runs:
        outputs = network(sound[None])[0]
        frames += list(outputs)
        snippets += [(first + 320 * n + 200) // 4000 for n in range(len(outputs))]
    for snippet in range(30):
        inside = [frame for frame, at in zip(frames, snippets, strict=True) if at == snippet]
        assert valid[snippet] == bool(inside)
        if inside:
            assert np.allclose(rows[snippet], np.mean(inside, axis=0), atol=1e-5)
    assert not rows[~valid].any()
    assert valid[7]
    assert valid[8:10].all() == (again < 30_000)


def test_a_hole_after_many_windows(sound_model: str) -> None:
    """Each run of sound has the rows that it has alone, seams between its windows included."""
    network = AudioBackbone({"name": sound_model, "weights": "random"}, CPU, "fp32")
    sound = noise(50 * 16_000)
    both = AudioWindows(network, 420, 0.25)
    both.add(0, sound)
    both.add(54 * 16_000, sound)
    rows, valid = both.finish()
    alone, _ = rows_of(network, sound, 0, 200)
    assert valid.tolist() == [True] * 200 + [False] * 16 + [True] * 200 + [False] * 4
    assert np.array_equal(rows[:200], alone)
    assert np.array_equal(rows[216:416], alone)


def test_no_seams_between_windows(sound_model: str) -> None:
    """Where one window's rows pass into the next one's, they change no more than elsewhere."""
    network = AudioBackbone({"name": sound_model, "weights": "random"}, CPU, "fp32")
    rng = np.random.default_rng(0)
    loudness = np.repeat(rng.uniform(0.01, 0.5, 60), 16_000)  # windows differ in loudness
    waveform = (rng.normal(0, 1, 60 * 16_000) * loudness).astype(np.float32)
    rows, valid = rows_of(network, waveform, 0, 240)
    assert valid.all()
    change = np.linalg.norm(np.diff(rows, axis=0), axis=1)
    at_edges = change[np.array([64, 80, 128, 144, 160]) - 1]
    steady = np.ones(len(change), bool)
    steady[3::4] = False  # the loudness itself jumps there
    assert at_edges.max() < np.percentile(change, 99)
    assert np.median(at_edges) < 2 * np.median(change)


class Recorder:
    """A network whose output frames are 1 s long and say which second they saw."""

    reads: Literal["sound"] = "sound"
    features = 1
    recipe: dict[str, Any] = {}  # noqa: RUF012
    field = stride = 4000

    def __init__(self) -> None:
        self.windows: list[tuple[int, int]] = []  # in snippets

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        self.windows += [(round(w[0] / 4000), round((w[-1] + 1) / 4000)) for w in windows]
        return windows[:, 2000::4000, None] // 4000


def counted(snippets: int) -> NDArray[np.float32]:
    return np.arange(snippets * 4000).astype(np.float32)


@pytest.mark.parametrize(
    ("snippets", "expected"),
    [
        (3, [(0, 3)]),
        (80, [(0, 80)]),
        (81, [(0, 80), (1, 81)]),
        (144, [(0, 80), (64, 144)]),
        (150, [(0, 80), (64, 144), (70, 150)]),
    ],
)
def test_windows_have_one_length(snippets: int, expected: list[tuple[int, int]]) -> None:
    network = Recorder()
    rows_of(network, counted(snippets), 0, snippets)
    assert network.windows == expected


@given(st.integers(1, 400), st.integers(0, 50), st.integers(4000, 500_000))
@settings(max_examples=60, deadline=None)
def test_every_row_has_its_own_sound_in_any_blocks(snippets: int, late: int, block: int) -> None:
    rows, valid = rows_of(Recorder(), counted(snippets), 4000 * late, snippets + late, block)
    assert valid.tolist() == [False] * late + [True] * snippets
    assert np.allclose(rows[late:, 0], np.arange(snippets))


def test_only_two_windows_of_sound_are_kept() -> None:
    listening = AudioWindows(Recorder(), 40_000, 0.25)
    for block in range(200):
        listening.add(160_000 * block, np.zeros(160_000, np.float32))
        assert len(listening._kept) <= 2 * 20 * 16_000 + 160_000
