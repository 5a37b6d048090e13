"""Lists of names, of which some have commas or quotation marks of their own."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from manifests import Clip, ManifestError, listed, names_in, normal_label
from train import Config, TrainError
from train.splits import make_splits

PRINTED = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@given(st.lists(PRINTED, min_size=1))
@example(["Fire, smoke", "Crash"])
@example(['"a"', " b", 'c"', "d,"])
def test_a_list_is_read_as_it_was_written(names: list[str]) -> None:
    assert names_in(listed(names)) == names


def test_what_is_written_by_hand_is_read() -> None:
    assert names_in("video,audio") == names_in("video, audio") == ["video", "audio"]
    assert names_in('Crash, "Fire, smoke"') == ["Crash", "Fire, smoke"]
    with pytest.raises(ManifestError, match="write commas between them"):
        names_in('"Crash')


def test_messages_tell_classes_with_commas_apart() -> None:
    known = ["Crash", "Fire, smoke", "Theft"]
    expected = 'there are Crash, "Fire, smoke", Theft'
    with pytest.raises(ManifestError, match=expected):
        normal_label(known, "Calm")
    clips = [
        Clip(f"{label}-{side}-{n}", "x.mp4", (label,), split=side)
        for label in known
        for side in ("train", "val", "test")
        for n in range(3)
        if not (side == "train" and label != "Crash")
    ]
    with pytest.raises(TrainError, match='no training clip of "Fire, smoke", Theft, but'):
        make_splits(clips, Config())
