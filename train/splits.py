"""Which clips train, which choose the best epoch and which are held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from manifests import Clip, assign_folds, assign_split, listed
from train.config import Config, TrainError


@dataclass(frozen=True)
class Split:
    """One training: ids of the clips that train, choose the epoch, and are held out."""

    train: list[str]
    val: list[str]
    test: list[str]


def make_splits(clips: Sequence[Clip], config: Config) -> list[Split]:
    """Divide labelled clips once, or once for each fold.

    With ``config.folds`` the manifest's own split is not used; otherwise its splits are: train, val
    and test, or fold-0, fold-1, ... (each fold is held out once). Where the manifest has no
    validation clips a share of the training clips is taken, whole groups at a time.

    Raises:
        TrainError: there is nothing to divide by, or a side would be empty.
    """
    if config.folds:
        clips = assign_folds(clips, config.folds, config.seed)
    names = sorted({clip.split for clip in clips if clip.split})
    folds = [name for name in names if name.startswith("fold-")]
    if folds and len(folds) == len(names):
        result = []
        for fold in folds:
            rest = [clip for clip in clips if clip.split != fold]
            train, val = _take_validation(rest, config)
            result.append(Split(train, val, [clip.id for clip in clips if clip.split == fold]))
    else:
        sides = {
            side: [clip for clip in clips if clip.split == side]
            for side in ("train", "val", "test")
        }
        if not sides["train"]:
            raise TrainError(
                "the manifest has no clips to train on that are in the store; divide it with "
                "'avarnet manifest split MANIFEST', or cross-validate with --folds 5"
            )
        train, val = [clip.id for clip in sides["train"]], [clip.id for clip in sides["val"]]
        if not val:
            train, val = _take_validation(sides["train"], config)
        result = [Split(train, val, [clip.id for clip in sides["test"]])]
    label = {clip.id: clip.label for clip in clips}
    for split in result:
        seen = Counter(label[clip_id] for clip_id in split.train)
        unseen = sorted({label[i] for i in (*split.val, *split.test)} - seen.keys())
        if unseen:
            raise TrainError(
                f"no training clip of {listed(unseen)}, but clips to recognise; give the class "
                "more clips (of more than one group), or divide the manifest differently"
            )
        if len(seen) < 2:
            raise TrainError(f"all training clips are {listed(seen)}; two classes are needed")
    return result


def _take_validation(clips: Sequence[Clip], config: Config) -> tuple[list[str], list[str]]:
    if len({clip.group or clip.id for clip in clips}) < 2:
        raise TrainError(
            f"too few clips to train and to choose the epoch: {len(clips)} beside the held-out "
            "ones, of one recording, where two recordings are needed (a clip without a group "
            "counts as one); give more clips, or finer groups"
        )
    divided = assign_split(clips, test=config.validation, val=0, seed=config.seed)
    train = [clip.id for clip in divided if clip.split == "train"]
    return train, [clip.id for clip in divided if clip.split == "test"]
