"""Imports run one way between the parts, and in no circle between modules: the source is read."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "manifests": set(),
    "features": set(),
    "extract": {"manifests", "features"},
    "train": {"manifests", "features"},
    "avarnet": {"manifests", "features", "extract", "train"},
}
# module -> what it imports inside a function, although that imports it; not to be extended
LATE = {"extract.backbones.base": {"extract.backbones.checkpoint"}}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for part in MAY_IMPORT for file in (ROOT / part).rglob("*.py")}


def imports(name: str) -> set[str]:
    """Return our modules that a module imports, at its top or in functions, but not for types."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for_types = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in MODULES else str(node.module) for one in inside}
    return found & MODULES.keys() - {name}


def test_no_circle_of_imports() -> None:
    graph = {name: imports(name) - LATE.get(name, set()) for name in MODULES}
    assert len(graph) > 100
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_parts_import_one_way(part: str) -> None:
    others = {
        f"{name} imports {other}"
        for name in MODULES
        if name.partition(".")[0] == part
        for other in imports(name)
        if other.partition(".")[0] not in {part, *MAY_IMPORT[part]}
    }
    assert not others
