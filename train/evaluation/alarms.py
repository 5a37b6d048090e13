"""Detection judged by its alarms, as whoever watches gets them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from manifests import Clip
from train.evaluation.figures import FalseAlarms
from train.evaluation.segments import stretches_above

RECALL = 0.8  # of the annotated anomalies, at which false alarms are counted
ALARM_SECONDS = 10.0  # as long as most anomalies: half of XD-Violence's last under 6 s


def false_alarms(
    clips: Sequence[Clip],
    scores: Sequence[NDArray[np.float32]],
    snippet_seconds: float,
    recall: float = RECALL,
) -> FalseAlarms:
    """Return how many false alarms an hour it costs to notice a share of the anomalies.

    An alarm is raised where a score reaches a threshold, lasts while the scores stay there, but at
    most `ALARM_SECONDS`, and is then raised again: without that, one alarm from a clip's beginning
    to its end would be a right one wherever there is an anomaly, and a single false one in an hour
    without. An anomaly is noticed if an alarm overlaps it, however little; an alarm that overlaps
    none is false. So are seizure detectors judged, which have to say too how often they call in
    vain (any overlap, long events cut: SzCORE, Dan et al., Epilepsia 2024). Hours are those without
    anomaly, in which alone an alarm can be false, so that a test set with many anomalies does not
    flatter. The threshold is the highest that notices a share of `recall`, over 0 and at most 1; it
    is read off these very clips, as a point of a curve is.

    Returns:
        ``asked``, `recall`; ``recall``, the share that is noticed, which is more where anomalies
        are few or scores tied; ``threshold``; ``per_hour``; ``hours``, of footage without anomaly.
        ``recall``, ``threshold`` and ``per_hour`` are None where nothing is annotated, the last
        also where all is anomalous.
    """
    peaks = []
    touched = [np.zeros(len(own), bool) for own in scores]
    for clip, own, anomalous in zip(clips, scores, touched, strict=True):
        for start, end in clip.intervals or ():
            first = min(int(start / snippet_seconds + 1e-9), len(own) - 1)
            last = max(first + 1, int(np.ceil(end / snippet_seconds - 1e-9)))
            peaks.append(float(own[first:last].max()))
            anomalous[first:last] = True
    hours = float(sum((~anomalous).sum() for anomalous in touched)) * snippet_seconds / 3600
    result: FalseAlarms = {
        "asked": recall,
        "hours": hours,
        "recall": None,
        "threshold": None,
        "per_hour": None,
    }
    if not peaks:
        return result
    peaks.sort(reverse=True)
    threshold = peaks[max(1, int(np.ceil(recall * len(peaks) - 1e-9))) - 1]
    longest = longest_alarm(snippet_seconds)
    wrong = 0
    for own, anomalous in zip(scores, touched, strict=True):
        for first, last in stretches_above(own, threshold):
            alarms = np.arange(first, last, longest)
            wrong += int((~np.logical_or.reduceat(anomalous[:last], alarms)).sum())
    return {
        **result,
        "recall": sum(peak >= threshold for peak in peaks) / len(peaks),
        "threshold": threshold,
        "per_hour": wrong / hours if hours else None,
    }


def longest_alarm(snippet_seconds: float) -> int:
    """Return how many snippets an alarm lasts at most."""
    return max(1, int(ALARM_SECONDS / snippet_seconds + 1e-9))


def threshold_for(
    scores: Sequence[NDArray[np.float32]], snippet_seconds: float, most: int
) -> tuple[float, int]:
    """Return the lowest threshold at which some footage has at most so many alarms, and how many.

    They are counted as in `false_alarms`. From the highest score down, alarms become more, but also
    fewer where two run into one: the threshold ends above the first one that gives too many.

    Args:
        scores: of each clip (T,).
        snippet_seconds: length of a snippet.
        most: alarms, 0 or more; with 0 the threshold is just above the highest score.

    >>> threshold_for([np.array([0.1, 0.9, 0.2, 0.8, 0.7], np.float32)], 1, 2)
    (0.10000000149011612, 1)
    >>> threshold_for([np.array([0.1, 0.9, 0.2, 0.8, 0.7], np.float32)], 1, 1)
    (0.8999999761581421, 1)
    """
    longest = longest_alarm(snippet_seconds)
    # one row of all clips, with a gap between them that no stretch can cross
    whole = np.concatenate([np.append(own, np.float32(-np.inf)) for own in scores])
    order = np.argsort(-whole, kind="stable")[: -len(scores)]
    begin_of: dict[int, int] = {}  # last snippet of a stretch -> its first one
    end_of: dict[int, int] = {}
    threshold, found = float(np.nextafter(whole.max(), np.float32(np.inf))), 0
    count = 0
    for place, following in pairwise([*order.tolist(), None]):
        first, last = begin_of.pop(place - 1, place), end_of.pop(place + 1, place)
        begin_of[last], end_of[first] = first, last
        before = -(-(place - first) // longest) - (-(last - place) // longest)
        count += -(-(last - first + 1) // longest) - before
        if following is not None and whole[following] == whole[place]:
            continue
        if count > most:
            break
        threshold, found = float(whole[place]), count
    return threshold, found
