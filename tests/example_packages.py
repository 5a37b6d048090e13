"""The packages of examples/, as pip installs them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def install_example(name: str, folders: pytest.TempPathFactory) -> Path:
    """Install a package of examples/ and return the folder that it is in.

    Args:
        name: of its folder.
        folders: makes new ones.
    """
    # pip leaves what it builds beside the source
    source = shutil.copytree(EXAMPLES / name, folders.mktemp("source") / name)
    site = folders.mktemp("site")
    words = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *words, str(source)], check=True)
    return site
