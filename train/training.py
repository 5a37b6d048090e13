"""Trains the models of a run: from clips and their features to the run's folder."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from features import Joined, Store, json_text, redacted
from manifests import Clip, listed, reason
from train.config import GROUPS, Config, TrainError, package_of
from train.data import Clips, store_names, streams_to_learn
from train.evaluation.anomaly_intervals import Hysteresis, anomaly_scores
from train.evaluation.bootstrap import group_numbers
from train.fitting.automatic import with_layers
from train.fitting.history import Epoch
from train.fitting.trainer import SplitIndices, TrainingSet
from train.inference import predict_splits
from train.labels import (
    CLASSES,
    check_annotations,
    taken_as_normal,
    weak_labels,
    with_duration,
)
from train.models.contract import check_contract
from train.novelty import known_clips
from train.parallel import CHECKPOINT, Work, fit_groups, groups_of
from train.run import Run
from train.run_files import (
    EPOCHS_FILE,
    KNOWN_CLIPS_FILE,
    LOCK,
    RUN_FILE,
    UNFINISHED,
    locked,
    open_run_text,
    read_run_file,
    write_run_file,
)
from train.run_json import parse_json
from train.splits import Split, make_splits


def train_run(
    clips: Sequence[Clip],
    store: Store | Joined,
    path: str | Path,
    config: Config,
    *,
    device: torch.device | None = None,
    processes: int = 1,
    resume: bool = False,
    manifest: str | Path | None = None,
    on_epoch: Callable[[int, int, Epoch, bool], None] = lambda *_: None,
) -> Run:
    """Train a model for each split of the clips and each seed, and write the run's folder.

    Args:
        clips: labelled clips; those that are not in the store are left out and listed in the run.
        store: their features.
        path: the run's folder; must not hold a finished run.
        config: settings.
        device: where to train; the CPU if None, which is the fastest for small data.
        processes: at most so many at work, where there are several models. They are started anew
            and import the main script, which must then be guarded by ``__name__ == "__main__"``.
        resume: continue the run that was interrupted in this folder; its numbers will be those of
            an unbroken one.
        manifest: where the clips were read from; the run notes it for its report.
        on_epoch: called with (number of the model, how many there are, epoch, best so far).

    Raises:
        TrainError: most mistakes, before the first epoch.
    """
    path = Path(path)
    manifest = None if manifest is None else Path(manifest)
    _check_folder(path, resume)
    run, made = _new_run(clips, store, path, config, manifest), _made()
    data = Clips(store, list(run.labels), run.config.streams, store.recipe.crops)
    run = replace(run, config=with_layers(run.config, data.lengths), sizes=data.sizes)
    check_contract(run)
    with locked(path):
        _check_folder(path, resume)  # another process may have trained there meanwhile
        _begin(run, resume)
        if (path / RUN_FILE).exists():  # it was killed when all but this was done
            _tidy(path)
            return Run.load(path)
        _fit(run, data, store, device or torch.device("cpu"), processes, on_epoch)
        order = "seed", "fold", "start", "epoch"
        rows = sorted(run.epochs(), key=lambda row: [row[key] for key in order])
        write_run_file(path / EPOCHS_FILE, "".join(json_text(row) + "\n" for row in rows))
        write_run_file(path / "config.toml", run.config.to_toml())
        run = _with_hysteresis(run, data)
        run = _with_known_clips(run, data)
        files = [run.weights_file(number) for number in range(len(run.models))]
        digests = [sha256(file.read_bytes()).hexdigest() for file in files]
        run = replace(run, weights=digests, made=made)
        run.save()
        _tidy(path)
    return run


def _made() -> dict[str, str]:
    """Return when and by what a run is begun, as it notes it."""
    first, *others = sys.argv or [""]  # of a Python inside of another program
    program = Path(first)
    name = program.parent.name if program.name == "__main__.py" else program.name
    words = ["notebook"] if name.startswith("ipykernel") else [name, *others]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(map(redacted, words)),
        "version": version("avarnet"),
    }


def _fit(
    run: Run,
    data: Clips,
    store: Store | Joined,
    device: torch.device,
    processes: int,
    on_epoch: Callable[[int, int, Epoch, bool], None],
) -> None:
    """Train all models of a run; see `train_run`."""
    targets = np.array([run.classes.index(run.labels[clip_id]) for clip_id in data.ids])
    recordings = group_numbers(data.ids, run.groups)
    training_set = TrainingSet(data, targets, len(run.classes), recordings)
    work = Work(training_set, store.paths, run.config, device)
    groups = groups_of(data, _indices(data, run.splits), run.config, run.path)
    try:
        with open_run_text(run.path / EPOCHS_FILE) as lines:

            def note(number: int, epoch: Epoch, best: bool) -> None:
                fold, seed = run.models[number]
                lines.write(json_text({"fold": fold, "seed": seed, **asdict(epoch)}) + "\n")
                lines.flush()
                on_epoch(number, len(run.models), epoch, best)

            fit_groups(work, groups, processes, note)
    except OSError as error:
        raise TrainError(
            f"{run.path}: the training stopped ({reason(error)}); where the disk is full, make "
            "room, then continue with --resume"
        ) from error


def _tidy(path: Path) -> None:
    """Delete what a training that is done needs no more; that it was not done, at last."""
    checkpoints = (*path.glob(f"{CHECKPOINT}*"), *path.glob(f".{CHECKPOINT}*"))
    for file in (*checkpoints, path / LOCK, path / UNFINISHED):
        file.unlink(missing_ok=True)


def _check_folder(path: Path, resume: bool) -> None:
    if path.exists() and not path.is_dir():
        raise TrainError(f"{path} is a file; give a folder for the run")
    if (path / RUN_FILE).exists() and not (resume and (path / UNFINISHED).exists()):
        raise TrainError(f"{path} holds a run already; give another folder or delete it")
    if (path / UNFINISHED).exists():
        if not resume:
            raise TrainError(
                f"{path} holds a run that was interrupted: --resume continues it; or delete it"
            )
    elif others := sorted(file.name for file in path.glob("[!.]*") if file.name != "tensorboard"):
        raise TrainError(
            f"{path} holds other files ({others[0]}); give the run a folder of its own"
        )


def _new_run(
    clips: Sequence[Clip], store: Store | Joined, path: Path, config: Config, manifest: Path | None
) -> Run:
    """Return the run that is to be trained, but for what its features tell."""
    stored = [clip for clip in clips if clip.id in store]
    if not stored:
        raise TrainError(
            f"none of the manifest's {len(clips)} clips is in {store_names(store)}; do the ids "
            "agree? See 'avarnet features list STORE'"
        )
    as_given = {clip.id: clip for clip in stored}
    truth = {}
    if config.task == "detection":
        stored = weak_labels(stored, config.normal)
    splits = make_splits(stored, config)
    if config.task == "detection":
        classes = CLASSES
        truth = {
            clip_id: with_duration(as_given[clip_id], store[clip_id], store.recipe)
            for split in splits
            for clip_id in split.test
        }
        check_annotations(truth, store, store.recipe.snippet_seconds)
    else:
        classes = sorted({clip.label for clip in stored})
        taken_as_normal(classes, config.normal)
    streams = streams_to_learn(store, list(store.recipe.streams), splits, config.streams)
    config = replace(config, streams=streams)
    return Run(
        path=path,
        config=config,
        classes=classes,
        labels={clip.id: clip.label for clip in stored},
        splits=splits,
        recipe=store.recipe,
        sizes={},
        stores=[path.resolve() for path in store.paths],
        left_out=[clip.id for clip in clips if clip.id not in store],
        truth=truth,
        groups={clip.id: clip.group for clip in stored if clip.group is not None},
        manifest=None if manifest is None else manifest.resolve(),
        packages={
            kind: package
            for kind in GROUPS
            if (package := package_of(kind, getattr(config, kind))) is not None
        },
    )


def streams_of(clips: Sequence[Clip], store: Store | Joined, config: Config) -> tuple[str, ...]:
    """Return the streams that `train_run` would train with.

    Args:
        clips: labelled clips.
        store: their features.
        config: settings.

    Raises:
        TrainError: as `train_run` does.
    """
    return _new_run(clips, store, Path(), config, None).config.streams


def _indices(data: Clips, splits: Sequence[Split]) -> list[SplitIndices]:
    where = {clip_id: index for index, clip_id in enumerate(data.ids)}

    def of(ids: Sequence[str]) -> NDArray[np.int64]:
        return np.array([where[clip_id] for clip_id in ids])

    return [SplitIndices(of(split.train), of(split.val)) for split in splits]


def _begin(run: Run, resume: bool) -> None:
    """Write what the run will be; refuse to continue another one."""
    file, whole = run.path / UNFINISHED, json.loads(json.dumps(run.to_json()))
    if resume and file.exists():
        begun = parse_json(read_run_file(file), dict[str, Any], str(file))
        before = begun.get("labels")
        changed = sorted(set(whole["labels"]) ^ set(before if isinstance(before, dict) else ()))
        if changed:
            raise TrainError(
                f"{run.path} was begun with other clips: {len(changed)} ({listed(changed[:3])}) "
                "came into the manifest and the store since, or went. Give both as they were; or "
                f"delete {run.path}, and train anew"
            )
        differing = sorted(key for key in whole if begun.get(key) != whole[key])
        if "config" in differing:
            old = dict(begun.get("config") or {})
            differing += sorted(k for k, v in whole["config"].items() if old.get(k) != v)
        if differing:
            raise TrainError(
                f"{run.path} was begun otherwise ({', '.join(differing)} differ): resume with the "
                "command it was begun with, or delete it"
            )
    run.save(UNFINISHED)


def _with_known_clips(run: Run, data: Clips) -> Run:
    """Write what is kept of the training and validation clips, and return the run with it."""
    ids = sorted({clip_id for split in run.splits for clip_id in (*split.train, *split.val)})
    where = {clip_id: index for index, clip_id in enumerate(data.ids)}
    indices = np.array([where[clip_id] for clip_id in ids])
    known = known_clips(data, indices, group_numbers(ids, run.groups), run.config.seed)
    if known is None:
        return run
    content = known.to_bytes()
    write_run_file(run.path / KNOWN_CLIPS_FILE, content)
    return replace(run, known_clips_digest=sha256(content).hexdigest())


def _with_hysteresis(run: Run, data: Clips) -> Run:
    """Return the run with the settings that make intervals of scores, by its validation clips."""
    if run.normal is None:
        return run
    scores: list[NDArray[np.float32]] = []
    anomalous: list[bool] = []
    for predictions in predict_splits(run, run.all_models(), data, tested=False):
        for index, snippets in zip(predictions.held_out, predictions.snippets, strict=True):
            scores.append(anomaly_scores(snippets.mean(0), run.classes, run.normal))
            anomalous.append(run.labels[data.ids[index]] != run.normal)
    hysteresis, chosen = Hysteresis.choose(scores, anomalous, run.recipe.snippet_seconds)
    return replace(run, hysteresis=hysteresis, chosen=chosen)
