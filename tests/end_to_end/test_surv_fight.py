"""Real surveillance clips, some of them without sound, through the whole pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from extract import Task, extract
from features import Recipe, Store
from manifests import assign_folds, from_folders, with_groups
from train import Config, evaluate_run, train_run

pytestmark = pytest.mark.slow


def test_some_real_clips(shared: Path, recipe: Recipe, tmp_path: Path) -> None:
    folder = shared / "surv-fight"
    clips = with_groups(from_folders(folder, tmp_path).clips, folder / "sources.csv").clips[::8]
    tasks = [Task(clip.id, clip.resolve(tmp_path)) for clip in clips]
    summary = extract(tasks, tmp_path / "store", recipe)
    assert summary.failed == {}
    store = Store(tmp_path / "store")
    assert set(store) == {clip.id for clip in clips}
    silent = sum(not features.audio_valid.any() for features in store.values())
    assert 0 < silent < len(clips)
    run = train_run(assign_folds(clips, 3), store, tmp_path / "run", Config(epochs=2))
    result = evaluate_run(run, store)
    assert result["model"]["clips"] == result["linear"]["clips"] == 30
    assert result["missing_streams"] == {"video": 0, "audio": silent}
