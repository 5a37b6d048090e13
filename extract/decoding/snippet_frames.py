"""Which frames of a video are read for a snippet: those shown when a network asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from extract.decoding.container import Media
from extract.decoding.frames import CLOCK_SLACK, frames
from extract.decoding.messages import Frame, Request
from extract.impairments import Impairment
from extract.preprocessing import FrameWindow, Prepare


def snippet_frames(request: Request, media: Media, snippets: int) -> Iterator[Frame]:
    """Yield the prepared frames of each snippet in turn, of each stream that can be decoded there.

    Instants are counted from the middle of a snippet; the frame is the one that is shown then.

    Args:
        request: what is asked for.
        media: as `probe` found the file.
        snippets: how many there are.
    """
    if not request.prepare:
        return
    middles = np.asarray((np.arange(snippets) + 0.5) * request.snippet_seconds, np.float64)
    impairment = request.impairment
    shown = {
        stream: _shown(prepare, middles, media, impairment)
        for stream, prepare in request.prepare.items()
    }
    numbers = np.unique(np.concatenate([of.ravel() for of in shown.values()]))
    pictures = zip(numbers.tolist(), frames(request.files.video, media, numbers), strict=True)
    wanted = {stream: set(of.ravel().tolist()) for stream, of in shown.items()}
    # of each stream, the frames that its next snippets may need
    kept: dict[str, dict[int, NDArray[np.uint8]]] = {stream: {} for stream in shown}
    newest = -2  # before the first frame stands -1
    for snippet in range(snippets):
        while newest < max(of[snippet].max() for of in shown.values()):
            newest, picture = next(pictures)
            if picture.size:
                picture = impairment.picture(picture)
            for stream, prepare in request.prepare.items():
                if newest in wanted[stream]:
                    kept[stream][newest] = (
                        prepare.small(picture)
                        if isinstance(prepare, FrameWindow) and picture.size
                        else picture
                    )
        for stream, prepare in request.prepare.items():
            needed = shown[stream][snippet].tolist()
            taken = [kept[stream][number] for number in needed]
            if all(picture.size for picture in taken):
                yield Frame(stream, snippet, prepare(taken))
            for number in [number for number in kept[stream] if number < min(needed)]:
                del kept[stream][number]


def _shown(
    prepare: Prepare, middles: NDArray[np.float64], media: Media, impairment: Impairment
) -> NDArray[np.int64]:
    """Return (snippets, instants) numbers of the frames that are shown then; -1 before the first.

    Args:
        prepare: of a stream.
        middles: of the snippets, in seconds.
        media: has the times of the frames.
        impairment: with which they are read.
    """
    times = np.add.outer(middles, prepare.instants)
    if isinstance(prepare, FrameWindow):
        late = np.maximum(times[:, -1:] - media.frame_times[-1], 0)
        times = times - late
        times += np.maximum(-times[:, :1], 0)
    return np.searchsorted(media.frame_times, impairment.times(times) + CLOCK_SLACK) - 1
