"""`avarnet calibrate`: at which score a camera's footage raises an alarm."""

from __future__ import annotations

from typing import Annotated

import typer

from avarnet.console import clips_bar, counted, out, plain, print_json
from avarnet.options import Join, Json, RunPath, SkipUnreadable, StorePath
from avarnet.stores import open_stores

app = typer.Typer()


@app.command(epilog="Example: `avarnet calibrate run camera-store --false-alarms-per-hour 0.5`")
def calibrate(
    run: RunPath,
    store: StorePath,
    false_alarms_per_hour: Annotated[
        float, typer.Option(help="How many the camera's usual footage may raise.")
    ],
    join: Join = None,
    skip_unreadable: SkipUnreadable = False,
    as_json: Json = False,
) -> None:
    """Choose the threshold of alarms on unlabelled footage of a new camera, for predict and watch.

    Every alarm on this footage counts as a false one. The threshold is kept in
    RUN/calibration.json; delete that to return to the one of the training.
    """
    import train as stage2

    opened = open_stores([store, *(join or [])], skip_unreadable)
    with clips_bar("scoring", as_json) as show:
        chosen = stage2.calibrate(stage2.Run.load(run), opened, false_alarms_per_hour, show)
    if as_json:
        print_json(chosen)
        return
    rate = chosen["alarms"] / chosen["hours"]
    out.print_sentences(
        f"alarms at scores of {chosen['threshold']:.4f} or more: "
        f"{counted(chosen['alarms'], 'alarm')} in {chosen['hours']:.2f} hours of "
        f"{counted(chosen['clips'], 'clip')}, {rate:.2g} an hour (95 % interval "
        f"{chosen['low']:.2g} to {chosen['high']:.2g})"
    )
    if empty := len(opened) - chosen["clips"]:
        what = counted(empty, "clip")
        out.print_sentences(f"[yellow]left out:[/] {what} with nothing in the streams of the run")
    out.print_sentences(
        f"'avarnet predict' and 'avarnet watch' with {plain(str(run))} go by it from now on"
    )
