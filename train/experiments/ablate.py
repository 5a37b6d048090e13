"""The paper's comparison: which streams, which fusion, which sequence model."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from features import Joined, Store, json_text
from manifests import Clip
from train.config import FUSIONS, MODELS, Config, TrainError
from train.evaluation.evaluate import PlainPredictions, judge_run
from train.evaluation.figures import Metrics, baseline_values
from train.fitting.history import Epoch
from train.run import Run
from train.run_files import RUN_FILE, write_run_file
from train.training import streams_of, train_run

# plain concatenation and MS-TCN as published, with nothing of what was added here
PLAIN: dict[str, Any] = {
    "fusion": "early",
    "model": "mtcn",
    "stages": 4,
    "layers": 10,
    "channels": 64,
    "pooling": "mean",
    "centred": False,
    "input_dropout": 0.0,
    "stream_dropout": 0.0,
    "time_warp": 1.0,
    "snippet_dropout": 0.0,
    "context_dropout": 0.0,
    "smoothing_weight": 0.15,
    "label_smoothing": 0.0,
    "class_weights": False,
    "outlier_limit": 0.0,
    "linear_term": False,
    "starts": 1,
}
TIMED = 30  # forward passes of which the median is the latency
Inputs = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]
Progress = Callable[[str, int, int, Epoch, bool], None]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: of the variant, and of its run's folder.
        streams, fusion, model: what it is made of.
        parameters: numbers that are learned.
        flops: of a clip of the median length, once forward; a multiplication and an addition are
            two.
        latency_ms: of that clip alone, on one thread of this machine's CPU.
        metric: ``accuracy`` or ``ap``.
        mean, std: of the metric over the seeds, each pooled over the folds; ``std`` is None of a
            single seed.
        together: the metric of the averaged predictions of all seeds.
    """

    name: str
    streams: tuple[str, ...]
    fusion: str
    model: str
    parameters: int | None
    flops: int | None
    latency_ms: float | None
    metric: str
    mean: float
    std: float | None
    together: float


def variants(streams: Sequence[str], config: Config) -> dict[str, Config]:
    """Return name -> settings: every set of streams, every fusion and every model.

    Each differs from the settings that are given in one thing only; the last one is `PLAIN`.

    Args:
        streams: all that there are.
        config: the settings.

    >>> list(variants(["video", "audio"], Config()))[:3]
    ['video+audio', 'video', 'audio']
    """
    found = {}
    for count in range(len(streams), 0, -1):
        for some in combinations(streams, count):
            found["+".join(some)] = replace(config, streams=some)
    whole = replace(config, streams=tuple(streams))
    for fusion in FUSIONS:
        if fusion != config.fusion and len(streams) > 1:
            if fusion == "bottleneck" and config.causal:
                continue
            found[f"{fusion}-fusion"] = replace(whole, fusion=fusion)
    for model in MODELS:
        if model != config.model:
            found[model] = replace(whole, model=model)
    plain = PLAIN if config.task == "recognition" else {**PLAIN, "pooling": "top"}
    return {**found, "plain": replace(whole, **plain)}


def ablate(
    clips: Sequence[Clip],
    store: Store | Joined,
    folder: str | Path,
    config: Config,
    processes: int = 1,
    progress: Progress = lambda *_: None,
) -> list[Row]:
    """Train and judge all `variants`, each a run in the folder; plain baselines come last.

    What is there already is not trained again, and what was interrupted is resumed. A stream that
    no training clip has is left out of all.

    Args:
        clips: labelled clips.
        store: their features.
        folder: of the runs; ``ablation.json`` has the table.
        config: what the variants have in common.
        processes: at most so many at work.
        progress: called with the variant, and as `train_run` calls ``on_epoch``.

    Raises:
        TrainError: as `train_run` does, or a run there has other settings.
    """
    folder = Path(folder)
    rows = []
    # the plain baselines are trained once for all variants that they do not differ for
    plain: dict[tuple[tuple[str, ...], bool], PlainPredictions] = {}
    for name, settings in variants(streams_of(clips, store, config), config).items():
        path = folder / name
        if (path / RUN_FILE).exists():
            run = Run.load(path)
            if replace(run.config, layers=settings.layers or run.config.layers) != replace(
                settings, layers=settings.layers or run.config.layers
            ):
                raise TrainError(f"{path} was trained with other settings; give another folder")
        else:
            run = train_run(
                clips,
                store,
                path,
                settings,
                processes=processes,
                resume=True,
                on_epoch=lambda *epoch, name=name: progress(name, *epoch),
            )
        alike = run.config.streams, run.config.class_weights
        judged = judge_run(run, store, plain=plain.get(alike))
        plain[alike], found = judged.plain, judged.metrics
        rows.append(_row(name, run, found, store))
        if len(rows) == 1:
            baselines = _baselines(rows[0], found)
    rows += baselines
    text = json_text([asdict(row) for row in rows], indent=1) + "\n"
    write_run_file(folder / "ablation.json", text)
    return rows


def _row(name: str, run: Run, found: Metrics, store: Store | Joined) -> Row:
    metric, together = _metric(found)
    over = found["seeds"][metric]
    assert over["mean"] is not None  # of held-out clips that are judged at all
    model = run.model(0)
    length = int(np.median([len(next(iter(store[i].streams.values()))) for i in run.labels]))
    inputs = (
        {stream: torch.zeros(1, length, size) for stream, size in run.sizes.items()},
        {stream: torch.ones(1, length, dtype=torch.bool) for stream in run.sizes},
        torch.ones(1, length, dtype=torch.bool),
    )
    return Row(
        name,
        run.config.streams,
        run.config.fusion if len(run.config.streams) > 1 else "none",
        run.config.model,
        sum(parameter.numel() for parameter in model.parameters()),
        _flops(model, inputs),
        _latency(model, inputs),
        metric,
        over["mean"],
        over["std"],
        together,
    )


def _baselines(like: Row, found: Metrics) -> list[Row]:
    """Return rows of the plain baselines beside a run."""
    return [
        Row(name, like.streams, "early", name, None, None, None, like.metric, value, None, value)
        for name, value in baseline_values(found).items()
        if value is not None
    ]


def _metric(found: Metrics) -> tuple[str, float]:
    """Return the name and the value of what a run is judged by."""
    if found["task"] == "recognition":
        return "accuracy", found["model"]["accuracy"]["value"]
    ap = found["model"]["all"]["ap"]
    assert ap is not None  # a run whose held-out clips have no anomaly is refused
    return "ap", ap


@torch.no_grad()
def _flops(model: torch.nn.Module, inputs: Inputs) -> int:
    counter = FlopCounterMode(display=False)
    # the fused LSTM of oneDNN hides its products from the counter
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration")  # comes with any change of the flags
        with torch.backends.mkldnn.flags(enabled=False), counter:
            model(*inputs)
    return int(counter.get_total_flops())


@torch.no_grad()
def _latency(model: torch.nn.Module, inputs: Inputs) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    for _ in range(TIMED):
        start = time.perf_counter()
        model(*inputs)
        times.append(1000 * (time.perf_counter() - start))
    torch.set_num_threads(threads)
    return statistics.median(times)
