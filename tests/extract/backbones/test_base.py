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
from small_networks import save_wav2vec2

from extract import WeightsError, choose_precision, make_recipe
from extract.backbones.timm_image import VideoBackbone
from extract.backbones.transformers_audio import AudioBackbone
from extract.decoding.container import probe
from extract.decoding.frames import frames
from extract.precision import SAME
from features import Recipe

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilenetv3_small_050", "test_vit"])
def test_frames_give_what_timm_gives(name: str, clips: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    model = timm.create_model(name, num_classes=0).eval()
    with_head = timm.create_model(name)
    with_head.load_state_dict(model.state_dict(), strict=False)
    save_file(with_head.state_dict(), tmp_path / "weights.safetensors")
    source = {
        "name": name,
        "weights": "pretrained",
        "file": str(tmp_path / "weights.safetensors"),
    }
    ours = VideoBackbone(source, CPU, "fp32")
    path = clips / "Explosion" / "0.mp4"
    pictures = list(frames(path, probe(path), np.arange(0, 12, 2)))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    with torch.inference_mode():
        theirs = [model(transform(Image.fromarray(p))[None])[0] for p in pictures]
    rows = ours([ours.prepare([picture]) for picture in pictures])
    assert rows.shape == (6, ours.features)
    assert cosine(rows, np.stack([row.numpy() for row in theirs])) > 0.9999


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
    monkeypatch.setattr("extract.backbones.hub.hub_answers", lambda: False)


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
    with pytest.raises(WeightsError, match=r"lacks weights .*: \d+ \(encoder"):
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


def capable(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)


def test_a_processor_without_bf16_keeps_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    capable(monkeypatch, "AVX2")
    choice = choose_precision({}, "cpu")
    assert choice.precision == "fp32"
    assert "AVX2" in choice.why


@pytest.mark.parametrize(
    ("gain", "same", "chosen"), [(2.0, True, "bf16"), (1.05, True, "fp32"), (2.0, False, "fp32")]
)
def test_bf16_must_be_faster_and_as_good(
    gain: float, same: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Network:
        """Takes its time on a clock of its own, and says the same in both precisions, or not."""

        reads = "sound"

        def __init__(self, precision: str) -> None:
            self.precision = precision

        def __call__(self, windows: np.ndarray) -> np.ndarray:
            clock[0] += 1.0 if self.precision == "fp32" else 1.0 / gain
            turned = not same and self.precision == "bf16"
            return np.array([[[1.0, 0.1 if turned else 0.0], [0.0, 0.0]]], np.float32)

    clock = [0.0]
    capable(monkeypatch, "AVX512")
    monkeypatch.setattr("extract.precision.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(
        "extract.precision.load_networks", lambda source, device, p: {"audio": Network(p)}
    )
    choice = choose_precision({}, "cpu")
    assert choice.precision == chosen
    assert f"{gain:.2f} x as fast" in choice.why


def test_both_precisions_are_really_tried(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    capable(monkeypatch, "AVX512")
    monkeypatch.setattr("extract.precision.FRAMES_PER_BATCH", 1)  # bf16 may be very slow here
    monkeypatch.setattr("extract.precision.ROUNDS", 1)
    choice = choose_precision(recipe.source, "cpu")
    likeness = float(choice.why.split()[-1])
    # this tiny network's rows of near silence: 0.9999 on one processor, 0.87 on one with AMX
    assert 0.5 < likeness < 1
    assert choice.precision == "fp32" or likeness >= SAME
