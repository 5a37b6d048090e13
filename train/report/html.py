"""HTML files: templates, and plots by Plotly."""

from __future__ import annotations

import html
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from train.run_files import write_run_file

INK = "#888888"  # readable on light and on dark pages
GRID = "rgba(136, 136, 136, 0.25)"
COLOURS = ("#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#1f78b4")
AXIS = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True}
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
        file.write_bytes(program)
    return file.name


@cache
def _plotly() -> bytes:
    program: str = get_plotlyjs()
    return program.encode()


def plot(traces: list[Any], height: int = 380, **layout: Any) -> str:
    """Return a plot as a piece of HTML.

    Args:
        traces: Plotly's.
        height: in pixels; it is as wide as the page.
        layout: of Plotly's layout, where it differs from `HOUSE`.
    """
    whole = go.Figure(traces, {"template": HOUSE, "height": height, **layout})
    config = {"displayModeBar": False, "responsive": True}
    piece: str = whole.to_html(full_html=False, include_plotlyjs=False, config=config)
    return piece


def span(start: float, end: float, across: str, colour: str = "0, 0, 0") -> dict[str, Any]:
    """Return a shape that marks a stretch of time in a plot.

    Args:
        start, end: on the plot's x axis.
        across: how far up: ``paper``, the whole plot, or ``y domain``, one axis.
        colour: red, green and blue, 0 to 255.
    """
    box = {"x0": start, "x1": end, "y0": 0, "y1": 1, "xref": "x", "yref": across}
    look = {"fillcolor": f"rgba({colour}, 0.2)", "line": {"width": 0}, "layer": "below"}
    return {"type": "rect", **box, **look}


def plain(text: str) -> str:
    """Keep a name that looks like markup from being taken for it: Plotly reads some."""
    return html.escape(text, quote=False)


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number as the tables show it."""
    return "n/a" if value is None else f"{value:.{digits}f}"


def clock(seconds: float) -> str:
    """Return a time as a player shows it.

    >>> clock(75.25), clock(3700)
    ('1:15.2', '1:01:40.0')
    """
    minutes, rest = divmod(round(seconds * 10), 600)
    hours, minutes = divmod(minutes, 60)
    tenths = f"{rest // 10:02d}.{rest % 10}"
    return f"{hours}:{minutes:02d}:{tenths}" if hours else f"{minutes}:{tenths}"
