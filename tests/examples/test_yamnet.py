"""The example of a foreign sound backbone, with the real network and its own test data."""

from __future__ import annotations

import importlib
import os
import subprocess
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_packages import install_example
from numpy.typing import NDArray

from extract import Cluster, Task, WeightsError, extract, make_recipe
from features import Store

ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("AVARNET_SHARED", ROOT.parent / "shared")) / "data" / "models"
WEIGHTS = MODELS / "yamnet_spectra_in.tflite"
SPEECH = 0  # the class of the network's own test sound

pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason=f"no {WEIGHTS}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_example("yamnet", tmp_path_factory)


@pytest.fixture
def package(site: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(site)
    return importlib.import_module("avarnet_yamnet")


@pytest.fixture
def network(package: Any) -> Any:
    return package.YAMNet({"name": str(WEIGHTS)}, "cpu", "fp32")


@pytest.fixture
def speech() -> NDArray[np.float32]:
    samples = np.fromfile(MODELS / "yamnet_test_audio.bin", np.int16)
    return samples.astype(np.float32) / 32768


def test_spectra_are_those_that_come_with_the_network(
    package: Any, speech: NDArray[np.float32]
) -> None:
    theirs = np.fromfile(MODELS / "yamnet_test_spectra.bin", np.float32).reshape(96, 64)
    ours = package.log_mel(speech)
    assert ours.shape == theirs.shape
    # up to a constant: their sound has another scale
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.9999


def test_a_row_is_the_layer_before_the_classes(network: Any, speech: NDArray[np.float32]) -> None:
    (row,) = network(speech[None])[0][:1]
    interpreter = network._network
    weights, bias = (
        next(
            tensor["quantization_parameters"]["scales"]
            * (interpreter.get_tensor(tensor["index"]).astype(np.float32))
            for tensor in interpreter.get_tensor_details()
            if list(tensor["shape"]) == shape and "fc/" in tensor["name"]
        )
        for shape in ([521, 1024], [521])
    )
    (output,) = interpreter.get_output_details()
    scores = interpreter.get_tensor(output["index"])[0]
    assert scores.argmax() == SPEECH
    assert scores.max() > 0.9
    by_hand = 1 / (1 + np.exp(-(weights @ row + bias)))
    assert np.abs(by_hand - scores).max() < 0.04  # both are of 8 bits


def test_a_sound_is_where_it_is(network: Any, speech: NDArray[np.float32]) -> None:
    """Half a second of silence, the sound, and silence: one patch is the sound alone."""
    alone = network(speech[None])[0][0]
    silence = np.zeros(8000, np.float32)
    frames = network(np.concatenate([silence, speech, silence])[None])[0]
    nearest = int(np.abs(frames - alone).sum(1).argmin())
    centre = (nearest * network.stride + network.field / 2) / 16_000
    assert centre == pytest.approx(0.5 + len(speech) / 2 / 16_000, abs=0.05)


def test_what_a_window_is_part_of_does_not_matter(network: Any) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 32_000)).astype(np.float32)
    both = network(noise)
    assert (both[1] == network(noise[1:])[0]).all()
    # the end of a sound changes no patch that is over before it
    assert (network(noise[:1, :24_000])[0][:9] == both[0][:9]).all()
    # shorter than a patch
    assert network(noise[:, :3200]).shape == (2, 2, 1024)


@pytest.mark.slow
@pytest.mark.parametrize("live", [False, True])
def test_as_a_stream(
    site: Path,
    package: Any,
    speech: NDArray[np.float32],
    tmp_path: Path,
    live: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))  # for workers
    sound = tmp_path / "sound.wav"
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((np.tile(speech, 4) * 32767).astype(np.int16).tobytes())
    video = tmp_path / "a.mkv"
    subprocess.run(
        [
            *("ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=s=64x64:r=20:d=3.9"),
            *("-i", str(sound), "-c:a", "flac", str(video)),
        ],
        check=True,
    )
    recipe = make_recipe(only=[f"yamnet={WEIGHTS}"], live=live)
    summary = extract([Task("a", video)], tmp_path / "s", recipe, cluster=Cluster(workers=1))
    assert summary.failed == {}
    clip = Store(tmp_path / "s")["a"]
    assert clip.streams["yamnet"].shape == (16, 1024)
    # a window of a second that ends with the snippet is the first to hold a patch
    assert clip.valid["yamnet"].sum() >= (12 if live else 15)


def test_what_is_no_such_network(package: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.tflite"
    page.write_text("<html>")
    with pytest.raises(WeightsError, match=r"page.tflite is no TensorFlow Lite model"):
        package.YAMNet({"name": str(page)}, "cpu", "fp32")
    with pytest.raises(WeightsError, match=r"none.tflite cannot be read: No such file"):
        package.YAMNet({"name": str(tmp_path / "none.tflite")}, "cpu", "fp32")
    with pytest.raises(WeightsError, match="yamnet has no random weights"):
        package.YAMNet({"name": str(WEIGHTS), "weights": "random"}, "cpu", "fp32")
