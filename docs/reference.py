"""Write reference.md, every command with its options, exit codes and files: docs/reference.py.

All of it comes from the code, but for what the files and the variables are for.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import avarnet
from avarnet import console
from extract.job.failures import FAILURES
from extract.job.log import LOG
from extract.job.timings import TIMINGS
from features.card import CARD_FILE
from features.integrity import ASIDE
from features.pending_clips import SPOOL
from features.store import RECIPE_FILE
from features.transfer.upload import PARTIAL
from train.experiments.sweep import JOURNAL
from train.parallel import CHECKPOINT
from train.report.index import INDEX
from train.run_files import (
    CALIBRATION_FILE,
    EPOCHS_FILE,
    EVALUATION_FILE,
    KNOWN_CLIPS_FILE,
    LOCK,
    PREDICTIONS_FILE,
    RUN_FILE,
    STRESS_FILE,
    UNFINISHED,
)

PAGE = Path(__file__).with_name("reference.md")
USAGE = 2  # Typer's
CODES = {
    console.DONE: "done",
    console.FAILED: "failed, or found what it looks for: errors, damage, differences",
    USAGE: "wrong usage",
    console.SOME_FAILED: "done, but some clips, files or names could not be; each is listed",
    console.ANOMALY: "an anomaly was found (`--fail-on-anomaly`)",
    console.INTERRUPTED: "interrupted by Ctrl-C (`extract`: 1, as what was begun is finished)",
}
VARIABLES = {
    "XDG_CACHE_HOME": "what can be made or fetched again is in its `avarnet`; else in `~/.cache`",
    "PYTHONSAFEPATH": "set for what avarnet starts: a file of yours is never taken for a part",
    "JPY_PARENT_PID": "set by Jupyter: lines are printed instead of bars",
}
OF_LIBRARIES = {
    "NO_COLOR": "no colours",
    "HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN": "the hub: cache, no network, mirror, key",
    "AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL": "of `s3://`",
    "FSSPEC_...": "of fsspec's protocols, such as `FSSPEC_SFTP_KEY_FILENAME`",
    "DASK_...": "of Dask's configuration",
    "CUDA_VISIBLE_DEVICES": "the GPUs that may be used",
}
# folder -> file -> what it is, and by which command
FILES: dict[str, dict[str, tuple[str, str]]] = {
    "STORE": {
        RECIPE_FILE: ("what decides a feature's value", "extract, features import, pull"),
        "*.h5": ("a sealed shard", "extract, features import, pull, merge, join, compact, drop"),
        CARD_FILE: ("what the store holds, for people", "extract, features card, import, pull"),
        LOG: ("a line for each task", "extract"),
        TIMINGS: ("what each task took", "extract"),
        FAILURES: ("clips that failed, and why", "extract, where some did"),
        f"{SPOOL}*": ("finished clips that fill no shard yet", "extract, while it works"),
        f"{PARTIAL}*": ("shards that are half there", "features pull, until it is resumed"),
        f"*{ASIDE}": ("a damaged shard, to be deleted", "extract, where there was damage"),
    },
    "RUN": {
        RUN_FILE: ("classes, splits, settings, recipe", "train, ablate, sweep"),
        "config.toml": ("the settings, for `--config`", "train, ablate, sweep"),
        EPOCHS_FILE: ("a line an epoch", "train, ablate, sweep"),
        "model-*.safetensors": ("the weights of each model", "train, ablate, sweep"),
        KNOWN_CLIPS_FILE: ("the means of the clips it learned from", "train, ablate, sweep"),
        CALIBRATION_FILE: ("at which scores alarms are raised", "calibrate"),
        LOCK: ("keeps others from training there", "train, until it ends"),
        UNFINISHED: ("what `run.json` will be", "train, until it ends"),
        f"{CHECKPOINT}*": ("for `--resume`", "train, until it ends"),
        "tensorboard": ("curves", "train --tensorboard"),
        EVALUATION_FILE: ("the figures", "evaluate, report, ablate"),
        PREDICTIONS_FILE: ("what was predicted of held-out clips", "evaluate, report, ablate"),
        "report.html": ("the report", "evaluate, report"),
        STRESS_FILE: ("what is lost where pictures or sound are bad", "stress"),
    },
    "DIR": {
        "trial-*": ("a run", "sweep"),
        JOURNAL: ("its trials", "sweep"),
        "*/run.json": ("a run of each row, with its files", "ablate"),
        "ablation.json": ("the table", "ablate"),
    },
    "OUT": {
        "*.html": ("the page of a video", "predict --html"),
        INDEX: ("the list of all", "predict --html"),
        "plotly-*.min.js": ("shared by the pages", "predict --html, but for --single-file"),
    },
    "~/.cache/avarnet": {
        "keys": ("of the jobs of a batch system, while they run", "extract --scheduler"),
        "means": ("the mean row of each clip", "search, manifest check --store"),
        "stores": ("what was pulled to train on", "train, ablate, sweep with a URL"),
    },
}


def commands(command: Any, name: str = "avarnet") -> Iterator[tuple[str, Any]]:
    """Yield each command below one with its whole name."""
    below = getattr(command, "commands", {})
    for word, one in below.items():
        yield from commands(one, f"{name} {word}")
    if not below:
        yield name, command


def exit_codes(command: Any) -> list[int]:
    """Return the codes that a command may end with: what its function names, and those it calls."""
    function = inspect.unwrap(command.callback)
    module = ast.parse(Path(inspect.getsourcefile(function) or "").read_text(encoding="utf-8"))
    functions = {f.name: f for f in module.body if isinstance(f, ast.FunctionDef)}
    seen, waiting = set(), [function.__name__]
    while waiting:
        names = {n.id for n in ast.walk(functions[waiting.pop()]) if isinstance(n, ast.Name)}
        waiting += (names - seen) & functions.keys()
        seen |= names
    some = {n: getattr(console, n) for n in ("SOME_FAILED", "ANOMALY") if n in seen}
    return [console.DONE, console.FAILED, USAGE, *sorted(some.values())]


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def default(param: Any) -> str:
    if isinstance(param.show_default, str):
        return param.show_default
    if param.default is None or isinstance(param.default, bool | list | tuple):
        return ""
    return str(getattr(param.default, "value", param.default))


def section(name: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    yield f"### `{name}`"
    yield inspect.cleandoc(command.help or "")
    usage = " ".join([name, "[OPTIONS]", *(p.metavar or p.name.upper() for p in arguments)])
    yield f"```text\n{usage}\n```"
    if command.epilog:
        yield command.epilog
    rows = [(p.metavar or p.name.upper(), p) for p in arguments]
    rows += [("`, `".join([*p.opts, *p.secondary_opts]), p) for p in options if not p.hidden]
    if rows:
        lines = [f"| `{cell(n)}` | {cell(p.help or '')} | {cell(default(p))} |" for n, p in rows]
        yield "\n".join(["| | what | default |", "| --- | --- | --- |", *lines])
    yield "Exit codes: " + ", ".join(map(str, exit_codes(command))) + "."
    word = name.removeprefix("avarnet ")
    written = [
        f"`{folder}/{file}`"
        for folder, files in FILES.items()
        for file, (_, by) in files.items()
        if re.search(rf"(^|, ){re.escape(word)}\b", _whole_names(by))
    ]
    if written:
        yield "Files that it may write: " + ", ".join(written) + "."


def _whole_names(by: str) -> str:
    """Write "features import, pull" as "features import, features pull"."""
    words = by.split(", ")
    for place in range(1, len(words)):
        if words[place - 1].startswith("features ") and " " not in words[place]:
            words[place] = f"features {words[place]}"
    return ", ".join(words)


def table(head: str, rows: dict[str, str]) -> str:
    lines = [f"| {name} | {cell(text)} |" for name, text in rows.items()]
    return "\n".join([head, "| --- | --- |", *lines])


def page() -> str:
    """Return the page."""
    parts = [
        "# Reference",
        "For you if you look something up. Made from the code by `docs/reference.py`.",
        "## Exit codes",
        table("| code | meaning |", {str(code): text for code, text in CODES.items()}),
        "## Environment variables",
        table("| name | what it does |", {f"`{n}`": t for n, t in VARIABLES.items()}),
        "Of the libraries, among others:",
        table(
            "| name | what it does |",
            {n.replace(", ", "`, `").join("``"): t for n, t in OF_LIBRARIES.items()},
        ),
        "## Files",
    ]
    lines = ["| where | file | what | by |", "| --- | --- | --- | --- |"]
    for folder, files in FILES.items():
        lines += [f"| {folder} | `{f}` | {what} | {by} |" for f, (what, by) in files.items()]
    parts += ["\n".join(lines), "## Commands"]
    for name, command in commands(typer.main.get_command(avarnet.app)):
        parts += section(name, command)
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
