"""The labels of detection: clips with and without an anomaly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from features import Features, Recipe
from manifests import NORMAL_LABELS, Clip, ManifestError, listed, normal_label
from train.config import TrainError
from train.evaluation.frames import frame_truth

CLASSES = ["normal", "anomaly"]
MOST_LONGER = 10  # times as long as its features, beside a minute, is a clip that was cut short


def taken_as_normal(labels: Iterable[str], named: str) -> str | None:
    """Return the label of clips without anomaly; None if no label is known for that.

    Args:
        labels: of all clips.
        named: what a user says it is; one of `NORMAL_LABELS` if empty.

    Raises:
        TrainError: no clip has the label that is named, or several labels may be it.
    """
    try:
        return normal_label(labels, named)
    except ManifestError as error:
        raise TrainError(str(error)) from error


def weak_labels(clips: Sequence[Clip], normal: str) -> list[Clip]:
    """Return the clips with one label of `CLASSES` each.

    Args:
        clips: with the labels of their data set.
        normal: the label of clips without anomaly; one of `NORMAL_LABELS` if empty.

    Raises:
        TrainError: no clip has that label, or several labels may be it.
    """
    labels = {clip.label for clip in clips}
    taken = taken_as_normal(labels, normal)
    if taken is None:
        raise TrainError(
            f"detection needs normal clips too, and none is labelled {' or '.join(NORMAL_LABELS)}; "
            f"name their label with --normal (there are {listed(sorted(labels))})"
        )
    return [replace(clip, labels=(CLASSES[clip.label != taken],)) for clip in clips]


def with_duration(clip: Clip, features: Features, recipe: Recipe) -> Clip:
    """Return a clip with a duration: if the manifest states none, up to the last of its pictures.

    Its frames are judged, and sound that is longer than the pictures has none.

    Args:
        clip: as the manifest has it.
        features: of the clip.
        recipe: of them; a stream of sound is called ``audio``, or is heard in windows.

    Raises:
        TrainError: the manifest states a duration that cannot be that of these features.
    """
    pictures = [
        features.valid[name]
        for name, settings in recipe.streams.items()
        if name != "audio" and "window_seconds" not in settings
    ]
    seen = np.logical_or.reduce(pictures) if pictures else np.zeros(0, bool)
    if clip.duration is not None and clip.duration > MOST_LONGER * features.duration + 60:
        raise TrainError(
            f"clip {clip.id}: the manifest says that it lasts {clip.duration:g} s, and its "
            f"features {features.duration:g} s; durations are in seconds: correct it, or leave "
            "it out"
        )
    if clip.duration is not None or not seen.any():
        return clip
    return replace(clip, duration=float(np.flatnonzero(seen)[-1] + 1) * features.snippet_seconds)


def check_annotations(
    clips: Mapping[str, Clip], features: Mapping[str, Features], snippet_seconds: float
) -> None:
    """Refuse held-out clips that detection cannot be judged by.

    Args:
        clips: clip id -> as the manifest has it.
        features: of the clips.
        snippet_seconds: length of a snippet.

    Raises:
        TrainError: some have no annotation in time, or their frames are all of one kind.
    """
    bare = [clip_id for clip_id, clip in clips.items() if clip.intervals is None]
    if bare:
        raise TrainError(
            f"held-out clips without annotation in time: {len(bare)} ({bare[0]} is one); detection "
            "is judged by it: give them intervals in the manifest ([] where nothing happens), or "
            "take them out of the test split"
        )
    if clips and not any(clip.intervals for clip in clips.values()):
        raise TrainError("the held-out clips have no anomaly: there is nothing to be detected")
    truth = [
        frame_truth(clip, len(next(iter(features[clip_id].valid.values()))), snippet_seconds)
        for clip_id, clip in clips.items()
    ]
    kinds = {int(kind) for own in truth for kind in (own.min(), own.max())}
    if len(kinds) == 1:
        what = "anomalous" if kinds == {1} else "normal, as all anomalies lie beyond their clips"
        raise TrainError(
            f"all frames of the held-out clips are {what}: there is nothing to be told apart; "
            "correct intervals and durations in the manifest, or hold out other clips"
        )
