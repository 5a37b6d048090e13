"""A wheel in an environment of its own: what it holds is all that the commands need.

The packages it depends on are those of the environment that runs the tests: a path file names its
folder, where Python then finds packages but no editable installation.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from small_stores import clip, fill

import avarnet
from avarnet.inputs import install_command
from extract.synthetic import make_clip
from manifests import Clip, write

pytestmark = pytest.mark.slow

ROOT = Path(avarnet.__file__).parents[1]
SOURCES = ("avarnet", "extract", "features", "manifests", "train")
FILES = ("LICENSE", "README.md", "pyproject.toml")
# of each extra, what it is for; flow is a stream of stage 1
TRIED = {
    "extract": "avarnet demo demo",
    "extract,flow": "avarnet extract m.jsonl flow --only flow",
    "onnx": "avarnet export run run.onnx",
    "pandas": "python -c \"import train; assert len(train.Run.load('run').history())\"",
    "sweep": "avarnet sweep m.jsonl store sweep search.toml",
    "tensorboard": "avarnet train m.jsonl store logged --epochs 2 --tensorboard",
}
EXTRAS = ",".join(sorted({name for extras in TRIED for name in extras.split(",")}))
SEARCH = "trials = 2\n[settings]\nepochs = 2\n[search]\nlearning_rate = [0.001, 0.01]\n"
# what `python -m build` does: a wheel from the source archive, not from the folder
BUILD = "import setuptools.build_meta as backend, sys; backend.build_{}(sys.argv[1])"
WITHOUT_OURS = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, env=WITHOUT_OURS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    run(sys.executable, "-c", BUILD.format("sdist"), "dist", cwd=folder)
    (archive,) = (folder / "dist").glob("*.tar.gz")
    shutil.unpack_archive(archive, folder / "unpacked", filter="data")
    unpacked = folder / "unpacked" / archive.name.removesuffix(".tar.gz")
    run(sys.executable, "-c", BUILD.format("wheel"), folder / "dist", cwd=unpacked)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a new environment that has the wheel."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=folder)
    (site,) = folder.glob("lib/*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def train_and_report(fresh: Path, folder: Path) -> None:
    """Train on a small store, and evaluate, with what is installed."""
    ids = [f"{label}/{number}" for label in ("crash", "normal") for number in range(6)]
    fill(folder / "store", {clip_id: clip(8, seed) for seed, clip_id in enumerate(ids, 1)})
    sides = ("train", "train", "train", "val", "val", "test")
    write(
        folder / "m.jsonl",
        [Clip(i, "a.mp4", (i[:5],), split=sides[n % 6]) for n, i in enumerate(ids)],
    )
    where = run(fresh / "python", "-c", "import train; print(train.__file__)", cwd=folder)
    assert where.startswith(str(fresh.parent))
    run(fresh / "avarnet", "train", "m.jsonl", "store", "run", "--epochs", 2, cwd=folder)
    run(fresh / "avarnet", "evaluate", "run", cwd=folder)  # whose templates are in the wheel
    assert (folder / "run" / "report.html").stat().st_size > 5000


def test_a_wheel_trains_and_reports(fresh: Path, tmp_path: Path) -> None:
    train_and_report(fresh, tmp_path)
    run(fresh / "avarnet", "extract", "--help", cwd=tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("extras", TRIED)
def test_what_an_extra_is_for_works_in_an_environment_that_has_no_more(
    wheel: Path, tmp_path: Path, extras: str
) -> None:
    """From the package index, some gigabytes each time."""
    fresh = tmp_path / "fresh"
    venv.create(fresh)
    try:
        pip = [sys.executable, "-m", "pip", "--python", fresh / "bin" / "python", "install"]
        run(*pip, "--quiet", f"avarnet[{extras}] @ {wheel.as_uri()}", cwd=tmp_path)
        train_and_report(fresh / "bin", tmp_path)
        make_clip(tmp_path / "a.mp4", "Crash", 1, seconds=1.0)
        (tmp_path / "search.toml").write_text(SEARCH)
        program, *words = shlex.split(TRIED[extras])
        run(fresh / "bin" / program, *words, cwd=tmp_path)
    finally:
        shutil.rmtree(fresh)


def test_every_extra_is_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {*EXTRAS.split(","), "test"} == project["optional-dependencies"].keys()


def test_its_extras_are_what_the_tests_run_with(wheel: Path, fresh: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--python", fresh / "python", "install", "--dry-run"]
    output = run(*pip, "--no-index", f"avarnet[{EXTRAS}] @ {wheel.as_uri()}", cwd=tmp_path)
    would = [line for line in output.splitlines() if line.startswith("Would install")]
    assert would in ([], ["Would install avarnet-0.1.0"])


def test_the_command_that_is_printed_installs_an_extra(
    wheel: Path, fresh: Path, tmp_path: Path
) -> None:
    code = "from avarnet.inputs import install_command; print(install_command('sweep'))"
    words = shlex.split(run(fresh / "python", "-c", code, cwd=tmp_path))
    assert words[:4] == [str(fresh / "python"), "-m", "pip", "install"]
    assert words[4:] == [f"avarnet[sweep] @ {wheel.as_uri()}"]
    pip = [sys.executable, "-m", "pip", "--python", words[0]]
    run(*pip, *words[3:], "--dry-run", "--no-index", cwd=tmp_path)


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ({"url": "file://{here}", "dir_info": {"editable": True}}, ["-e", "{here}[flow]"]),
        ({"url": "file://{here}", "dir_info": {}}, ["{here}[flow]"]),
        ({"url": "file://{here}/gone.whl", "archive_info": {}}, None),
        ({"url": "https://a.b/c.git", "vcs_info": {"vcs": "git", "commit_id": "12"}}, ["git+"]),
        (None, None),  # from an index, which has no avarnet that is known of
    ],
)
def test_the_command_is_that_of_where_it_came_from(
    origin: dict[str, object] | None,
    words: list[str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "a clone"
    (here / "avarnet-9.dist-info").mkdir(parents=True)
    (here / "avarnet-9.dist-info" / "METADATA").write_text("Name: avarnet\nVersion: 9\n")
    if origin:
        record = json.dumps(origin).replace("{here}", here.as_posix().replace(" ", "%20"))
        (here / "avarnet-9.dist-info" / "direct_url.json").write_text(record)
    monkeypatch.syspath_prepend(here)
    printed = shlex.split(install_command("flow", "--force-reinstall"))
    assert printed[:5] == [sys.executable, "-m", "pip", "install", "--force-reinstall"]
    if words is None:
        assert printed[5:] == [".[flow]", "in", "a", "clone", "of", "avarnet"]
    elif words == ["git+"]:
        assert printed[5:] == ["avarnet[flow] @ git+https://a.b/c.git@12"]
    else:
        assert printed[5:] == [word.replace("{here}", str(here)) for word in words]
