"""Progress in a notebook: a bar in the output of the cell."""

from __future__ import annotations

import sys
from collections.abc import Callable
from html import escape

from rich.progress import Progress

from features import visible


def in_notebook() -> bool:
    """Return whether this process runs a notebook's cells."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def notebook_bar(bar: Progress, line: Callable[[Progress], str]) -> Callable[[], None]:
    """Return what shows a bar and its line in a notebook, each time in place of the last.

    Args:
        bar: that is not drawn elsewhere.
        line: returns what stands behind it.
    """
    from IPython.display import display

    handle = display({"text/plain": ""}, raw=True, display_id=True)

    def show() -> None:
        text = visible(line(bar))
        drawn = "".join(
            f'<progress value="{task.completed}" max="{task.total}"></progress> '
            for task in bar.tasks
            if task.total
        )
        handle.update({"text/plain": text, "text/html": drawn + escape(text)}, raw=True)

    return show
