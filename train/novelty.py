"""Whether a clip is unlike anything in training: its distance to the nearest training clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from features import Features
from features.clip_means import mean_row
from train.config import TrainError
from train.data import Clips
from train.run_files import KNOWN_CLIPS_FILE, MOST_HEADER, read_run_file

if TYPE_CHECKING:
    from train.run import Run

FALSE_RATE = 0.01  # of clips like those of the training that are called unlike them
MOST_CLIPS = 2000  # that a run keeps; of more, so many are drawn
FOLDS = 20
LIMIT = 10.0  # deviations, as in `Config.outlier_limit`: no single value decides alone
Means = dict[str, NDArray[np.float16]]  # stream -> (clips, D); rows of NaN where a clip lacks it


@dataclass(frozen=True)
class KnownClips:
    """The means of the training and validation clips of a run.

    The distance of two clips is the root mean square difference of the means of their streams, each
    value in its deviations over these clips; it is taken over the streams that both have.

    Attributes:
        means: stream -> (clips, D); a row of NaN where a clip lacks the stream.
        threshold: a clip that is farther from all of them is unlike them.
        false_rate: at most this share of clips of further recordings like these is farther, too.
    """

    means: Means
    threshold: float
    false_rate: float

    @classmethod
    def choose(cls, means: Means, groups: NDArray[np.int64], seed: int = 0) -> KnownClips | None:
        """Return these clips with a threshold; None where recordings cannot be compared.

        The distance of some recordings' clips to the nearest of the others is what that of new ones
        would be (cross-validation, which leaves them out of the deviations too). At most a share of
        `FALSE_RATE` of clips to come exceeds the threshold, as far as their recordings are like
        these (conformal prediction: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random
        World, 2005). Of less than 99 recordings the threshold is the largest of the distances, and
        the rate one in the number of recordings plus one.

        Args:
            means: see `KnownClips`.
            groups: (clips,) number of each clip's recording.
            seed: draws clips, if there are too many.
        """
        if len(groups) > MOST_CLIPS:
            rng = np.random.default_rng(seed)
            drawn = np.sort(rng.permutation(len(groups))[:MOST_CLIPS])
            groups, means = groups[drawn], {name: rows[drawn] for name, rows in means.items()}
        recordings = len(set(groups.tolist()))
        if recordings < 2:
            return None
        each = np.full(len(groups), np.inf)
        for fold in range(folds := min(FOLDS, recordings)):
            out = np.searchsorted(np.unique(groups), groups) % folds == fold
            rest = _Space({name: rows[~out] for name, rows in means.items()})
            each[out] = rest.distances({name: rows[out] for name, rows in means.items()}).min(1)
        nearest = np.sort(each[np.isfinite(each)])
        if not len(nearest) or not nearest[-1]:
            return None
        rate = max(FALSE_RATE, 1 / (recordings + 1))
        rank = ceil((1 - rate) * (1 + 1 / recordings) * len(nearest) - 1e-9)
        return cls(means, float(nearest[min(rank, len(nearest)) - 1]), rate)

    @cached_property
    def _space(self) -> _Space:
        return _Space(self.means)

    def novelty(self, clip: Features, crops: Mapping[str, int]) -> float | None:
        """Return a clip's distance to the nearest known clip, as a multiple of the threshold.

        None if it has no stream with one of them.

        Args:
            clip: the clip.
            crops: see `Clips`.
        """
        own = means_of([clip.streams], [clip.valid], list(self.means), crops)
        nearest = float(self._space.distances(own).min())
        return nearest / self.threshold if np.isfinite(nearest) else None

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads."""
        figures = {"threshold": self.threshold, "false_rate": self.false_rate}
        return safetensors.numpy.save(
            {f"means {n}": rows for n, rows in self.means.items()}
            | {name: np.array([value]) for name, value in figures.items()}
        )

    @classmethod
    def from_bytes(cls, content: bytes, sizes: Mapping[str, int]) -> KnownClips:
        """Read what `to_bytes` gave.

        Args:
            content: of a file, maybe a stranger's.
            sizes: stream -> values per snippet, of the run.

        Raises:
            ValueError, KeyError, SafetensorError: it cannot be that.
        """
        read = safetensors.numpy.load(content)
        means = {name: read[f"means {name}"] for name in sizes}
        threshold, false_rate = (float(read[n].item()) for n in ("threshold", "false_rate"))
        for name, rows in means.items():
            if rows.dtype != np.float16 or rows.ndim != 2 or rows.shape[1] != sizes[name]:
                raise ValueError(f"{name}: {rows.dtype} {rows.shape}")
        lengths = {len(rows) for rows in means.values()}
        if len(lengths) > 1 or 0 in lengths or any(np.isinf(rows).any() for rows in means.values()):
            raise ValueError("means that no clips have")
        if not (0 < threshold < np.inf and 0 < false_rate < 1):
            raise ValueError(f"a threshold of {threshold} for a rate of {false_rate}")
        return cls(means, threshold, false_rate)


class _Space:
    """Standardised means, with the distances between clips."""

    def __init__(self, known: Means) -> None:
        self._centre, self._scale = {}, {}
        for name, rows in known.items():
            complete = rows[~np.isnan(rows).any(1)].astype(np.float64)
            spread = complete.std(0) if len(complete) else np.zeros(rows.shape[1])
            self._centre[name] = complete.mean(0) if len(complete) else spread
            varies = spread > 1e-6
            self._scale[name] = np.where(varies, 1 / np.where(varies, spread, 1), 0)
        self._known = {name: self._placed(name, rows) for name, rows in known.items()}

    def distances(self, clips: Means) -> NDArray[np.float64]:
        """Return (clips, known clips); infinite where two have no stream in common."""
        known, _ = next(iter(self._known.values()))
        shape = len(next(iter(clips.values()))), len(known)
        total, count = np.zeros(shape), np.zeros(shape)
        for name, rows in clips.items():
            (one, has), (other, have) = self._placed(name, rows), self._known[name]
            both = has[:, None] & have
            squares = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
            total += np.where(both, squares.clip(0), 0)
            count += both * (self._scale[name] > 0).sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(count > 0, np.sqrt(total / count), np.inf)

    def _placed(
        self, name: str, rows: NDArray[np.float16]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        has = np.asarray(~np.isnan(rows).any(axis=1))
        placed = (rows.astype(np.float64) - self._centre[name]) * self._scale[name]
        return np.where(has[:, None], placed.clip(-LIMIT, LIMIT), 0), has


def means_of(
    rows: Sequence[Mapping[str, NDArray[np.float16]]],
    valid: Sequence[Mapping[str, NDArray[np.bool_]]],
    streams: Sequence[str],
    crops: Mapping[str, int],
) -> Means:
    """Return the means of the valid rows of some clips.

    Args:
        rows: of each clip, stream -> (T, D).
        valid: of each clip, stream -> (T,).
        streams: which.
        crops: stream -> crops that lie side by side in a row; they are averaged.
    """
    means = {}
    for name in streams:
        each = [mean_row(own[name], mask[name]) for own, mask in zip(rows, valid, strict=True)]
        width = rows[0][name].shape[1]
        whole = np.stack([np.full(width, np.nan) if one is None else one for one in each])
        means[name] = whole.reshape(len(whole), crops.get(name, 1), -1).mean(1).astype(np.float16)
    return means


def known_clips(
    clips: Clips, indices: NDArray[np.int64], groups: NDArray[np.int64], seed: int
) -> KnownClips | None:
    """Return what is kept of the clips that a run was trained on; see `KnownClips.choose`.

    Args:
        clips: their features.
        indices: which.
        groups: (indices,) number of each one's recording.
        seed: draws clips, if there are too many.
    """
    rows, valid = [clips.rows[i] for i in indices], [clips.valid[i] for i in indices]
    return KnownClips.choose(means_of(rows, valid, list(clips.sizes), {}), groups, seed)


def load_known_clips(run: Run) -> KnownClips | None:
    """Return the clips that a run was trained on.

    None if it has none of them, as runs of older versions, or no more: the file may be deleted.

    Raises:
        TrainError: they are damaged.
    """
    if not run.known_clips_digest:
        return None
    file = run.path / KNOWN_CLIPS_FILE
    try:
        content = read_run_file(file, 2 * MOST_CLIPS * sum(run.sizes.values()) + MOST_HEADER)
        if sha256(content).hexdigest() != run.known_clips_digest:
            raise ValueError("its SHA-256 is not that in run.json")
        return KnownClips.from_bytes(content, run.sizes)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise TrainError(
            f"{file} is damaged ({error}); take it again from whoever made it, or delete it: "
            "predictions then do not say which clips are unlike those of the training"
        ) from error
