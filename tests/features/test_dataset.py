"""What torch's DataLoader makes of a store, compared with the arrays that were written."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from small_stores import SIZES, clip, fill
from torch.utils.data import DataLoader

from features import FeatureError, Features, Recipe, SnippetDataset, Store, join, pack
from manifests import Clip

WRITTEN = {f"clip-{number}": clip(length, number) for number, length in enumerate((5, 1, 9, 4, 2))}
CLIPS = [Clip(clip_id, f"{clip_id}.mp4", ("a",)) for clip_id in WRITTEN]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    fill(tmp_path / "store", WRITTEN)
    return Store(tmp_path / "store")


def check(written: Features, streams: dict[str, torch.Tensor], valid: dict[str, torch.Tensor]):
    """Compare one clip of a batch with what was written of it, value by value."""
    for name in streams:
        rows, real = streams[name].tolist(), valid[name].tolist()
        assert real == written.valid[name].tolist() + [False] * (len(real) - len(written))
        for t, row in enumerate(rows):
            expected = written.streams[name][t].tolist() if real[t] else [0.0] * SIZES[name]
            assert row == expected


@pytest.mark.parametrize("workers", [None, "fork", "spawn"])
def test_batches_hold_what_was_written(store: Store, workers: str | None) -> None:
    dataset = SnippetDataset(store, CLIPS)
    loader = DataLoader(
        dataset,
        batch_size=2,
        collate_fn=dataset.collate,
        num_workers=2 if workers else 0,
        multiprocessing_context=workers,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = list(loader)
    assert [c.id for batch in batches for c in batch.clips] == list(WRITTEN)
    assert [tuple(batch.mask.shape) for batch in batches] == [(2, 5), (2, 9), (1, 2)]
    for batch in batches:
        assert batch.streams["video"].dtype == torch.float32
        for k, given in enumerate(batch.clips):
            written = WRITTEN[given.id]
            check(
                written,
                {name: rows[k] for name, rows in batch.streams.items()},
                {name: rows[k] for name, rows in batch.valid.items()},
            )
            assert batch.mask[k].tolist() == [t < len(written) for t in range(batch.mask.shape[1])]


def test_what_it_gives_may_be_written_to(store: Store) -> None:
    dataset = SnippetDataset(store, ["clip-0"], ["video"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (one,) = DataLoader(dataset, batch_size=None)  # torch makes tensors of the arrays
        one.streams["video"].fill_(7)
    assert list(one.streams) == ["video"]
    assert (store["clip-0"].video == WRITTEN["clip-0"].video).all()


def test_joined_stores(store: Store, tmp_path: Path) -> None:
    rows = np.arange(10, dtype=np.float16).reshape(5, 2)
    flow = Features({"flow": rows}, {"flow": np.ones(5, bool)}, 0.25, 1.25)
    pack(
        tmp_path / "flow",
        {"clip-0": flow}.items(),
        Recipe(0.25, "fp32", {"flow": {"features": 2}}, {}),
    )
    dataset = SnippetDataset(join(store, Store(tmp_path / "flow")), ["clip-0"])
    (batch,) = DataLoader(dataset, collate_fn=dataset.collate, num_workers=1)
    assert list(batch.streams) == ["video", "audio", "flow"]
    assert batch.streams["flow"][0].tolist() == rows.tolist()


def test_clips_and_streams_that_the_store_has_not(store: Store) -> None:
    with pytest.raises(FeatureError, match=r"not in the store: 1 of 2 \(gone\); leave"):
        SnippetDataset(store, ["clip-0", "gone"])
    with pytest.raises(FeatureError, match="no stream flow in the store; it has video, audio"):
        SnippetDataset(store, ["clip-0"], ["flow"])


def test_reading_needs_no_torch(store: Store) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from features import SnippetDataset, Store\n"
        "print(len(SnippetDataset(Store(sys.argv[1]), ['clip-2'])[0].streams['video']))"
    )
    words = [sys.executable, "-c", code, str(store.path)]
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == "9\n"
