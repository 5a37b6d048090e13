"""Splits and folds: stratified by class, never dividing a group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from manifests.clip import Clip, ManifestError


def assign_split(
    clips: Sequence[Clip],
    test: float = 0.2,
    val: float = 0.1,
    seed: int = 0,
    *,
    keep: bool = False,
) -> list[Clip]:
    """Return the clips with ``train``, ``val`` or ``test`` as their split.

    Args:
        clips: any clips; those without a group are a group of their own.
        test, val: the fractions of clips; 0 leaves a side out.
        seed: another seed gives another split.
        keep: clips that have a side keep it, and others of their group join them.

    Raises:
        ManifestError: the fractions leave nothing, or there are too few groups to fill each side;
            or sides cannot be kept.

    >>> clips = [Clip(str(number), f"{number}.mp4", ("Normal",)) for number in range(10)]
    >>> split_table(assign_split(clips, test=0.3, val=0))
    {'Normal': {'train': 7, 'test': 3}}
    """
    if not (test >= 0 and val >= 0 and 0 < test + val < 1):
        raise ManifestError(
            f"test {test} and val {val}: expected fractions with a sum between 0 and 1"
        )
    fractions = {"train": 1 - test - val, "val": val, "test": test}
    return _assign(clips, {name: part for name, part in fractions.items() if part > 0}, seed, keep)


def assign_folds(
    clips: Sequence[Clip], folds: int, seed: int = 0, *, keep: bool = False
) -> list[Clip]:
    """Return the clips with ``fold-0`` ... as their split.

    Args:
        clips: any clips; those without a group are a group of their own.
        folds: how many.
        seed: another seed gives other folds.
        keep: clips that have a fold keep it, and others of their group join them.

    Raises:
        ManifestError: fewer than two folds, or more folds than groups; or folds cannot be kept.
    """
    if folds < 2:
        raise ManifestError(f"{folds} folds: expected two or more")
    return _assign(clips, {f"fold-{number}": 1 / folds for number in range(folds)}, seed, keep)


def split_table(clips: Sequence[Clip]) -> dict[str, dict[str, int]]:
    """Return class -> split -> number of clips; a clip of several classes counts in each."""
    table: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for clip in clips:
        for label in clip.labels:
            table[label][clip.split or "none"] += 1
    return {label: dict(row) for label, row in sorted(table.items())}


def _assign(
    clips: Sequence[Clip], fractions: dict[str, float], seed: int, keep: bool
) -> list[Clip]:
    """Put each group where it brings the counts nearest to the fractions, largest groups first.

    The greedy rule of scikit-learn's StratifiedGroupKFold, for sides of unequal size.
    """
    labels = sorted({label for clip in clips for label in clip.labels})
    column = {label: number for number, label in enumerate(labels)}
    groups: dict[str, list[int]] = defaultdict(list)
    for number, clip in enumerate(clips):
        groups[f"group {clip.group}" if clip.group else f"clip {clip.id}"].append(number)
    if len(groups) < len(fractions):
        raise ManifestError(
            f"too few groups, {len(groups)}, for {len(fractions)} sides (train and test, or "
            "folds); a group stays whole: ask for fewer sides, or give the clips finer groups"
        )
    members = list(groups.values())
    counts = np.zeros((len(members), len(labels) + 1))  # last column: clips
    for row, numbers in enumerate(members):
        for number in numbers:
            counts[row, -1] += 1
            for label in clips[number].labels:
                counts[row, column[label]] += 1
    total = counts.sum(0)
    target = np.array(list(fractions.values()))[:, None] * total
    order = np.random.default_rng(seed).permutation(len(members))
    order = order[np.argsort(-counts[order, -1], kind="stable")]
    filled = np.zeros_like(target)
    names = list(fractions)
    side_of = [clip.split if keep else None for clip in clips]
    kept = _kept_sides([[clips[number] for number in own] for own in members], names, keep)
    for row, side in kept.items():
        filled[names.index(side)] += counts[row]
        for number in members[row]:
            side_of[number] = side_of[number] or side
    order = order[[row not in kept for row in order]]
    for place, row in enumerate(order):
        # how much nearer to its target each side would come, as a fraction of each class
        gain = ((target - filled) ** 2 - (target - filled - counts[row]) ** 2) / total**2
        score = gain.sum(1) / np.array(list(fractions.values()))
        empty = filled[:, -1] == 0
        if empty.sum() >= len(order) - place:  # every side gets a group
            score[~empty] = -np.inf
        chosen = int(score.argmax())
        filled[chosen] += counts[row]
        for number in members[row]:
            side_of[number] = names[chosen]
    return [replace(clip, split=side) for clip, side in zip(clips, side_of, strict=True)]


def _kept_sides(
    members: Sequence[Sequence[Clip]], names: Sequence[str], keep: bool
) -> dict[int, str]:
    """Return the side of each group that has one already: its number -> side."""
    kept: dict[int, str] = {}
    for row, own in enumerate(members if keep else ()):
        for clip in own:
            if clip.split is not None and clip.split not in names:
                raise ManifestError(
                    f"clip {clip.id} is on the side {clip.split}, and the sides asked for are "
                    f"{', '.join(names)}; ask for those that there are, or divide all clips anew "
                    "(--no-keep)"
                )
        sides = sorted({clip.split for clip in own if clip.split})
        if len(sides) > 1 and not all(clip.split for clip in own):
            new = next(clip for clip in own if not clip.split)
            raise ManifestError(
                f"clip {new.id}: its group {new.group} is on the sides {' and '.join(sides)}; give "
                "it one of them in the manifest, or divide all clips anew (--no-keep)"
            )
        if sides:
            kept[row] = sides[0]
    return kept
