"""A run's held-out clips read again, each time with one impairment of picture or sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import manifests
from features import Features, Recipe

if TYPE_CHECKING:
    from extract.impairments import Impairment
    from train import Run
    from train.experiments.stress import HeldOutClip, Stress
    from train.inference import ClipPrediction


class Reading(NamedTuple):
    """A clip that is to be read, and how.

    Attributes:
        clip: which.
        condition: the impairment's name.
        video, audio, impairment: as `extract.Extractor.stream` takes them.
    """

    clip: HeldOutClip
    condition: str
    video: Path
    audio: Path | None
    impairment: Impairment


def stress(
    run: Run,
    clips: Sequence[manifests.Clip],
    root: str | Path,
    *,
    recipe: Recipe | None = None,
    device: str = "auto",
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> Stress:
    """Measure what a run loses where pictures or sound are bad, on its held-out clips.

    Each clip is read as it is, and once with each impairment, by the run's own recipe; what an
    impairment does not touch is taken from the first reading. Nothing goes into a store. The rows
    of one clip are in memory at a time.

    Args:
        run: a trained run.
        clips: of the manifest: where the held-out clips are.
        root: what their paths are relative to.
        recipe: the run's, with networks that have moved; None takes the run's own.
        device: of the networks; see `extract.Extractor`.
        progress: called with the seconds of video that were read, and that will be in all.

    Returns:
        The figures; they are also in ``RUN/stress.json``, and in the report that is written next.

    Raises:
        WeightsError: the networks cannot be loaded.
        TrainError: no held-out clip can be read, or the run's folder cannot be written.
    """
    from extract import ClipError, Extractor, footage
    from extract.decoding.messages import AS_IT_IS
    from extract.impairments import impairments
    from train.experiments.stress import CLEAN, held_out_clips, judge_stress, predict_held_out
    from train.run_files import check_writable

    check_writable(run.path)
    held_out = {clip.id: clip for clip in held_out_clips(run)}
    used = (recipe or run.recipe).only(run.config.streams)
    extractor = Extractor(used, device, other_reading=True)
    listed = {clip.id: clip for clip in clips if clip.id in held_out}
    left_out = {clip_id: "not in the manifest" for clip_id in held_out if clip_id not in listed}
    seconds = {i: clip.duration or footage(clip.resolve(root)) for i, clip in listed.items()}

    def conditions(clip_id: str) -> dict[str, Impairment]:
        kinds = impairments(clip_id, run.config.seed).items()
        return {CLEAN: AS_IT_IS, **{n: kind for n, kind in kinds if kind.reads in extractor.reads}}

    readings = (
        Reading(held_out[clip_id], name, clip.resolve(root), clip.resolve_audio(root), impairment)
        for clip_id, clip in listed.items()
        for name, impairment in conditions(clip_id).items()
    )
    found: dict[str, list[ClipPrediction]] = {name: [] for name in conditions("")}
    done, total = 0.0, sum(seconds.values()) * len(found)
    try:
        for clip, results in groupby(extractor.stream(readings), lambda one: one[0].clip):
            clean: Features | None = None
            own: dict[str, ClipPrediction] = {}
            for reading, features in results:
                if isinstance(features, ClipError):
                    left_out.setdefault(clip.id, str(features))
                elif clip.id not in left_out:
                    clean = features if clean is None else clean
                    own[reading.condition] = predict_held_out(clip, _with(clean, features))
                done += seconds[clip.id]
                progress(done, total)
            if clip.id not in left_out:
                for name, prediction in own.items():
                    found[name].append(prediction)
    finally:
        extractor.close()
    return judge_stress(run, found, left_out)


def _with(clean: Features, impaired: Features) -> Features:
    """Return a clip's features where those of an impaired reading take the place of others."""
    return replace(
        clean,
        streams={**clean.streams, **impaired.streams},
        valid={**clean.valid, **impaired.valid},
    )
