"""A third stream beside picture and sound: the one that ships, and one of another package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from extract import Cluster, Extractor, Task, WeightsError, extract, make_recipe
from extract.backbones.optical_flow import CELLS, DIRECTIONS
from extract.synthetic import write_video
from features import Features, Recipe, Store
from features.joined_store import merge_streams

RIGHT, DOWN, LEFT, UP = (DIRECTIONS // 4 * n for n in range(4))


def moving(path: Path, right: int, down: int) -> Path:
    """One second of a ground that moves by some of its 160 x 160 pixels a frame, at 25 a second."""
    ground = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    ground = ground.repeat(16, 0).repeat(16, 1)
    pictures = [np.roll(ground, (down * t, right * t), (0, 1))[:160, :160] for t in range(25)]
    return write_video(path, np.stack(pictures), 25, None)


@pytest.mark.parametrize(
    ("right", "down", "direction"), [(2, 0, RIGHT), (-2, 0, LEFT), (0, 2, DOWN), (0, -2, UP)]
)
def test_direction_of_motion(
    sound_model: str, tmp_path: Path, right: int, down: int, direction: int
) -> None:
    recipe = make_recipe("mobilevit_xxs", sound_model, weights="random", further=["flow"])
    extractor = Extractor(recipe)
    features = extractor(moving(tmp_path / "a.mp4", right, down))
    extractor.close()
    assert list(features.streams) == ["video", "audio", "flow"]
    assert features.valid["flow"].all()
    speed = features.streams["flow"].astype(float).reshape(4, CELLS**2, DIRECTIONS).mean((0, 1))
    assert speed.argmax() == direction
    # 2 of 160 pixels in 1/25 s are 0.31 pictures a second; frames 0.1 s apart are 2 or 3 apart
    assert speed.sum() == pytest.approx(0.31, rel=0.3)
    still = extractor(moving(tmp_path / "still.mp4", 0, 0)).streams["flow"]
    extractor.close()
    assert np.abs(still).max() < 0.02


def test_flow_needs_snippets_that_hold_both_frames(sound_model: str) -> None:
    with pytest.raises(ValueError, match=r"flow reads frames 0\.1 s apart"):
        make_recipe("mobilevit_xxs", sound_model, "random", snippet_seconds=0.08, further=["flow"])


def test_streams_alone_are_those_of_a_whole_store(
    recipe: Recipe, sound_model: str, clips: Path
) -> None:
    """No network of the picture is loaded to hear, and none at all to see motion."""
    alone = [
        make_recipe("mobilevit_nope", sound_model, "random", only=["audio"]),
        make_recipe("mobilevit_nope", "nobody/none", only=["flow"]),
    ]
    assert [list(one.streams) for one in alone] == [["audio"], ["flow"]]
    film = clips / "Explosion" / "0.mp4"
    whole, sound, flow = (with_extractor(one, film) for one in (recipe, *alone))
    assert sound.valid["audio"].all()
    assert np.array_equal(sound.streams["audio"], whole.streams["audio"])
    joined = merge_streams("a", [whole, flow])
    assert list(joined.streams) == ["video", "audio", "flow"]
    assert joined.valid["flow"].all()


def with_extractor(recipe: Recipe, film: Path) -> Features:
    extractor = Extractor(recipe)
    try:
        return extractor(film)
    finally:
        extractor.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"only": ["video=resnet18"]}, "chosen by --video-model"),
        ({"only": ["flow"], "further": ["clip"]}, "--stream .* or --only .* not both"),
    ],
)
def test_streams_that_cannot_be_chosen_so(words: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_recipe(weights="random", **words)


NETWORKS = """
from typing import NamedTuple
import numpy as np

class Mean(NamedTuple):
    instants: tuple = (0.0,)
    def __call__(self, frames):
        return frames[0].mean((0, 1)).astype(np.uint8)

class Brightness:
    reads, features, prepare = "frames", 3, Mean()
    recipe = {"model": "mean colour", "features": 3}
    def __init__(self, source, device, precision): pass
    def __call__(self, prepared): return np.stack(prepared).astype(np.float32)

class Loudness:
    reads, features, field, stride = "sound", 1, 400, 400
    recipe = {"model": "loudness", "features": 1}
    def __init__(self, source, device, precision): pass
    def __call__(self, windows): return abs(windows[:, ::400, None])
"""


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package as pip installs it, which makes backbones known."""
    site = tmp_path / "site"
    about = site / "bright-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "bright.py").write_text(NETWORKS)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bright\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[avarnet.backbones]\nbright = bright:Brightness\nloud = bright:Loudness\n"
    )
    monkeypatch.syspath_prepend(site)
    return "bright"


@pytest.mark.slow
def test_another_packages_backbone(sound_model: str, tmp_path: Path, other_package: str) -> None:
    video = write_video(tmp_path / "a.mp4", np.full((25, 64, 64, 3), 200, np.uint8), 25, None)
    recipe = make_recipe("mobilevit_xxs", sound_model, "random", further=[other_package])
    store = tmp_path / "store"
    summary = extract([Task("a", video)], store, recipe, cluster=Cluster(workers=1))
    assert summary.extracted == ["a"]
    assert np.allclose(Store(store)["a"].streams["bright"], 200, atol=3)


@pytest.mark.usefixtures("other_package")
def test_how_its_sound_is_cut_is_part_of_the_recipe() -> None:
    usual, live = (make_recipe(only=["loud"], live=live) for live in (False, True))
    assert usual.streams["loud"]["window_seconds"] == 20
    assert (usual.streams_with_lookahead, live.streams_with_lookahead) == (["loud"], [])
    assert live.streams["loud"]["trailing_seconds"] == 1


def test_an_unknown_backbone(sound_model: str) -> None:
    with pytest.raises(WeightsError, match=r"no backbone 'depth'.* flow, timm, transformers"):
        make_recipe("mobilevit_xxs", sound_model, "random", further=["depth"])


def test_a_backbone_that_needs_more_than_its_name(sound_model: str) -> None:
    with pytest.raises(WeightsError, match=r"'timm' needs its 'name'.*--video-model"):
        make_recipe("mobilevit_xxs", sound_model, "random", further=["timm"])
