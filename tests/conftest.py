"""Shared parts of the tests: real clips, small real networks, the data beside the repository."""

from __future__ import annotations

import faulthandler
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from features import Recipe

# before torch is imported here, and by the commands that tests run: several tests share the cores,
# and threads that wait for each other in a loop make small networks ten times as slow then
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# and so a command starts one process where no number is given: each imports the networks anew
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")

WHOLE_RUN = float(os.environ.get("AVARNET_TEST_SECONDS", 2 * 3600))


def pytest_configure(config: pytest.Config) -> None:
    """Let every process of a run end, with the stacks of all its threads, whatever it waits for.

    The limit of one test does not end a thread that is stuck, and that the interpreter joins.
    """
    if config.getoption("timeout", None) == 0:  # as `make soak` wants
        return
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        stderr = os.fdopen(os.dup(2), "w")
    config.stash[pytest.StashKey[Any]()] = stderr  # which would be closed with its last reference
    faulthandler.dump_traceback_later(WHOLE_RUN, exit=True, file=stderr)


class Scheduling(LoadScopeScheduling):
    """With `-n`, a file's tests go to one process, as they share what takes time to make.

    The pages of docs/ share nothing and go one by one. Slurm is the machine's, and has one user.
    """

    def _split_scope(self, nodeid: str) -> str:
        if "test_slurm.py::" in nodeid or nodeid.endswith("test_a_page_runs[slurm.md]"):
            return "slurm"
        return nodeid if "test_a_page_runs" in nodeid else nodeid.split("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files without slow tests last: what is begun last with `-n` is waited for by itself."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; the tests that need it are skipped where it is absent."""
    default = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("AVARNET_SHARED", default)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set AVARNET_SHARED to the folder that has data/")
    return folder


@pytest.fixture(scope="session")
def sound_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder in transformers' format with a small Wav2Vec2's architecture, without weights."""
    from small_networks import LITTLE
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor

    folder = tmp_path_factory.mktemp("wav2vec2-small")
    Wav2Vec2Config(**LITTLE).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def recipe(sound_model: str) -> Recipe:
    from extract import make_recipe

    return make_recipe("mobilevit_xxs", sound_model, weights="random")


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of three one-second clips; one of them has no sound track."""
    from extract.synthetic import make_clip

    folder = tmp_path_factory.mktemp("videos")
    for kind, name in enumerate(("Explosion", "Normal", "Police siren", "Brawling")):
        for number in range(3):
            seed = 10 * kind + number
            path = folder / name / f"{number}.mp4"
            make_clip(path, name, seed, seconds=1.0, sound=seed != 11)
    return folder
