"""The features are what timm and transformers give; the weights are never silently random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from compare import cosine
from PIL import Image
from safetensors.torch import save_file
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from extract import WeightsError, make_recipe
from extract.backbones import AudioBackbone, VideoBackbone, windows
from extract.decode import frames, probe

CPU = torch.device("cpu")


def test_frames_give_what_timm_gives(clips: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    model = timm.create_model("mobilevit_xxs", num_classes=0).eval()
    with_head = timm.create_model("mobilevit_xxs")
    with_head.load_state_dict(model.state_dict(), strict=False)
    save_file(with_head.state_dict(), tmp_path / "weights.safetensors")
    source = {
        "name": "mobilevit_xxs",
        "weights": "pretrained",
        "file": str(tmp_path / "weights.safetensors"),
    }
    ours = VideoBackbone(source, CPU, "fp32")
    path = clips / "Explosion" / "0.mp4"
    pictures = list(frames(path, probe(path), np.arange(0, 12, 2)))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    with torch.inference_mode():
        theirs = [model(transform(Image.fromarray(p))[None])[0] for p in pictures]
    assert (
        cosine(ours([*map(ours.prepare, pictures)]), np.stack([row.numpy() for row in theirs]))
        > 0.9999
    )


def save_wav2vec2(folder: Path, seed: int = 3, **settings: Any) -> Wav2Vec2Model:
    torch.manual_seed(seed)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        **settings,
    )
    model = Wav2Vec2Model(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("normalize", [True, False])
def test_sound_gives_what_transformers_gives(tmp_path: Path, normalize: bool) -> None:
    model = save_wav2vec2(tmp_path)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalize)
    extractor.save_pretrained(tmp_path)
    ours = AudioBackbone({"name": str(tmp_path), "weights": "pretrained"}, CPU, "fp32")
    waveform = np.random.default_rng(0).normal(0.1, 0.3, 33_000).astype(np.float32)
    rows, valid = ours(waveform, 0, 9, 0.25)
    values = extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        outputs = model(values).last_hidden_state[0].numpy()
    # output frame k of Wav2Vec2 sees the 400 samples from 320 k on
    centres = (320 * np.arange(len(outputs)) + 200) / 4000
    expected = np.stack([outputs[(centres >= t) & (centres < t + 1)].mean(0) for t in range(9)])
    assert valid.all()
    assert np.allclose(rows, expected, atol=1e-5)


def test_sound_that_starts_late_and_ends_early_is_flagged(sound_model: str) -> None:
    network = AudioBackbone({"name": sound_model, "weights": "random"}, CPU, "fp32")
    waveform = np.random.default_rng(0).normal(0, 0.3, 16_000).astype(np.float32)
    rows, valid = network(waveform, 8_000, 10, 0.25)
    assert valid.tolist() == [False] * 2 + [True] * 4 + [False] * 4
    assert not rows[~valid].any()
    _, valid = network(waveform[:399], 0, 10, 0.25)
    assert not valid.any()
    _, valid = network(waveform[:0], 0, 10, 0.25)
    assert not valid.any()


def test_no_seams_between_windows(sound_model: str) -> None:
    """Where one window's rows pass into the next one's, they change no more than elsewhere."""
    network = AudioBackbone({"name": sound_model, "weights": "random"}, CPU, "fp32")
    rng = np.random.default_rng(0)
    loudness = np.repeat(rng.uniform(0.01, 0.5, 60), 16_000)  # windows differ in loudness
    waveform = (rng.normal(0, 1, 60 * 16_000) * loudness).astype(np.float32)
    rows, valid = network(waveform, 0, 240, 0.25)
    assert valid.all()
    change = np.linalg.norm(np.diff(rows, axis=0), axis=1)
    edges = {edge for window in windows(0, 240, 80, 16) for edge in window} - {0, 240}
    at_edges = np.array([change[edge - 1] for edge in edges])
    steady = np.ones(len(change), bool)
    steady[3::4] = False  # the loudness itself jumps there
    assert at_edges.max() < np.percentile(change, 99)
    assert np.median(at_edges) < 2 * np.median(change)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (80, [(0, 80)]),
        (81, [(0, 80), (1, 81)]),
        (144, [(0, 80), (64, 144)]),
        (150, [(0, 80), (64, 144), (70, 150)]),
    ],
)
def test_windows_have_one_length(end: int, expected: list[tuple[int, int]]) -> None:
    assert list(windows(0, end, 80, 16)) == expected


def test_pretrained_networks_from_folders(tmp_path: Path) -> None:
    """The hub's own formats: a transformers folder and a timm weights file."""
    model = save_wav2vec2(tmp_path / "sound")
    picture = timm.create_model("mobilevit_xxs")
    weights = str(tmp_path / "picture.safetensors")
    save_file(picture.state_dict(), weights)
    recipe = make_recipe(
        "mobilevit_xxs",
        str(tmp_path / "sound"),
        video_weights=str(tmp_path / "picture.safetensors"),
    )
    assert recipe.random_streams == []
    other = save_wav2vec2(tmp_path / "other", seed=4)
    assert model is not other
    changed = make_recipe(
        "mobilevit_xxs",
        str(tmp_path / "other"),
        video_weights=str(tmp_path / "picture.safetensors"),
    )
    assert changed.fingerprint != recipe.fingerprint
    assert [line.split(":")[0] for line in changed.differences(recipe)] == [
        "streams.audio.weights_sha256"
    ]


def test_the_hubs_cache_serves_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    entry = tmp_path / "models--somebody--small-wav2vec2"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(commit)
    save_wav2vec2(entry / "snapshots" / commit)
    network = AudioBackbone(
        {"name": "somebody/small-wav2vec2", "weights": "pretrained"}, CPU, "fp32"
    )
    assert network.features == 32


def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extract.backbones._hub_answers", lambda: False)


def test_missing_weights_give_three_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    no_hub(monkeypatch)
    with pytest.raises(WeightsError, match=r"(?s)video.*1\..*2\..*--video-weights.*3\..*random"):
        make_recipe("mobilevit_xxs")


def test_missing_sound_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_hub(monkeypatch)
    with pytest.raises(WeightsError, match=r"(?s)nobody/none.*--audio-model FOLDER"):
        AudioBackbone({"name": "nobody/none", "weights": "pretrained"}, CPU, "fp32")
    with pytest.raises(WeightsError, match="audio"):
        AudioBackbone({"name": str(tmp_path), "weights": "pretrained"}, CPU, "fp32")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nonsense")
    source = {"name": "mobilevit_xxs", "weights": "pretrained", "file": str(bad)}
    with pytest.raises(WeightsError, match="video"):
        VideoBackbone(source, CPU, "fp32")


def test_an_incomplete_checkpoint_is_refused(tmp_path: Path) -> None:
    model = save_wav2vec2(tmp_path)
    state = {k: v for k, v in model.state_dict().items() if "encoder.layers.0.attention" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(WeightsError, match=r"lacks .* weights"):
        AudioBackbone({"name": str(tmp_path), "weights": "pretrained"}, CPU, "fp32")


def test_random_weights_are_seeded_and_recorded(sound_model: str) -> None:
    before = torch.random.get_rng_state()
    one = make_recipe("mobilevit_xxs", sound_model, weights="random")
    torch.manual_seed(99)
    two = make_recipe("mobilevit_xxs", sound_model, weights="random")
    assert one == two
    assert one.random_streams == ["video", "audio"]
    torch.random.set_rng_state(before)


@pytest.mark.parametrize(
    "settings",
    [{"weights": "none"}, {"precision": "fp8"}, {"snippet_seconds": 0.0}, {"snippet_seconds": 99}],
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make_recipe("mobilevit_xxs", **settings)


def test_no_such_model() -> None:
    with pytest.raises(WeightsError, match="timm has no model"):
        make_recipe("mobilevit_nope", weights="random")
