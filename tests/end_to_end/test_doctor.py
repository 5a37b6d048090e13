"""`avarnet doctor` on this machine as it is, and with things taken away from it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from command import in_a_process

CODECS = ("H.264", "HEVC", "AV1", "AAC", "Opus")
NETWORKS = {
    "timm/mobilevit_s.cvnets_in1k": ("model.safetensors",),
    "facebook/wav2vec2-base": ("config.json", "pytorch_model.bin"),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's folder on a machine that has fetched nothing yet."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return tmp_path / "hf" / "hub"


def checks(folder: Path, code: int = 0) -> dict[str, dict[str, Any]]:
    result = json.loads(in_a_process("doctor", folder, "--json", code=code))
    assert result["fine"] == (code == 0)
    return {check["check"]: check for check in result["checks"]}


@pytest.mark.slow
def test_a_machine_that_has_fetched_nothing(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "bsub").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        found = checks(tmp_path / "stores" / "new")
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.accept()  # nobody has asked the hub for anything
    for name in ("python", "torch", "train", "store", "disk", *CODECS):
        assert found[name]["state"] == "ok", found[name]
    for name in NETWORKS:
        assert found[name]["state"] == "note"
        assert str(hub) in found[name]["says"]
        assert f"hf download {name}" in found[name]["says"]
    assert "--scheduler lsf" in found["queue"]["says"]
    assert "slurm" not in found["queue"]["says"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]  # it has cleaned up


@pytest.mark.slow
def test_weights_that_were_fetched(hub: Path, tmp_path: Path) -> None:
    for name, files in NETWORKS.items():
        repository = hub / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("abc")
        (repository / "snapshots" / "abc").mkdir(parents=True)
        for file in files:
            (repository / "snapshots" / "abc" / file).touch()
    found = checks(tmp_path)
    assert [found[name]["state"] for name in NETWORKS] == ["ok", "ok"]
    (repository / "snapshots" / "abc" / "pytorch_model.bin").unlink()  # a download cut short
    assert checks(tmp_path)["facebook/wav2vec2-base"]["state"] == "note"


@pytest.mark.slow
def test_a_folder_that_cannot_hold_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = checks(Path("/proc/store"), code=1)
    assert found["store"]["state"] == "broken"
    assert "give another folder" in found["store"]["says"]
    assert found["AV1"]["state"] == "ok"  # the other checks go on
    lines = in_a_process("doctor", tmp_path / "file", code=1).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("broken")] == ["store:"]


BROKEN_AV = "raise ImportError('libavcodec.so.99: cannot open shared object file')"


@pytest.mark.parametrize(
    ("package", "code", "broken", "words"),
    [
        ("av", BROKEN_AV, ["extract"], ("libavcodec.so.99", "[extract]")),
        ("sklearn", "raise OSError('bad wheel')", ["train"], ("bad wheel", "reinstall")),
    ],
)
def test_broken_packages(
    package: str,
    code: str,
    broken: list[str],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / f"{package}.py").write_text(code)
    paths = (str(tmp_path), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    found = checks(tmp_path, code=1)
    assert [name for name, check in found.items() if check["state"] == "broken"] == broken
    for word in words:
        assert word in found[broken[0]]["says"]
