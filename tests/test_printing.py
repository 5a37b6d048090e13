"""No text from elsewhere reaches a terminal but through `avarnet.console`: read from the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("avarnet", "extract", "features", "manifests", "train")
FILES = [file for part in PARTS for file in sorted((ROOT / part).rglob("*.py"))]
# what makes text from elsewhere fit to be printed, or returns a number or a text of ours
SAFE = {"plain", "shown", "first_few", "counted", "clock", "decimal", "figure", "version", "len"}
SAFE |= {"_epoch_row", "Table"}
PRINTERS = {
    "out.print",
    "err.print",
    "console.print",
    "out.print_sentences",
    "err.print_sentences",
    "table.add_row",
    "happened.add_row",
    "Table",
}
# looked at: numbers, and words of our own
OURS = {
    "demo: result",
    "demo: step",
    "note: result",
    "note: step",
    "doctor: check.state",
    "doctor: colours[check.state]",
    "_print_detection: clips",
    "_print_detection: figures",
    "_print_detection: map(figure, pair)",
    "compare: alone[k]",
    "compare: names[key]",
    "_print_plan: plan.present",
    "_print_plan: plan.processes",
    "_print_status: status.done",
    "_print_status: str(status.clips)",
    "_print_status: str(status.left)",
    "_print_status: str(status.unsealed)",
    "_print_transfer: transfer.already",
    "features_compact: features.compact(store, shard_size * 2 ** 20)",
    "features_info: about.shards",
    "features_info: flag",
    "features_info: opened.recipe.fingerprint",
    "features_info: str(about.clips)",
    "features_list: ', '.join((str(flag.name) for flag in features.Flag(row['flags']))).lower()",
    "features_list: str(row['snippets'])",
    "_print_findings: kind",
    "_print_findings: severity",
    "_write_manifest: str(count)",
    "manifest_split: row.get(s, 0)",
    "ablate: row.parameters",
    "ablate: rows[0].metric",  # the head of a column, one of two
    "sweep: str(trial.number)",
    "print_left_out: colour",
    "print_best_epochs: EPOCH_HEADER",
    "show: EPOCH_HEADER",
    "training_progress: EPOCH_HEADER",
    "_print_confusion: map(str, range(1, len(run.classes) + 1))",
    "_print_overall: name",
    "_print_confusion: number",
    "_print_confusion: str(count)",
    "_print_classes: str(row['clips'])",
    "print_summary: flag.lower().replace('_', ' ')",
    "print_summary: summary.not_finite",
}
NUMBERS = set("defgn%")  # last letters of formats that only numbers have


def calls(file: Path) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_the_console_prints(file: Path) -> None:
    if file == ROOT / "avarnet" / "console.py":
        return
    for call, name in calls(file):
        text = ast.unparse(call)
        assert name not in ("print", "typer.echo", "Console", "rich.print", "pprint"), text
        if name.endswith(("stdout.write", "stderr.write")):
            assert text.startswith("sys.stderr.write(features.visible("), text
        assert "csv.writer(sys.stdout" not in text


class Foreign:
    """What is printed in a function and not known to be fit for it."""

    def __init__(self, function: ast.AST) -> None:
        self.values: dict[str, list[ast.expr]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assign(target, node.value)
            elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.NamedExpr) and node.value:
                self._assign(node.target, node.value)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.values.setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Tuple):
            parts = value.elts if isinstance(value, ast.Tuple) else [value] * len(target.elts)
            for one, part in zip(target.elts, parts, strict=True):
                self._assign(one, part)

    def found(self, node: ast.expr, seen: frozenset[str] = frozenset()) -> list[str]:
        """Return the parts of an expression that are not known to be fit."""
        match node:
            case ast.Constant():
                return []
            case ast.JoinedStr(values=parts):
                return [text for part in parts for text in self.found(part, seen)]
            case ast.FormattedValue(value=value, format_spec=ast.JoinedStr(values=spec)) if spec:
                last = spec[-1]
                if isinstance(last, ast.Constant) and str(last.value)[-1] in NUMBERS:
                    return []
                return self.found(value, seen)
            case ast.FormattedValue(value=value) | ast.Starred(value=value):
                return self.found(value, seen)
            case ast.BinOp(left=left, right=right):
                return self.found(left, seen) + self.found(right, seen)
            case ast.BoolOp(values=values) | ast.Tuple(elts=values) | ast.List(elts=values):
                return [text for value in values for text in self.found(value, seen)]
            case ast.IfExp(body=one, orelse=other):
                return self.found(one, seen) + self.found(other, seen)
            case ast.GeneratorExp(elt=value) | ast.ListComp(elt=value):
                return self.found(value, seen)
            case ast.Compare():
                return []
            case ast.Call(func=ast.Name(id="map"), args=[ast.Name(id="plain"), _]):
                return []
            case ast.Call(func=ast.Name(id="str"), args=[ast.Call(func=ast.Name(id="len"))]):
                return []
            case ast.Call(func=function) if ast.unparse(function) in SAFE:
                return []
            case ast.Call(func=ast.Attribute(attr="join"), args=[value]):
                return self.found(value, seen)
            case ast.Name(id=name) if name in self.values and name not in seen:
                return [
                    text for value in self.values[name] for text in self.found(value, seen | {name})
                ]
            case _:
                return [ast.unparse(node)]


def printed_foreign(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text())
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        known = Foreign(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in PRINTERS:
                titles = [word.value for word in node.keywords if word.arg in ("title", "caption")]
                for argument in [*node.args, *titles]:
                    for text in known.found(argument):
                        yield f"{function.name}: {text}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_is_printed_went_through_the_console(file: Path) -> None:
    assert set(printed_foreign(file)) <= OURS
