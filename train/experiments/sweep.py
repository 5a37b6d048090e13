"""A search for settings: random draws, of which successive halving stops the poor ones early."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from features import Joined, Store
from manifests import Clip, reason
from train.config import Config, TrainError
from train.fitting.history import Epoch
from train.run_files import locked
from train.training import train_run

JOURNAL = "sweep.log"


@dataclass(frozen=True)
class Search:
    """What a sweep's file says.

    Attributes:
        trials: how many settings to try in all.
        fixed: settings of every trial.
        space: setting -> a list to choose from, or ``{"low", "high"}`` with ``"log": true`` where
            the logarithm is to be even.
    """

    trials: int
    fixed: Config
    space: dict[str, Any]

    @classmethod
    def load(cls, file: str | Path) -> Search:
        """Read ``trials = 40``, a table ``[settings]`` and a table ``[search]`` of a TOML file.

        Raises:
            TrainError: the file cannot be read, or has something else in it.
        """
        file = Path(file)
        try:
            whole = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainError(f"{file}: {reason(error)}; give a file of TOML") from error
        unknown = whole.keys() - {"trials", "settings", "search"}
        trials, space = whole.get("trials", 20), whole.get("search", {})
        if unknown or not isinstance(trials, int) or trials < 1 or not space:
            raise TrainError(
                f"{file}: expected trials = 20, [settings] and [search] with at least one setting"
                + (f"; no {', '.join(sorted(unknown))}" if unknown else "")
            )
        fixed = Config.from_dict(whole.get("settings", {}), f"{file}, [settings]")
        for name, choice in space.items():
            values = choice if isinstance(choice, list) else list(_bounds(file, name, choice))
            for value in values:
                Config.from_dict({**asdict(fixed), name: value}, f"{file}, [search]")
        return cls(trials, fixed, space)


@dataclass(frozen=True)
class Trial:
    """One try: its number, what was drawn, the mean best validation recall, and how it ended."""

    number: int
    drawn: dict[str, Any]
    value: float | None
    state: str


def sweep(
    clips: Sequence[Clip],
    store: Store | Joined,
    folder: str | Path,
    search: Search,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Trial]:
    """Try settings and return all trials, the best first.

    Each is judged by the validation clips alone, never by held-out ones. The runs of finished
    trials are in the folder; the same call resumes a sweep that was interrupted.

    Args:
        clips: labelled clips.
        store: their features.
        folder: for the runs and the journal.
        search: what to try.
        progress: called with trials done and trials in all.

    Raises:
        TrainError: Optuna is missing, the sweep in the folder was begun with another search or is
            at work, or as `train_run` does.
    """
    folder = Path(folder)
    try:
        import optuna
    except ImportError as error:
        raise TrainError("a sweep needs Optuna, which is missing: pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with locked(folder):
        try:
            return _sweep(clips, store, folder, search, progress)
        except OSError as error:
            raise TrainError(
                f"{folder}: the sweep stopped ({reason(error)}); where the disk is full, make "
                "room, then run the same command again"
            ) from error


def _sweep(
    clips: Sequence[Clip],
    store: Store | Joined,
    folder: Path,
    search: Search,
    progress: Callable[[int, int], None],
) -> list[Trial]:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
        study_name="sweep",
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(search.fixed.seed),
        pruner=optuna.pruners.SuccessiveHalvingPruner(),
    )
    _check_search(study, search, folder)
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # of a sweep that was killed
        study.tell(trial.number, state=TrialState.FAIL)
        shutil.rmtree(folder / f"trial-{trial.number}", ignore_errors=True)

    def one(trial: Any) -> float:
        drawn = {name: _draw(trial, name, choice) for name, choice in search.space.items()}
        config = Config.from_dict({**asdict(search.fixed), **drawn}, "the sweep")
        best: dict[int, float] = {}
        epochs = 0

        def report(number: int, count: int, epoch: Epoch, better: bool) -> None:
            nonlocal epochs
            epochs += 1
            if better:
                best[number] = epoch.val_recall
            trial.report(sum(best.values()) / len(best), epochs)
            if trial.should_prune():
                raise optuna.TrialPruned

        path = folder / f"trial-{trial.number}"
        try:
            train_run(clips, store, path, config, on_epoch=report)
        except optuna.TrialPruned:
            shutil.rmtree(path)
            raise
        return sum(best.values()) / len(best)

    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    while len(done := study.get_trials(states=ended)) < search.trials:
        progress(len(done), search.trials)
        # what was drawn depends on the number of trials before: a sweep that is resumed does
        # not draw the same again
        study.sampler = optuna.samplers.RandomSampler(search.fixed.seed + len(study.trials))
        study.optimize(one, n_trials=1)
    progress(search.trials, search.trials)
    trials = [
        Trial(t.number, t.params, t.value, t.state.name.lower())
        for t in study.get_trials(states=ended)
    ]
    return sorted(trials, key=lambda t: (t.state != "complete", -(t.value or 0.0)))


def _check_search(study: Any, search: Search, folder: Path) -> None:
    """Refuse to continue a sweep with other settings: its trials could not be compared."""
    asked = json.loads(json.dumps({"settings": asdict(search.fixed), "search": search.space}))
    begun = study.user_attrs.get("asked")
    if begun is None:
        study.set_user_attr("asked", asked)
    elif begun != asked:
        differing = [
            f"{part}.{name}"
            for part in asked
            for name in sorted({*asked[part], *begun[part]})
            if asked[part].get(name) != begun[part].get(name)
        ]
        raise TrainError(
            f"{folder}: the sweep there was begun otherwise ({', '.join(differing)} differ); give "
            "another folder, or the file as it was: only 'trials' may change"
        )


def _bounds(file: Path, name: str, choice: Any) -> tuple[float, float]:
    try:
        low, high = choice["low"], choice["high"]
    except (TypeError, KeyError):
        raise TrainError(
            f"{file}: {name} = {choice!r}; expected a list, or {{ low = 1e-4, high = 1e-2 }}"
        ) from None
    if not low < high:
        raise TrainError(f"{file}: {name}: low = {low} is not below high = {high}")
    return low, high


def _draw(trial: Any, name: str, choice: Any) -> Any:
    if isinstance(choice, list):
        return trial.suggest_categorical(name, choice)
    log = bool(choice.get("log", False))
    suggest = trial.suggest_int if isinstance(choice["low"], int) else trial.suggest_float
    return suggest(name, choice["low"], choice["high"], log=log)
