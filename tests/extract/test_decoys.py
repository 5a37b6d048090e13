"""A user's own modules, in the current folder, that are called like ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from features import Recipe, Store

PROGRAM = """
import sys
from pathlib import Path
from extract import Cluster, Extractor, Task, extract
from features import Recipe
if __name__ == "__main__":
    store, videos, recipe = map(Path, sys.argv[1:])
    tasks = [Task(p.stem, p) for p in sorted(videos.glob("Normal/*.mp4"))]
    recipe = Recipe.from_json(recipe.read_text())
    extract(tasks, store, recipe, cluster=Cluster(workers=2))
    Extractor(recipe)(tasks[0].video)
"""


@pytest.mark.slow
def test_an_extraction_imports_nothing_of_the_current_folder(
    recipe: Recipe, clips: Path, tmp_path: Path
) -> None:
    """Neither in workers nor in reading processes."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("avarnet", "extract", "features", "manifests", "train"):
        (folder / f"{name}.py").write_text(
            f"from pathlib import Path\nPath({str(tmp_path)!r}, '{name}.imported').touch()\n"
        )
    recipe.save(tmp_path / "recipe.json")
    (tmp_path / "program.py").write_text(PROGRAM)
    words = (tmp_path / "store", clips, tmp_path / "recipe.json")
    command = [sys.executable, tmp_path / "program.py", *words]
    subprocess.run(command, cwd=folder, check=True)
    assert len(Store(tmp_path / "store")) == 3
    assert not list(tmp_path.glob("*.imported"))
