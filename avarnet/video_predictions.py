"""New videos read and predicted, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import features
import manifests
from features.several import several

if TYPE_CHECKING:
    from train import Prediction, Predictor, Run


@dataclass(frozen=True)
class Scored:
    """What a run predicts of one video.

    Attributes:
        video: the file; of a clip of a store, its id.
        clip: its features.
        prediction: of the run.
        page: that shows it, if one was asked for and could be written.
        page_error: why it could not be.
    """

    video: Path | str
    clip: features.Features
    prediction: Prediction
    page: Path | None = None
    page_error: str | None = None


@dataclass(frozen=True)
class Unreadable:
    """A video, or a clip of a store, that could not be read, and why."""

    video: Path | str
    reason: str


def predict(
    run: Run,
    videos: str | Path | Sequence[str | Path],
    *,
    recipe: features.Recipe | None = None,
    device: str = "auto",
    pages: Mapping[str, str | Path] | Mapping[Path, str | Path] | None = None,
    single_file: bool = True,
    progress: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Scored | Unreadable]:
    """Predict what videos show, one after the other, as they are read.

    Args:
        run: a trained run.
        videos: a file, or several.
        recipe: the run's, with networks that have moved; None takes the run's own.
        device: of the networks; see `extract.Extractor`.
        pages: video -> the HTML file to write of it.
        single_file: put all that a page needs into it; else pages of a folder share a file of 5 MB.
        progress: called with the seconds of video done.

    Raises:
        WeightsError: the networks cannot be loaded; at once, and so are all errors but those of
            single videos.
    """
    from extract import Extractor
    from train import Predictor

    extractor = Extractor(recipe or run.recipe, device, other_reading=True)
    own_pages = {Path(video): Path(page) for video, page in (pages or {}).items()}
    predictor = Predictor(run)
    files = [*map(Path, several(videos))]
    return _predict(extractor, predictor, files, own_pages, single_file, progress)


def _predict(
    extractor: Any,
    predictor: Predictor,
    videos: Sequence[Path],
    pages: dict[Path, Path],
    single_file: bool,
    progress: Callable[[float], None],
) -> Iterator[Scored | Unreadable]:
    from extract import ClipError, Files

    files = (Files(video, None) for video in videos)
    for (video, _), clip in extractor.stream(files, progress):
        if isinstance(clip, ClipError):
            yield Unreadable(video, str(clip))
            continue
        found = Scored(video, clip, predictor(clip))
        if page := pages.get(video):
            found = _with_page(found, page, predictor, single_file)
        yield found


def _with_page(scored: Scored, page: Path, predictor: Predictor, single_file: bool) -> Scored:
    """Write the page of a video; where that fails, what is predicted is not lost."""
    from train import TrainError
    from train.report.prediction import write_prediction_page

    run, clip = predictor.run, scored.clip
    streams = [name for name in run.config.streams if clip.valid[name].any()]
    without = {name: predictor(clip, [name]) for name in streams if len(streams) > 1}
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_prediction_page(
            page, Path(scored.video), clip, run, scored.prediction, without, single_file=single_file
        )
    except TrainError as error:
        return replace(scored, page_error=str(error))
    except OSError as error:
        return replace(scored, page_error=f"{page}: {manifests.reason(error)}")
    return replace(scored, page=page)
