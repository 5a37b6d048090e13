"""Checkpoints come from whichever hub the environment names, and gated ones by its token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
from servers import Hub, free_port
from small_networks import save_ast, save_clip

from extract import make_recipe
from extract.synthetic import make_clip

TOKEN = "hf_of_the_test"
LOAD = """
import sys
from extract import WeightsError, make_recipe
for name in sys.argv[1:]:
    video, audio, clip = (name + part for part in ("/video", "/audio", "/clip"))
    for stream in ("video", "audio", f"clip={clip}"):
        try:
            print("loaded", make_recipe(video, audio, only=[stream]).fingerprint)
        except WeightsError as error:
            print(str(error).splitlines()[0])
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Path]]:
    """A hub with three networks, for everyone and gated, and their folder."""
    folder = tmp_path_factory.mktemp("hub")
    for owner in ("open", "gated"):
        for stream in ("video", "audio", "clip"):
            (folder / owner / stream).mkdir(parents=True)
        save_ast(folder / owner / "audio")
        save_clip(folder / owner / "clip")
        model = timm.create_model("test_vit", num_classes=0)
        timm.models.save_for_hf(model, folder / owner / "video", model_config={"num_classes": 0})
    server = Hub(folder, "gated", TOKEN)
    yield server, folder
    server.close()


def run(words: list[str], home: Path, endpoint: str, token: str = "") -> str:
    """Return what a process prints, to which nothing is known of any hub but this."""
    machine = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    machine |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint}
    if token:
        machine["HF_TOKEN"] = token
    command = [sys.executable, *words]
    done = subprocess.run(command, env=machine, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_mirror_gives_what_its_folder_gives(hub: tuple[Hub, Path], tmp_path: Path) -> None:
    server, folder = hub
    server.asked.clear()
    found = run(["-c", LOAD, "open", "gated"], tmp_path, server.url).splitlines()
    parts = [str(folder / "open" / part) for part in ("video", "audio", "clip")]
    streams = ("video", "audio", f"clip={parts[2]}")
    expected = [make_recipe(*parts[:2], only=[stream]).fingerprint for stream in streams]
    assert found[:3] == [f"loaded {fingerprint}" for fingerprint in expected]
    for line, stream in zip(found[3:], ("video", "audio", "clip"), strict=True):
        assert f"gated/{stream} is for those alone whom its owner has let in (no token was" in line
        assert f"Ask for it at {server.url}/gated/{stream}" in line
    assert not any(token for _, token in server.asked)


def test_a_token_that_opens_nothing(hub: tuple[Hub, Path], tmp_path: Path) -> None:
    server, _ = hub
    found = run(["-c", LOAD, "gated", "none"], tmp_path, server.url, "hf_other").splitlines()
    for line in found[:3]:
        assert "(the token that was sent is not)" in line
        assert "hf_other" not in line
    for line in found[3:]:
        assert f"and {server.url} has no such model" in line


def test_a_gated_checkpoint_is_extracted_with(hub: tuple[Hub, Path], tmp_path: Path) -> None:
    """By the command, whose workers find in the cache what it has fetched."""
    server, folder = hub
    make_clip(tmp_path / "a.mp4", "Crash", 0, seconds=1.0)
    manifest = tmp_path / "videos.jsonl"
    manifest.write_text(json.dumps({"id": "a", "path": "a.mp4", "labels": ["x"]}) + "\n")
    store = str(tmp_path / "store")
    words = ["-m", "avarnet", "extract", str(manifest), store, "--only", "audio", "--workers", "1"]
    words += ["--audio-model", "gated/audio", "--json"]
    done = json.loads(run(words, tmp_path / "home", server.url, TOKEN))
    expected = make_recipe(audio_model=str(folder / "gated" / "audio"), only=["audio"])
    assert done["fingerprint"] == expected.fingerprint
    assert done["extracted"] == ["a"]
    fetched = [path for path, token in server.asked if path.endswith(".safetensors") and token]
    assert len(fetched) <= 2  # asked for once: its head, and the file


def test_a_mirror_that_is_down(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    code = LOAD.replace(".splitlines()[0]", "")
    found = run(["-c", code, "open"], tmp_path, address)
    assert found.count(f"on a machine that reaches {address}, run the same command") == 3
