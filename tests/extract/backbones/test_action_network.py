"""Networks that read windows of frames give what torchvision and transformers give for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from compare import cosine
from numpy.typing import NDArray
from PIL import Image
from small_networks import save_videomae
from transformers import VideoMAEImageProcessor

from extract import Extractor, WeightsError, live_snippets, make_recipe
from extract.backbones.action_network import Action
from extract.backbones.checkpoint import read_tensors
from extract.preprocessing import FrameWindow
from extract.synthetic import make_clip

CPU = torch.device("cpu")
CLASSES = 400
Pictures = list[NDArray[np.uint8]]


def moving(frames: int, height: int = 150, width: int = 200) -> Pictures:
    """Soft clouds that move."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8))
    cloud = np.asarray(small.resize((width + 4 * frames, height), Image.Resampling.BICUBIC))
    return [np.ascontiguousarray(cloud[:, 4 * n : 4 * n + width]) for n in range(frames)]


def prepared(network: Action, pictures: Pictures) -> NDArray[np.uint8]:
    return network.prepare([network.prepare.small(picture) for picture in pictures])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classes"), [("s3d", "classifier.1"), ("r2plus1d_18", "fc"), ("mvit_v2_s", "head.1")]
)
def test_torchvision_s_networks(tmp_path: Path, name: str, classes: str) -> None:
    """Of the rows, the layer of the classes makes the scores that the whole network gives."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    file = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict()}, file)
    network = Action({"name": f"{name}={file}"}, CPU, "fp32")
    pictures = moving(16)
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    video = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    given = transform(video)
    with torch.inference_mode():
        scores = model(given[None])[0].numpy()
    weight, bias = (read_tensors(file)[f"model.{classes}.{key}"] for key in ("weight", "bias"))
    window = prepared(network, pictures)
    pixels = (torch.from_numpy(window) / 255 - network._mean) / network._std
    assert (pixels.permute(3, 0, 1, 2) - given).abs().max() < 1.01 / 255 / min(transform.std)
    (row,) = network([window])
    assert row.shape == (network.features,) == (weight.shape[1],)
    ours = weight.reshape(CLASSES, -1).numpy() @ row + bias.numpy()
    assert cosine(ours, scores) > 0.9999


def test_videomae(tmp_path: Path) -> None:
    model = save_videomae(tmp_path)
    network = Action({"name": str(tmp_path)}, CPU, "fp32")
    pictures = moving(4)
    given = VideoMAEImageProcessor.from_pretrained(tmp_path)(pictures, return_tensors="pt")
    with torch.inference_mode():
        expected = model(given.pixel_values).last_hidden_state[0].mean(0).numpy()
    window = prepared(network, pictures)
    other = prepared(network, pictures[::-1])
    rows = network([window, other])
    assert cosine(rows[0], expected) > 0.9999
    assert np.array_equal(network([other])[0], rows[1])  # whatever it is read together with
    assert cosine(rows[1], expected) < 0.999  # the order of frames counts
    assert network.recipe["frames"] == 4
    assert np.diff(network.prepare.instants) == pytest.approx([4 / 30] * 3)


def test_sizes_are_those_of_torchvision() -> None:
    """Also where pictures grow."""
    for height, width in ((150, 200), (200, 150), (40, 61)):
        (picture,) = moving(1, height, width)
        for resize in ((128, 171), (130,), (256, 256)):
            transform = torchvision.transforms._presets.VideoClassification(
                crop_size=(112, 112), resize_size=resize, mean=(0.0,) * 3, std=(1.0,) * 3
            )
            theirs = transform(torch.from_numpy(picture[None]).permute(0, 3, 1, 2))[:, 0]
            ours = FrameWindow(resize, (112, 112), False, (0.0,)).small(picture)
            assert np.abs(theirs.permute(1, 2, 0).numpy() * 255 - ours).max() < 1.01


@pytest.mark.slow
def test_as_a_stream(tmp_path: Path) -> None:
    """Beside another one, whose rows stay what they are; in a short clip too."""
    save_videomae(tmp_path / "net")
    video = make_clip(tmp_path / "a.mp4", "Crash", 0, seconds=2.0)
    short = make_clip(tmp_path / "b.mp4", "Crash", 1, seconds=0.4)
    action = f"action={tmp_path / 'net'}"
    recipe = make_recipe("test_vit", weights="random", only=["video", action])
    both = Extractor(recipe)
    found, brief = both(video), both(short)
    both.close()
    alone = Extractor(make_recipe("test_vit", weights="random", only=["video"]))
    assert np.array_equal(found.streams["video"], alone(video).streams["video"])
    alone.close()
    assert found.streams["action"].shape == (8, 32)
    assert found.valid["action"].all()
    assert brief.valid["action"].tolist() == [True, True]
    # windows of 0.4 s at the ends lie within the clip, so those of the first two snippets differ
    assert not np.array_equal(*found.streams["action"][:2])
    with pytest.raises(ValueError, match="action reads frames after its snippet"):
        make_recipe(only=[action], live=True)
    with pytest.raises(WeightsError, match="action reads frames after its snippet"):
        next(iter(live_snippets(str(video), recipe)))


def without_weights(folder: Path) -> str:
    torch.save({"conv.weight": torch.zeros(3)}, folder / "a.pth")
    return f"s3d={folder / 'a.pth'}"


def both(folder: Path) -> str:
    return f"r3d_18={folder / 'a.pth'}"


def another_network(folder: Path) -> str:
    from small_networks import save_clip

    save_clip(folder)
    return str(folder)


def another_size(folder: Path) -> str:
    save_videomae(folder)
    VideoMAEImageProcessor(size={"shortest_edge": 64}, crop_size=64).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (without_weights, r"a.pth does not hold .* s3d: 387 of its 387 tensors are missing"),
        (lambda folder: "s3dd", r"there is no s3dd; expected a VideoMAE, or one of"),
        (both, r"a.pth or --weights random, not both"),
        (another_network, r"is a clip; expected a VideoMAE, or one of torchvision's r3d_18"),
        (another_size, r"prepared in another way"),
    ],
)
def test_what_will_not_do(tmp_path: Path, make: Callable[[Path], Any], why: str) -> None:
    source = {"name": make(tmp_path), "weights": "random" if make is both else "pretrained"}
    with pytest.raises(WeightsError, match=f"action network: .*{why}"):
        Action(source, CPU, "fp32")
