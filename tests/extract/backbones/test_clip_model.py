"""A stream that can be compared with texts: rows and texts are what transformers gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compare import cosine
from PIL import Image
from small_networks import save_clip, save_wav2vec2
from transformers import AutoTokenizer, CLIPImageProcessor

from extract import Extractor, WeightsError, make_recipe, read_text
from extract.backbones.clip_model import Clip
from extract.decoding.container import probe
from extract.decoding.frames import frames

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return str(folder)


def test_frames_give_what_transformers_gives(checkpoint: str, clips: Path) -> None:
    model = save_clip(Path(checkpoint))
    processor = CLIPImageProcessor.from_pretrained(checkpoint)
    ours = Clip({"name": checkpoint}, CPU, "fp32")
    path = clips / "Explosion" / "0.mp4"
    pictures = list(frames(path, probe(path), np.arange(0, 12, 2)))
    given = processor(images=[Image.fromarray(p) for p in pictures], return_tensors="pt")
    with torch.inference_mode():
        theirs = model(
            **given, input_ids=torch.tensor([[0, 1]]), attention_mask=torch.ones(1, 2)
        ).image_embeds
    rows = ours([ours.prepare([picture]) for picture in pictures])
    assert rows.shape == (6, ours.features) == (6, 16)
    assert cosine(rows, theirs.numpy()) > 0.999
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1)


def test_texts_give_what_transformers_gives(checkpoint: str) -> None:
    model = save_clip(Path(checkpoint))
    words = AutoTokenizer.from_pretrained(checkpoint)(["a crowd"], return_tensors="pt")
    pixels = torch.zeros(1, 3, 32, 32)
    with torch.inference_mode():
        theirs = model(**words, pixel_values=pixels).text_embeds[0].numpy()
    ours = Clip({"name": checkpoint}, CPU, "fp32")
    assert np.allclose(ours.read_text("a crowd"), theirs, atol=1e-5)
    assert not np.allclose(ours.read_text("a crow"), theirs, atol=1e-3)
    assert ours.read_text("a crowd that is far too long for it").shape == (16,)


def test_a_stream_beside_picture_and_sound(
    checkpoint: str, sound_model: str, clips: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(
        "mobilevit_xxs", sound_model, "random", further=[f"clip={checkpoint}", "flow"]
    )
    assert recipe.random_streams == ["video", "audio", "clip"]
    extractor = Extractor(recipe)
    features = extractor(clips / "Explosion" / "0.mp4")
    extractor.close()
    assert features.streams["clip"].shape == (4, 16)
    assert features.valid["clip"].all()
    assert read_text("a crowd", "clip", recipe).shape == (16,)
    save_clip(tmp_path / "other", seed=4)
    source = {"clip": {"backbone": "clip", "name": str(tmp_path / "other")}}
    with pytest.raises(WeightsError, match="not the one that made it"):
        read_text("a crowd", "clip", replace(recipe, source=source))


def test_checkpoints_that_will_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extract.backbones.hub.hub_answers", lambda: False)
    with pytest.raises(WeightsError, match=r"(?s)clip.*nobody/none.*--stream clip=FOLDER"):
        Clip({"name": "nobody/none"}, CPU, "fp32")
    save_wav2vec2(tmp_path / "sound")
    with pytest.raises(WeightsError, match="is a wav2vec2; expected a CLIP"):
        Clip({"name": str(tmp_path / "sound")}, CPU, "fp32")
    model = save_clip(tmp_path / "part")
    state = {k: v for k, v in model.state_dict().items() if k != "visual_projection.weight"}
    model.save_pretrained(tmp_path / "part", state_dict=state)
    with pytest.raises(WeightsError, match=r"lacks weights .*: 1 \(visual_projection"):
        Clip({"name": str(tmp_path / "part")}, CPU, "fp32")
    save_clip(tmp_path / "square")
    CLIPImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "square")
    with pytest.raises(WeightsError, match="expected the shortest edge"):
        Clip({"name": str(tmp_path / "square")}, CPU, "fp32")
    save_clip(tmp_path / "mute")
    for file in (tmp_path / "mute").glob("*token*"):
        file.unlink()
    with pytest.raises(WeightsError, match=r"(?s)tokenizer.*--text-model FOLDER"):
        Clip({"name": str(tmp_path / "mute")}, CPU, "fp32").read_text("a")
