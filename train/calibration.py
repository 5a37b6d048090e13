"""The threshold of alarms, chosen on unlabelled footage of the camera that is to be watched."""

from __future__ import annotations

from collections.abc import Callable

from features import Joined, Store, json_text
from train.config import TrainError
from train.evaluation.alarms import threshold_for
from train.evaluation.evaluate import check_recipe
from train.predict import Predictor
from train.run import Run
from train.run_files import CALIBRATION_FILE, check_writable, write_run_file
from train.run_json import Calibration

CONFIDENCE = 0.95


def calibrate(
    run: Run,
    store: Store | Joined,
    false_alarms_per_hour: float,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> Calibration:
    """Choose the lowest threshold that gives so few alarms an hour, and write it into the run.

    Clips that have nothing in the run's streams are left out: they would count as hours without an
    alarm. Nothing is known of the footage but that anomalies are rare in it: every alarm counts as
    a false one, so anomalies there make the threshold higher, never lower. Alarms are counted as in
    `train.evaluation.alarms.false_alarms`.

    Args:
        run: a run that knows a normal class.
        store: features of the footage, by the run's recipe.
        false_alarms_per_hour: that may be raised.
        progress: called with the number of clips that are scored, and how many there are.

    Returns:
        What is in ``calibration.json``, from where `Run.load` takes it: `Predictor` and `watch` go
        by it. ``low`` and ``high`` are the ends of the 95 % interval of a rate of which so many
        alarms were seen (exact Poisson: alarms that come independently of each other).

    Raises:
        TrainError: there is too little footage for so few alarms, the run knows no normal class, or
            the features are of another recipe, or the run cannot be written.
    """
    from scipy.stats import chi2

    if run.normal is None:
        raise TrainError(
            f"{run.path} knows no normal class; name it in training: avarnet train ... --normal "
            "LABEL"
        )
    if not 0 < false_alarms_per_hour < float("inf"):
        raise TrainError(f"{false_alarms_per_hour:g} false alarms an hour: expected more than 0")
    check_recipe(run, store.recipe)
    check_writable(run.path)
    predictor, scores = Predictor(run), []
    for number, clip_id in enumerate(store, 1):
        clip = store[clip_id]
        anomaly = predictor(clip).anomaly
        seen = any(clip.valid[name].any() for name in run.config.streams)  # else it is no footage
        if seen and anomaly is not None and len(anomaly):
            scores.append(anomaly)
        progress(number, len(store))
    step = run.recipe.snippet_seconds
    hours = sum(map(len, scores)) * step / 3600
    most = int(false_alarms_per_hour * hours + 1e-9)
    if not most:
        raise TrainError(
            f"{hours:.2f} hours of footage are too few for {false_alarms_per_hour:g} false alarms "
            f"an hour: give at least {1 / false_alarms_per_hour:.2g} hours, better ten times that"
        )
    threshold, alarms = threshold_for(scores, step, most)
    if threshold > 1:
        raise TrainError(
            f"scores of 1 are reached more often than {false_alarms_per_hour:g} times an hour: no "
            "threshold gives so few false alarms; allow more, or train on footage of such a camera"
        )
    tail = (1 - CONFIDENCE) / 2
    chosen: Calibration = {
        "threshold": threshold,
        "asked": false_alarms_per_hour,
        "alarms": alarms,
        "hours": hours,
        "low": float(chi2.ppf(tail, 2 * alarms)) / 2 / hours if alarms else 0.0,
        "high": float(chi2.ppf(1 - tail, 2 * alarms + 2)) / 2 / hours,
        "clips": len(scores),
        "stores": [str(path) for path in store.paths],
    }
    write_run_file(run.path / CALIBRATION_FILE, json_text(chosen, indent=1) + "\n")
    return chosen
