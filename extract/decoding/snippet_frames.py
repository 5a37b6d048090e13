"""Which frames of a video are read for a snippet: those shown when a network asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from extract.decoding.container import Media
from extract.decoding.frames import CLOCK_SLACK, frames
from extract.decoding.messages import Frame, Request


def snippet_frames(request: Request, media: Media, snippets: int) -> Iterator[Frame]:
    """Yield the prepared frames of each snippet in turn, of each stream that can be decoded there.

    Instants are counted from the middle of a snippet; the frame is the one that is shown then.

    Args:
        request: what is asked for.
        media: as `probe` found the file.
        snippets: how many there are.
    """
    instants = sorted({at for prepare in request.prepare.values() for at in prepare.instants})
    middles = (np.arange(snippets) + 0.5) * request.snippet_seconds
    impairment = request.files.impairment
    times = impairment.times(np.add.outer(middles, instants).ravel())
    numbers = np.searchsorted(media.frame_times, times + CLOCK_SLACK) - 1
    pictures = frames(request.files.video, media, numbers)

    def seen(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return impairment.picture(picture) if picture.size else picture

    for snippet in range(snippets):
        shown_at = {at: seen(next(pictures)) for at in instants}
        for stream, prepare in request.prepare.items():
            taken = [shown_at[at] for at in prepare.instants]
            if all(picture.size for picture in taken):
                yield Frame(stream, snippet, prepare(taken))
