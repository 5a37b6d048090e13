"""HTML files: templates, and plots by Plotly."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from train.run_files import write_run_file

INK = "#888888"  # seen on light and on dark; pages have their own colour for texts
MOST_NAME = 18  # characters of a class at an axis
GRID = "rgba(136, 136, 136, 0.25)"
COLOURS = ("#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#1f78b4")
AXIS = {
    "gridcolor": GRID,
    "zerolinecolor": GRID,
    "linecolor": GRID,
    "automargin": True,
    "ticks": "outside",  # or the zeros of both axes meet
    "tickcolor": GRID,
    "title": {"standoff": 8},  # or titles lie on long names
}
FOUND, TRUTH = COLOURS[0], COLOURS[1]  # stretches of time: by a model, by the manifest
SHARES = {"range": [0, 1.2], "tickvals": [0, 0.5, 1]}  # with room above for stretches of time
HOUSE = go.layout.Template(
    layout={
        "margin": {"l": 60, "r": 20, "t": 40, "b": 50},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "family": "system-ui, sans-serif", "size": 13},
        "colorway": COLOURS,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "dragmode": False,
        "xaxis": AXIS,
        "yaxis": AXIS,
    }
)
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("train.report"),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def _plot_html(drawn: go.Figure) -> Markup:
    """Return a plot as a piece of a page, as wide as its place."""
    config = {"displayModeBar": False, "responsive": True}
    return Markup(drawn.to_html(full_html=False, include_plotlyjs=False, config=config))


TEMPLATES.filters["plot"] = _plot_html


def write_page(file: Path, template: str, plotly: str | None = None, **values: Any) -> None:
    """Write a page that needs nothing from elsewhere.

    Args:
        file: the page.
        template: of it.
        plotly: the file beside it that has Plotly's program; "" where there are no plots; None puts
            all of the program into the page.
        values: for the template.
    """
    page = TEMPLATES.get_template(template)
    text = page.render(plotly=plotly, plotly_js=get_plotlyjs, figure=figure, clock=clock, **values)
    write_run_file(file, text)


def share_plotly(folder: Path) -> str:
    """Put Plotly's program into a folder of pages, and return the file's name."""
    file, program = folder / f"plotly-{get_plotlyjs_version()}.min.js", _plotly()
    if not file.is_file() or file.stat().st_size != len(program):
        write_run_file(file, program)
    return file.name


@cache
def _plotly() -> bytes:
    program: str = get_plotlyjs()
    return program.encode()


def plot(traces: Sequence[Any], height: int = 380, **layout: Any) -> go.Figure:
    """Return a plot.

    Args:
        traces: Plotly's.
        height: in pixels; it is as wide as the page.
        layout: of Plotly's layout, where it differs from `HOUSE`.
    """
    return go.Figure(traces, {"template": HOUSE, "height": height, **layout})


def stretches(intervals: Sequence[tuple[float, float]], name: str, colour: str) -> go.Scatter:
    """Return bars that mark stretches of time, above the curves of an axis of `SHARES`.

    Args:
        intervals: start and end of each, on the plot's x axis.
        name: what they are.
        colour: `FOUND` or `TRUTH`, which lie one above the other.
    """
    return go.Scatter(
        x=[x for start, end in intervals for x in (start, end, None)],
        y=[1.07 if colour == FOUND else 1.14] * 3 * len(intervals),
        mode="lines",
        name=name,
        line={"color": colour, "width": 5},
        hoverinfo="skip",
    )


def places(file: Path, page: Path) -> list[str]:
    """Return from where a page plays a file: beside it, so that both may move, or where it is now.

    Args:
        file: a video or a sound.
        page: that plays it.
    """
    # not by where links lead: a folder of links may move, too
    beside = os.path.relpath(file.absolute(), page.absolute().parent)
    return [quote(beside), file.resolve().as_uri()]


def categories(names: Sequence[str]) -> dict[str, Any]:
    """Return what an axis of classes has: their names, short enough to leave room for the plot.

    Args:
        names: as the traces have them but for `plain`, in order.
    """
    short = [n if len(n) <= MOST_NAME else n[: MOST_NAME - 1].rstrip() + "…" for n in names]
    return {
        "type": "category",
        "tickvals": [plain(name) for name in names],
        "ticktext": [plain(name) for name in short],
    }


def plain(text: str) -> str:
    """Keep a name that looks like markup from being taken for it: Plotly reads some."""
    return html.escape(text, quote=False)


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number as the tables show it.

    >>> figure(-0.0001), figure(None)
    ('0.000', 'n/a')

    Args:
        value: None where there is none.
        digits: after the point.
    """
    return "n/a" if value is None else f"{value:z.{digits}f}"


def clock(seconds: float) -> str:
    """Return a time as a player shows it.

    >>> clock(75.25), clock(3700)
    ('1:15.2', '1:01:40.0')
    """
    minutes, rest = divmod(round(seconds * 10), 600)
    hours, minutes = divmod(minutes, 60)
    tenths = f"{rest // 10:02d}.{rest % 10}"
    return f"{hours}:{minutes:02d}:{tenths}" if hours else f"{minutes}:{tenths}"
