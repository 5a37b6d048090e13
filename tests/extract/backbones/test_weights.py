"""Every weight of a backbone comes from its checkpoint, or the checkpoint is refused with why."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from compare import cosine
from PIL import Image
from safetensors.torch import save_file
from small_networks import save_clip, save_wav2vec2
from sound import noise
from torch import nn
from transformers import CLIPModel, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from avarnet.inputs import warn_of_assumptions
from extract import WeightsError, make_recipe
from extract.backbones.base import refuse_random, seeded
from extract.backbones.clip_model import Clip
from extract.backbones.timm_image import VideoBackbone
from extract.backbones.transformers_audio import AudioBackbone
from extract.decoding.container import probe
from extract.decoding.frames import frames
from features import Recipe

CPU = torch.device("cpu")
PAGE = b"\n<!DOCTYPE html>\n<html><body>Please log in</body></html>" + b" " * 2000
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 22000000\n"
State = dict[str, Any]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extract.backbones.hub.hub_answers", lambda: False)


def trained(name: str, seed: int = 7, **options: Any) -> nn.Module:
    """A network none of whose tensors is as it was made, as after training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return stirred(timm.create_model(name, num_classes=10, **options))


def stirred(model: nn.Module) -> nn.Module:
    for tensor in model.state_dict().values():
        if tensor.dim() > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5)
        elif tensor.is_floating_point():
            tensor.add_(torch.randn_like(tensor) * 0.05)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics are those of what it sees now
            module.reset_running_stats()
    with torch.no_grad():
        model.train()(torch.cat([pixels(), pixels().flip(1)]))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained("mobilevit_xxs")


def load(file: Path | None, name: str = "mobilevit_xxs") -> VideoBackbone:
    source = {"name": name, "weights": "pretrained"} | ({"file": str(file)} if file else {})
    return VideoBackbone(source, CPU, "fp32")


def pixels() -> torch.Tensor:
    """(2, 3, 192, 192), from 0 to 1, more red than blue."""
    noise = torch.rand((2, 3, 192, 192), generator=torch.Generator().manual_seed(1))
    return noise * torch.tensor([1.0, 0.5, 0.1])[:, None, None]


def gives(ours: VideoBackbone, theirs: nn.Module) -> None:
    """Both give the same rows, and not because all rows are alike."""
    given = pixels()
    with torch.inference_mode():
        wanted: Any = theirs
        rows = wanted.forward_head(wanted.forward_features(given), pre_logits=True)
        assert torch.allclose(ours.model(given), rows, atol=1e-4, rtol=1e-3)
        assert not torch.allclose(ours.model(given.flip(1)), rows, atol=0.01, rtol=0.1)


def prefixed(prefix: str) -> Callable[[State], Any]:
    return lambda state: {prefix + key: tensor for key, tensor in state.items()}


def noisy(state: State) -> State:
    return {k: t + 1 if t.is_floating_point() else t for k, t in state.items()}


def lightning(state: State) -> Any:
    moments = {n: {"exp_avg": t, "step": torch.tensor(1.0)} for n, t in enumerate(state.values())}
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {**prefixed("model.")(state), "criterion.weight": torch.ones(10)},
        "hyper_parameters": {"lr": 0.1},
        "optimizer_states": [{"state": moments}],
        "loops": {"fit_loop": {"state_dict": {}}},
    }


def averaged_model(state: State) -> Any:
    """What `torch.optim.swa_utils.AveragedModel` has."""
    return {"n_averaged": torch.tensor(3), **prefixed("module.")(state)}


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1)},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 1},
    "module.": prefixed("module."),
    "backbone.": prefixed("backbone."),
    "compiled": prefixed("_orig_mod."),
    "compiled inside": lambda state: {"model": prefixed("module._orig_mod.")(state)},
    "Lightning": lightning,
    "nested": lambda state: {"model": {"state_dict": prefixed("net.backbone.")(state)}},
    "timm's EMA": lambda state: {"state_dict": noisy(state), "state_dict_ema": state},
    "DeiT's EMA": lambda state: {"model": noisy(state), "model_ema": state},
    "Lightning's EMA": lambda state: {
        "state_dict": prefixed("model.")(noisy(state)) | prefixed("ema_model.module.")(state)
    },
    "torch's EMA": averaged_model,
    "twice the same": lambda state: {"model": state, "best": state},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_usual_wrappers_and_prefixes(layout: str, model: nn.Module, tmp_path: Path) -> None:
    torch.save(LAYOUTS[layout](model.state_dict()), tmp_path / "weights.pth")
    gives(load(tmp_path / "weights.pth"), model)


def test_the_suffix_does_not_matter(model: nn.Module, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "weights.bin")
    torch.save(model.state_dict(), tmp_path / "weights.safetensors")
    old = tmp_path / "weights.tar"
    torch.save(model.state_dict(), old, _use_new_zipfile_serialization=False)
    one, two, three = (load(tmp_path / f"weights.{s}") for s in ("bin", "safetensors", "tar"))
    assert one.recipe == two.recipe == three.recipe
    gives(one, model)


def without(part: str) -> Callable[[State], State]:
    return lambda state: {k: t for k, t in state.items() if part not in k}


def reshaped(state: State) -> State:
    return {**state, "stem.conv.weight": torch.zeros(8, 3, 3, 3)}


def integers(state: State) -> State:
    return {k: (t * 10).to(torch.int8) for k, t in state.items()}


REFUSED: list[tuple[Callable[[State], Any], str]] = [
    (lambda state: timm.create_model("resnet18").state_dict(), r"missing.*Found there.*conv1"),
    (lambda state: dict(list(state.items())[: len(state) // 2]), r"tensors are missing \(stages"),
    (without("stages.4.1.norm.bias"), r"1 of its \d+ tensors are missing \(stages.4.1.norm.bias\)"),
    (without("running_var"), r"\d+ of its \d+ tensors are missing \(stem.bn.running_var"),
    (
        lambda state: timm.create_model("mobilevit_xs").state_dict(),
        r"another shape.*\(stages\.\S+: \(\d.*\) float32, expected \(\d.*Found there",
    ),
    (reshaped, r"1 have another shape.*stem.conv.weight: \(8, 3, 3, 3\).*expected \(16, 3, 3, 3\)"),
    (integers, r"another shape or type \(stem\S+: \(16, 3, 3, 3\) int8, expected"),
    (lambda state: {"epoch": 3, "lr": 0.1}, r"no named tensors but a dict with epoch, lr"),
    (lambda state: {"state_dict": {}}, "no named tensors"),
    (lambda state: list(state.values()), "no named tensors but a list"),
    (
        lambda state: {"student": state, "teacher": noisy(state)},
        r"several networks .*student\.\*, teacher\.\*",
    ),
]


@pytest.mark.parametrize(("change", "why"), REFUSED)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[State], Any], why: str, model: nn.Module, tmp_path: Path
) -> None:
    torch.save(change(model.state_dict()), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=f"(?s)video network.*weights.pth.*{why}"):
        load(tmp_path / "weights.pth")


def test_a_layout_that_timm_knows(tmp_path: Path) -> None:
    """The patches' projection of some authors is a matrix, which timm makes a convolution."""
    model = trained("test_vit")
    state = model.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    torch.save({"model": state}, tmp_path / "weights.pth")
    ours = load(tmp_path / "weights.pth", "test_vit")
    given = pixels()
    with torch.inference_mode():
        rows = model.forward_head(model.forward_features(given), pre_logits=True)
        assert torch.allclose(ours.model(given), rows, atol=1e-4)
    del state["blocks.0.norm1.weight"]
    torch.save({"model": state}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"blocks\.0\.norm1\.weight"):
        load(tmp_path / "weights.pth", "test_vit")


def timm_folder(folder: Path, state: State) -> None:
    folder.mkdir(exist_ok=True)
    about = {"architecture": "mobilevit_xxs", "pretrained_cfg": {"input_size": [3, 64, 64]}}
    (folder / "config.json").write_text(json.dumps(about))
    save_file(state, folder / "model.safetensors")


def test_a_folder_in_timms_format(model: nn.Module, tmp_path: Path) -> None:
    timm_folder(tmp_path / "whole", prefixed("module.")(model.state_dict()))
    ours = load(None, str(tmp_path / "whole"))
    gives(ours, model)
    assert ours.prepare.crop == (64, 64)
    timm_folder(tmp_path / "part", without("final_conv")(model.state_dict()))
    with pytest.raises(WeightsError, match=r"final_conv.conv.weight.*Found there"):
        load(None, str(tmp_path / "part"))
    # a file that is named is what counts, whatever lies in the folder
    other = trained("mobilevit_xxs", seed=8)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    gives(load(tmp_path / "other.safetensors", str(tmp_path / "part")), other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"no config.json; expected"):
        load(None, str(tmp_path / "empty"))


def in_cache(cache: Path, repository: str) -> Path:
    """Return the folder of a model's files in the hub's cache."""
    entry = cache / f"models--{repository.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("0" * 40)
    folder = entry / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    return folder


def test_the_hubs_checkpoint_must_be_whole(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = in_cache(tmp_path, "timm/mobilevit_xxs.cvnets_in1k")
    timm_folder(folder, model.state_dict())
    gives(load(None), model)
    gives(load(None, "timm/mobilevit_xxs.cvnets_in1k"), model)
    timm_folder(folder, without("stem.bn")(model.state_dict()))
    with pytest.raises(WeightsError, match=r"4 of its \d+ tensors are missing \(stem.bn"):
        load(None)


V1 = {
    "hidden_sizes": [64, 80, 96],
    "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320],
    "expand_ratio": 2.0,
}
KINDS = {
    "MobileViT": (V1, "mobilevit_xxs"),
    "MobileViTV2": ({"width_multiplier": 0.5}, "mobilevitv2_050"),
}
APPLES = {  # the preprocessor_config.json of apple/mobilevit-small
    "crop_size": 256,
    "do_center_crop": True,
    "do_flip_channels": True,
    "do_resize": True,
    "feature_extractor_type": "MobileViTFeatureExtractor",
    "resample": 2,
    "size": 288,
}


def save_mobilevit(folder: Path, kind: str, head: str = "ForImageClassification") -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(**KINDS[kind][0])
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = stirred(getattr(transformers, f"{kind}{head}")(config))
    network.save_pretrained(folder)  # type: ignore[operator]
    return network


@pytest.mark.parametrize("head", ["Model", "ForImageClassification"])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_mobilevit_gives_what_transformers_gives(
    kind: str, head: str, tmp_path: Path
) -> None:
    network: Any = save_mobilevit(tmp_path, kind, head)
    ours = load(tmp_path / "model.safetensors", KINDS[kind][1])
    assert "blue first" in ours.assumed
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(APPLES))
    folder = load(None, str(tmp_path))
    assert folder.recipe["model"] == KINDS[kind][1]
    assert folder.recipe["weights_sha256"] == ours.recipe["weights_sha256"]
    assert (folder.prepare.scale, folder.prepare.crop, folder.assumed) == (288, (256, 256), "")
    body = network if head == "Model" else getattr(network, kind.lower())
    given = pixels()
    with torch.inference_mode():
        blue_first = body(given.flip(1)).last_hidden_state.mean((2, 3))
        red_first = body(given).last_hidden_state.mean((2, 3))
        rows = ours.model(given)
    assert torch.allclose(rows, blue_first, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(rows, red_first, atol=0.01, rtol=0.1)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({**APPLES, "do_flip_channels": False})
    )
    with torch.inference_mode():
        rows = load(None, str(tmp_path)).model(given)
    assert torch.allclose(rows, red_first, atol=1e-4, rtol=1e-3)


def test_frames_for_transformers_mobilevit(clips: Path, tmp_path: Path) -> None:
    """From a frame on, with the checkpoint's own processor."""
    network: Any = save_mobilevit(tmp_path, "MobileViT", "Model")
    processor = transformers.MobileViTImageProcessor(
        size={"shortest_edge": 288}, crop_size={"height": 256, "width": 256}
    )
    processor.save_pretrained(tmp_path)
    path = clips / "Explosion" / "0.mp4"
    pictures = list(frames(path, probe(path), np.arange(0, 12, 4)))
    given = processor([Image.fromarray(p) for p in pictures], return_tensors="pt").pixel_values
    with torch.inference_mode():
        theirs = network(given).pooler_output.numpy()
    ours = load(None, str(tmp_path))
    rows = ours([ours.prepare([picture]) for picture in pictures])
    assert np.abs(rows - theirs).max() < 0.02 * np.abs(theirs).max()
    assert cosine(rows, theirs) > 0.9999


def test_transformers_mobilevit_that_will_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_mobilevit(tmp_path, "MobileViT")
    with pytest.raises(WeightsError, match=r"another shape.*conv1_1x1"):
        load(tmp_path / "model.safetensors", "mobilevit_s")
    processor = tmp_path / "preprocessor_config.json"
    processor.write_text(json.dumps({**APPLES, "do_center_crop": False}))
    with pytest.raises(WeightsError, match="prepared in another way"):
        load(None, str(tmp_path))
    processor.write_bytes(PAGE)
    with pytest.raises(WeightsError, match=r"preprocessor_config.json is a web page"):
        load(None, str(tmp_path))
    processor.unlink()
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**about, "output_stride": 16}))
    with pytest.raises(WeightsError, match="whose output_stride is 16"):
        load(None, str(tmp_path))


def test_a_mobilevit_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = in_cache(tmp_path, "apple/mobilevit-xx-small")
    save_mobilevit(folder, "MobileViT")
    (folder / "preprocessor_config.json").write_text(json.dumps(APPLES))
    ours = load(None, "apple/mobilevit-xx-small")
    assert ours.recipe == load(None, str(folder)).recipe


def random_picture(folder: Path) -> dict[str, Any]:
    with seeded():
        network = timm.create_model("mobilevit_xxs", num_classes=0)
    save_file(network.state_dict(), folder / "w.safetensors")
    return {"only": ["video"], "video_weights": str(folder / "w.safetensors")}


def random_sound(folder: Path) -> dict[str, Any]:
    config = transformers.AutoConfig.from_pretrained(folder)
    with seeded():
        Wav2Vec2Model(config).save_pretrained(folder)
    return {"only": ["audio"], "audio_model": str(folder)}


def random_clip(folder: Path) -> dict[str, Any]:
    config = save_clip(folder).config
    with seeded():
        CLIPModel(config).save_pretrained(folder)
    return {"only": [f"clip={folder}"]}


def test_a_trained_network_is_known_without_a_random_one(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    source = {"name": "mobilevit_xxs", "weights": "pretrained", "file": tmp_path / "w.safetensors"}
    network = VideoBackbone(source, CPU, "fp32")
    monkeypatch.setattr("extract.backbones.base.load_backbone", lambda *_: pytest.fail("made one"))
    refuse_random("video", source, network, "fp32")


@pytest.mark.parametrize("make", [random_picture, random_sound, random_clip])
def test_seeded_random_weights_are_never_pretrained(
    make: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    save_wav2vec2(tmp_path)
    settings = make(tmp_path)
    with pytest.raises(WeightsError, match=r"as pretrained, but are those .* random gives"):
        make_recipe("mobilevit_xxs", **settings)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_in_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = trained("mobilevit_xxs").to(dtype)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    ours = load(tmp_path / "weights.pth")
    assert {t.dtype for t in ours.model.parameters()} == {torch.float32}
    gives(ours, model.float())


def halved(model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    model.to(dtype).save_pretrained(folder)  # type: ignore[operator]
    result = json.loads((folder / "config.json").read_text())
    assert result["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_single(dtype: torch.dtype, tmp_path: Path) -> None:
    halved(save_wav2vec2(tmp_path / "sound"), tmp_path / "sound", dtype)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "sound")
    ears = AudioBackbone({"name": str(tmp_path / "sound"), "weights": "pretrained"}, CPU, "fp32")
    model = Wav2Vec2Model.from_pretrained(tmp_path / "sound", dtype=torch.float32).eval()
    values = ears.extractor(noise(8000), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        expected = model(values).last_hidden_state.numpy()
    assert np.allclose(ears(noise(8000)[None]), expected, atol=1e-5)
    random = {"name": str(tmp_path / "sound"), "weights": "random"}
    assert AudioBackbone(random, CPU, "fp32")(noise(8000)[None]).shape == expected.shape
    halved(save_clip(tmp_path / "clip"), tmp_path / "clip", dtype)
    eyes = Clip({"name": str(tmp_path / "clip")}, CPU, "fp32")
    assert {tensor.dtype for tensor in eyes.model.parameters()} == {torch.float32}
    assert np.isfinite(eyes([np.full((32, 32, 3), 90, np.uint8)])).all()


def test_absent_settings_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_wav2vec2(tmp_path)
    source = f"clip={tmp_path / 'clip'}"
    save_clip(tmp_path / "clip")
    recipe = make_recipe(audio_model=str(tmp_path), only=["audio", source])
    assert "do_normalize=True" in recipe.source["audio"]["assumed"]
    assert "assumed" not in recipe.source["clip"]
    assert Recipe.from_json(recipe.to_json()).source == recipe.source
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path)
    made = make_recipe(audio_model=str(tmp_path), only=["audio", source])
    assert "224" in made.source["clip"]["assumed"]
    assert "assumed" not in made.source["audio"]
    assert made.streams["audio"] == recipe.streams["audio"]
    warn_of_assumptions(recipe)
    heard = " ".join(capsys.readouterr().err.split())
    assert re.search(
        r"ASSUMED \(audio\): no preprocessor_config.json .* \(do_normalize=True\)", heard
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (PAGE, r"preprocessor_config.json is a web page \(HTML\)"),
        (b"", "is empty"),
        (b"{'do_normalize': True}", "cannot be read .*expected JSON settings"),
        (b'["do_normalize"]', "holds a list; expected JSON settings"),
        (b'{"do_normalize": true, "sampling_rate": 8000}', "sampling_rate 8000"),
        (b'{"do_normalize": "no", "sampling_rate": 16000}', "do_normalize no"),
    ],
)
def test_settings_that_are_none_are_refused(content: bytes, why: str, tmp_path: Path) -> None:
    save_wav2vec2(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes(content)
    with pytest.raises(WeightsError, match=f"(?s)audio network: .*{why}"):
        AudioBackbone({"name": str(tmp_path), "weights": "pretrained"}, CPU, "fp32")


@pytest.mark.parametrize("weights", ["random", "pretrained"])
@pytest.mark.parametrize("name", ["mobilevit-xxs", "Mobilevit_XXS", "mobilevit_xx"])
def test_a_name_that_timm_does_not_know(name: str, weights: str) -> None:
    with pytest.raises(WeightsError, match=r"did you mean .*mobilevit_xxs") as found:
        VideoBackbone({"name": name, "weights": weights}, CPU, "fp32")
    assert "ways out" not in str(found.value)


@pytest.mark.slow
def test_other_names_that_lead_nowhere() -> None:
    with pytest.raises(WeightsError, match=r"(?s)Did you mean facebook/wav2vec2-base\b"):
        AudioBackbone({"name": "wav2vec2-bas", "weights": "pretrained"}, CPU, "fp32")
    with pytest.raises(WeightsError, match="no such folder"):
        VideoBackbone({"name": "./models/mine", "weights": "pretrained"}, CPU, "fp32")
    # a network of timm's for which nobody has published weights
    name = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with pytest.raises(WeightsError, match=f"timm has no weights for {name}"):
        VideoBackbone({"name": name, "weights": "pretrained"}, CPU, "fp32")


class Options:
    """Something in a checkpoint that only its own code can make again."""


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("content", "why"),
    [(PAGE, r"web page \(HTML\)"), (POINTER, "git lfs pull"), (b"", "is empty"), (None, "Options")],
)
def test_files_that_are_no_weights(
    content: bytes | None, why: str, suffix: str, model: nn.Module, tmp_path: Path
) -> None:
    file = tmp_path / f"weights.{suffix}"
    if content is None:
        torch.save({"model": model.state_dict(), "options": Options()}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(WeightsError, match=why) as found:
        load(file)
    assert "weights_only" not in str(found.value)
    assert "ways out" not in str(found.value)


@pytest.mark.parametrize("content", [PAGE, POINTER, b"", None])
def test_a_folder_whose_weights_are_none(content: bytes | None, tmp_path: Path) -> None:
    network = save_wav2vec2(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "pytorch_model.bin"
    if content is None:
        torch.save({**network.state_dict(), "options": Options()}, file)
    else:
        file.write_bytes(content)
    why = "could run code" if content is None else "pytorch_model.bin is "
    with pytest.raises(WeightsError, match=why) as found:
        AudioBackbone({"name": str(tmp_path), "weights": "pretrained"}, CPU, "fp32")
    assert "weights_only" not in str(found.value)


def test_trained_weights_are_read_whole(shared: Path) -> None:
    file = shared / "models" / "tf_efficientnet_lite0.safetensors"
    recipe = make_recipe("tf_efficientnet_lite0", only=["video"], video_weights=str(file))
    assert recipe.random_streams == []
    with pytest.raises(WeightsError, match="another shape"):
        make_recipe("tf_efficientnet_lite2", only=["video"], video_weights=str(file))
