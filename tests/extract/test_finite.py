"""Samples and features that are no numbers are left out, flagged and counted; a recipe of many is
refused."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from command import as_json, avarnet
from fake_extractor import Instant
from numpy.typing import NDArray
from small_networks import save_wav2vec2
from small_stores import RECIPE, clip, fill
from sound import noise
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from extract import Cluster, Extractor, NotFiniteError, Task, extract, live_snippets, make_recipe
from extract.synthetic import make_clip
from features import FeatureError, Features, Flag, Recipe, Store, Writer, overview, verify

pytestmark = pytest.mark.slow

STEP = 4000  # samples of a snippet
TWO = Cluster(workers=2)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds without sound."""
    return make_clip(tmp_path_factory.mktemp("film") / "a.mp4", "Crash", 1, 4.0, sound=False)


@pytest.fixture(scope="module")
def ears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ears")
    save_wav2vec2(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def features_of(recipe: Recipe, video: Path, sound: Path | None = None) -> Features:
    extractor = Extractor(recipe)
    features = extractor(video, sound)
    extractor.close()
    return features


def by_transformers(folder: Path, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T, features) of sound that fits into one window: means of the frames of each snippet."""
    model = Wav2Vec2Model.from_pretrained(folder).eval()
    prepare = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    values = prepare(waveform, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        outputs = model(values).last_hidden_state[0].numpy()
    at = (320 * np.arange(len(outputs)) + 200) // STEP
    return np.stack([outputs[at == t].mean(0) for t in range(len(waveform) // STEP)])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_one_bad_sample_costs_one_row(
    bad: float, rate: int, ears: Path, film: Path, tmp_path: Path
) -> None:
    waveform = noise(64_000)
    expected = by_transformers(ears, np.where(np.arange(64_000) == 22_000, 0, waveform))
    waveform = np.repeat(waveform, rate // 16_000)
    if rate == 48_000:  # whatever the resampling makes of it, the other rows are as without it
        soundfile.write(tmp_path / "fine.wav", waveform, rate, subtype="FLOAT")
    waveform[22_000 * rate // 16_000] = bad
    soundfile.write(tmp_path / "bad.wav", waveform, rate, subtype="FLOAT")
    recipe = make_recipe(audio_model=str(ears), only=["audio"])
    found = features_of(recipe, film, tmp_path / "bad.wav")
    others = np.arange(16) != 5  # sample 22,000 is in the sixth snippet
    assert found.audio_valid.tolist() == others.tolist()
    assert not found.audio[5].any()
    assert found.flags == Flag.NOT_FINITE
    if rate == 48_000:
        fine = features_of(recipe, film, tmp_path / "fine.wav")
        assert fine.flags == Flag.NONE
        assert fine.audio_valid.all()
        expected = fine.audio.astype(np.float32)
    assert np.allclose(found.audio[others], expected[others], atol=5e-3)


def test_files_and_streams_agree_on_bad_samples(ears: Path, tmp_path: Path) -> None:
    """As `watch` hears them, and `extract --live`: a track of floats in the file itself."""
    film = make_clip(tmp_path / "a.mp4", "Crash", 1, 4.0, sound=False)
    waveform = noise(64_000)
    waveform[22_000], waveform[40_000:42_000] = np.nan, np.inf
    soundfile.write(tmp_path / "b.wav", waveform, 16_000, subtype="FLOAT")
    both = tmp_path / "both.mkv"
    inputs = ["-i", str(film), "-i", str(tmp_path / "b.wav")]
    command = ["ffmpeg", "-v", "error", "-nostdin", *inputs, "-c", "copy", str(both)]
    subprocess.run(command, check=True)
    recipe = make_recipe("mobilevit_xxs", str(ears), "random", live=True)
    found = features_of(recipe, both)
    assert np.flatnonzero(~found.audio_valid).tolist() == [5, 10]
    assert found.video_valid.all()
    assert found.flags == Flag.NOT_FINITE
    seen: list[Any] = [
        event for event in live_snippets(str(both), recipe) if hasattr(event, "rows")
    ]
    assert len(seen) >= 15
    for snippet in seen:
        number = round(snippet.start / 0.25)
        assert snippet.valid["audio"] == found.audio_valid[number]
        assert np.allclose(snippet.rows["audio"], found.audio[number], atol=5e-3)


def overflowing(folder: Path, factor: float) -> None:
    """Wav2Vec2 whose last normalisation makes large numbers."""
    model = save_wav2vec2(folder)
    with torch.no_grad():
        norm = model.encoder.layers[-1].final_layer_norm
        norm.weight.mul_(factor)
        norm.bias.mul_(factor)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


def test_features_beyond_half_precision(clips: Path, tmp_path: Path) -> None:
    overflowing(tmp_path / "loud", 1e6)
    recipe = make_recipe("mobilevit_xxs", str(tmp_path / "loud"), "random")
    audio = make_recipe(audio_model=str(tmp_path / "loud"), only=["audio"])
    recipe = Recipe(
        0.25,
        "fp32",
        {**recipe.streams, **audio.streams},
        {"video": recipe.source["video"], **audio.source},
    )
    found = features_of(recipe, clips / "Explosion" / "0.mp4")
    assert not found.audio_valid.any()
    assert not found.audio.any()
    assert found.video_valid.all()
    assert found.flags == Flag.NOT_FINITE
    store = tmp_path / "store"
    some = [Task(str(n), clips / "Explosion" / f"{n}.mp4") for n in range(3)]
    why = r"recipe refused: 12 of 24 rows so far .*12 of 12 in the stream audio.*more than 1%"
    with pytest.raises(NotFiniteError, match=why):
        extract(some, store, recipe, cluster=Cluster(workers=1))
    assert verify(store) == (3, [])
    with pytest.raises(NotFiniteError, match=why):  # not because there is nothing left to do
        extract(some, store, recipe, cluster=Cluster(workers=1))


def tasks(folder: Path, words: list[str]) -> list[Task]:
    folder.mkdir(exist_ok=True)
    for number, word in enumerate(words):
        (folder / f"{number}.mp4").write_text(word)
    return [Task(str(n), folder / f"{n}.mp4", None, 250.0) for n in range(len(words))]


def test_a_recipe_is_given_up_as_soon_as_that_is_certain(tmp_path: Path) -> None:
    # 20 clips x 250 s / 0.25 s x 2 streams: 40,000 rows, of which 400 may be lost; two a batch
    some = tasks(tmp_path / "v", ["slow 0.3 lost 100 of 1000"] * 20)
    with pytest.raises(NotFiniteError, match=r"600 of 6,000 rows so far .* in the stream audio"):
        extract(some, tmp_path / "s", RECIPE, cluster=Cluster(workers=1), make=Instant)
    assert 6 <= len(Store(tmp_path / "s")) < 20
    assert "refused recipe" in (tmp_path / "s" / "extract.log").read_text()


def test_a_recipe_is_judged_at_the_end(tmp_path: Path) -> None:
    some = tasks(tmp_path / "v", ["lost 2 of 100", "lost 0 of 100"])
    summary = extract(some, tmp_path / "fine", RECIPE, cluster=TWO, make=Instant)
    assert (summary.rows, summary.not_finite) == (200, 2)
    assert summary.not_finite_clips == {"0": 0.02}
    assert "2 of 200 rows not finite" in (tmp_path / "fine" / "extract.log").read_text()
    some = tasks(tmp_path / "v", ["lost 2 of 100", "lost 1 of 100"])
    with pytest.raises(NotFiniteError, match=r"3 of 200 rows"):
        extract(some, tmp_path / "not", RECIPE, cluster=TWO, make=Instant)


def test_damaged_files_are_not_the_recipes_fault(tmp_path: Path) -> None:
    some = tasks(tmp_path / "v", ["broken 1000 of 1000"] * 3 + ["broken 1 of 100", ""])
    summary = extract(some, tmp_path / "s", RECIPE, cluster=TWO, make=Instant)
    assert summary.not_finite == 3001
    assert summary.not_finite_clips == {"0": 1.0, "1": 1.0, "2": 1.0}
    assert overview(Store(tmp_path / "s")).flags == {"not finite": 4}


def test_the_command_names_clips_with_many(film: Path, sound_model: str, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, bad in (("few", ()), ("many", (10, 30_000))):
        (videos / f"{name}.mp4").write_bytes(film.read_bytes())
        waveform = noise(64_000)
        waveform[list(bad)] = np.nan
        soundfile.write(videos / f"{name}.wav", waveform, 16_000, subtype="FLOAT")
    lines = [{"id": name, "path": f"{name}.mp4", "labels": ["a"]} for name in ("few", "many")]
    manifest = videos / "m.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--weights", "random", "--video-model", "mobilevit_xxs", "--audio-model")
    given = ("extract", manifest, tmp_path / "store", *options, sound_model)
    summary = as_json(*given)
    assert (summary["rows"], summary["not_finite"]) == (64, 2)
    assert summary["not_finite_clips"] == {"many": 2 / 32}
    output = avarnet(*given[:2], tmp_path / "again", *given[3:])
    assert "not finite: 2 of 64 rows (3.1%)" in output
    assert re.search(r"many\W+6\.2%", output)
    assert not re.search(r"few\W", output)
    assert "not finite" in avarnet("features", "info", tmp_path / "store")


def test_a_store_takes_no_valid_row_that_is_not_finite(tmp_path: Path) -> None:
    whole = clip(4, 1)
    whole.valid["video"][:] = [True, False, True, True]
    whole.streams["video"][1, 2] = np.nan  # said to be invalid: it means nothing
    fill(tmp_path, {"a": whole})
    whole.streams["video"][2, 0] = np.inf
    with (
        Writer(tmp_path, RECIPE) as writer,
        pytest.raises(FeatureError, match=r"clip b: 1 rows of the stream video.*not finite"),
    ):
        writer.add("b", whole)
    assert set(Store(tmp_path)) == {"a"}
