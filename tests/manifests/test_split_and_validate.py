"""Splits keep groups whole; `check` finds what is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import (
    Clip,
    Interval,
    ManifestError,
    Probed,
    assign_folds,
    assign_split,
    check,
    from_folders,
    split_table,
    with_groups,
    write,
)


def make(groups: list[tuple[int, str]]) -> list[Clip]:
    """One clip for each (group, label)."""
    return [
        Clip(f"c{n}", f"c{n}.mp4", (label,), group=f"g{group}")
        for n, (group, label) in enumerate(groups)
    ]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc")), min_size=20, max_size=80),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_no_group_is_divided_and_no_clip_lost(groups: list[tuple[int, str]], seed: int) -> None:
    clips = make(groups)
    if len({clip.group for clip in clips}) < 5:
        return
    for divided in (assign_split(clips, 0.2, 0.2, seed), assign_folds(clips, 5, seed)):
        assert [replace(clip, split=None) for clip in divided] == clips
        sides: dict[str, set[str]] = {}
        for clip in divided:
            sides.setdefault(str(clip.group), set()).add(str(clip.split))
        assert all(len(side) == 1 for side in sides.values())
        assert len({clip.split for clip in divided}) in (3, 5)
    assert assign_split(clips, 0.2, 0.2, seed) == assign_split(clips, 0.2, 0.2, seed)


def test_shares_are_met_and_stratified() -> None:
    clips = [Clip(f"{label}{n}", "x", (label,)) for label in "ab" for n in range(100)]
    table = split_table(assign_split(clips, 0.2, 0.1))
    assert table == {label: {"train": 70, "val": 10, "test": 20} for label in "ab"}
    table = split_table(assign_folds(clips, 5))
    assert table == {label: {f"fold-{k}": 20 for k in range(5)} for label in "ab"}


@given(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from("ab")), min_size=120, max_size=160),
    st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_sizes_are_near_their_shares_when_groups_are_small(
    groups: list[tuple[int, str]], seed: int
) -> None:
    clips = make([(g, label) for g, (size, label) in enumerate(groups) for _ in range(size)])
    sizes = Counter(clip.split for clip in assign_split(clips, 0.2, 0.1, seed))
    for split, share in {"train": 0.7, "val": 0.1, "test": 0.2}.items():
        assert abs(sizes[split] - share * len(clips)) <= 3  # the largest group
    sizes = Counter(clip.split for clip in assign_folds(clips, 5, seed))
    assert max(sizes.values()) - min(sizes.values()) <= 3


def test_seeds_differ() -> None:
    clips = [Clip(f"{n}", "x", ("a",)) for n in range(100)]
    assert assign_split(clips, seed=0) != assign_split(clips, seed=1)


def test_surv_fight_splits_by_recording(shared: Path, tmp_path: Path) -> None:
    folder = shared / "surv-fight"
    grouped = with_groups(from_folders(folder, tmp_path).clips, folder / "sources.csv")
    clips = assign_folds(grouped.clips, 5)
    for split, count in Counter(clip.split for clip in clips).items():
        fights = sum(clip.label == "fight" for clip in clips if clip.split == split)
        assert 40 <= count <= 55
        assert 0.35 < fights / count < 0.65


@pytest.mark.parametrize(("test", "val"), [(0.6, 0.5), (-0.1, 0.2), (0, 0), (1.0, 0.0)])
def test_fractions_out_of_range(test: float, val: float) -> None:
    with pytest.raises(ManifestError, match="expected fractions"):
        assign_split(make([(n, "a") for n in range(9)]), test, val)


def test_too_few_groups() -> None:
    with pytest.raises(ManifestError, match="too few groups, 2, for 3 sides"):
        assign_split(make([(n % 2, "a") for n in range(9)]))
    with pytest.raises(ManifestError, match="two or more"):
        assign_folds(make([(n, "a") for n in range(9)]), 1)


def findings(tmp_path: Path, clips: list[Clip], **options: object) -> dict[str, tuple[str, int]]:
    write(tmp_path / "m.jsonl", clips)
    found = check(tmp_path / "m.jsonl", tmp_path, **options)  # type: ignore[arg-type]
    assert all(finding.problem and finding.way_out for finding in found)
    return {finding.kind: (finding.severity, finding.line) for finding in found}


def test_check_is_quiet_when_all_is_well(tmp_path: Path) -> None:
    clips = [Clip(name, f"{name}.mp4", ("x",), (), "train", name) for name in "ab"]
    for clip in clips:
        clip.resolve(tmp_path).write_text(clip.id)
    assert findings(tmp_path, clips, probe=lambda *_: Probed(3.0, True)) == {}


def test_check_finds_each_fault(tmp_path: Path) -> None:
    for name, content in {"a": "same", "b": "same", "c": "other", "e": ""}.items():
        (tmp_path / f"{name}.mp4").write_text(content)
    (tmp_path / "dir.mp4").mkdir()
    clips = [
        Clip("a", "a.mp4", ("x",), split="train", group="g"),
        Clip("b", "b.mp4", ("x",), split="test", group="g"),
        Clip("c", "c.mp4", ("x",), (Interval(1, 9),), split="holdout"),
        Clip("c2", "c.mp4", ("x",), split="holdout"),
        Clip("d", "dir.mp4", ("x",)),
        Clip("e", "e.mp4", ("x",)),
        Clip("e", "e.mp4", ("x",)),
    ]
    found = findings(tmp_path, clips, probe=lambda *_: Probed(5.0, False))
    assert found["duplicate-content"] == ("error", 2)  # it leaks from train to test
    assert found["group-across-splits"] == ("warning", 2)
    assert found["interval-outside"] == ("error", 3)
    assert found["no-sound"][0] == "warning"
    assert found["unknown-split"][0] == "error"
    assert found["missing-file"] == ("error", 5)
    assert found["empty-file"][0] == "error"
    assert found["duplicate-id"] == ("error", 7)
    assert "duplicate-path" in found


@pytest.mark.parametrize(
    ("clips", "kinds"),
    [
        ([("Car crash",), ("car  crash",)], {"similar-labels": ("warning", 2)}),
        ([("Riot",), ("Riots",), ("A", "B")], {}),
        ([("Riot", "Riot")], {"duplicate-label": ("warning", 1)}),
    ],
)
def test_check_compares_labels(
    tmp_path: Path, clips: list[tuple[str, ...]], kinds: dict[str, tuple[str, int]]
) -> None:
    made = [Clip(f"c{n}", f"{n}.mp4", labels) for n, labels in enumerate(clips)]
    for clip in made:
        clip.resolve(tmp_path).write_text(clip.id)
    assert findings(tmp_path, made) == kinds


def test_check_finds_intervals_that_contradict_the_label(tmp_path: Path) -> None:
    when = (Interval(1, 2),)
    clips = [
        Clip(f"c{n}", "a.mp4", (label,), intervals)
        for n, (label, intervals) in enumerate(
            [("Riot", when), ("Riot", ()), ("Riot", None), ("Normal", when), ("Normal", ())]
        )
    ]
    write(tmp_path / "m.jsonl", clips)
    found = check(tmp_path / "m.jsonl", tmp_path)
    assert [f.line for f in found if f.kind == "label-against-intervals"] == [2, 4]


def test_check_reports_the_decoder_s_message(tmp_path: Path) -> None:
    def broken(*_: object) -> Probed:
        raise RuntimeError("no moov")

    (tmp_path / "a.mp4").write_text("a")
    assert findings(tmp_path, [Clip("a", "a.mp4", ("x",))], probe=broken) == {
        "unreadable": ("error", 1)
    }


def test_check_warns_of_files_that_are_too_short(tmp_path: Path) -> None:
    lengths = {"cut": 2.7, "listed": 2.7, "rounded": 5.4, "longer": 60.0}
    for name in lengths:
        (tmp_path / f"{name}.ts").write_text(name)

    def probe(video: Path, _: Path | None) -> Probed:
        return Probed(lengths[video.stem], True, "it ends early" if video.stem == "cut" else "")

    clips = [Clip(name, f"{name}.ts", ("x",), duration=6.0) for name in lengths]
    assert findings(tmp_path, clips, probe=probe) == {
        "cut-short": ("warning", 1),
        "shorter-than-stated": ("warning", 2),
    }


def test_check_of_missing_files(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("\n")
    (finding,) = check(tmp_path / "m.jsonl", tmp_path)
    assert (finding.severity, finding.kind) == ("error", "empty")


def test_check_reads_on_after_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('nonsense\n{"id": "a", "path": "a.mp4", "labels": ["x"]}\n')
    found = check(tmp_path / "m.jsonl", tmp_path)
    assert [(finding.line, finding.kind) for finding in found] == [
        (1, "bad-line"),
        (2, "missing-file"),
    ]


def test_check_counts_a_group_on_both_sides(tmp_path: Path) -> None:
    splits = ["train", "train", "test", "train"]
    clips = [Clip(f"{n}", f"{n}.mp4", ("x",), split=s, group="g") for n, s in enumerate(splits)]
    write(tmp_path / "m.jsonl", clips)
    found = [f for f in check(tmp_path / "m.jsonl", tmp_path) if f.kind == "group-across-splits"]
    assert [(f.severity, f.line) for f in found] == [("warning", 3)]  # once a group, not a clip
    assert "train (clips: 3), test (clips: 1)" in found[0].problem


@pytest.mark.parametrize(
    ("splits", "line"),
    [
        (["train", None], 2),
        (["fold-0", "fold-1", "test"], 3),
        ([None, "fold-0"], 2),
        (["train", "val", "test"], None),
        ([None, None], None),
        (["fold-0", "fold-11"], None),
    ],
)
def test_check_finds_mixed_splits(
    tmp_path: Path, splits: list[str | None], line: int | None
) -> None:
    clips = [Clip(f"{n}", f"{n}.mp4", ("x",), split=split) for n, split in enumerate(splits)]
    found = findings(tmp_path, clips).get("mixed-splits")
    assert found == (None if line is None else ("warning", line))


@pytest.mark.parametrize(
    ("splits", "severity"),
    [(("train", "test"), "error"), (("train", "train"), "warning"), (("train", None), "warning")],
)
def test_check_calls_a_copy_in_another_split_an_error(
    tmp_path: Path, splits: tuple[str, str | None], severity: str
) -> None:
    clips = [Clip(f"{n}", f"{n}.mp4", ("x",), split=split) for n, split in enumerate(splits)]
    for clip in clips:
        clip.resolve(tmp_path).write_text("same")
    assert findings(tmp_path, clips)["duplicate-content"] == (severity, 2)


def test_check_compares_intervals_with_the_stated_duration(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("a")
    inside = Clip("a", "a.mp4", ("x",), (Interval(1, 5),), duration=5)
    assert findings(tmp_path, [inside]) == {}
    outside = replace(inside, path="gone.mp4", duration=4)  # the file is not needed for that
    assert findings(tmp_path, [outside]).keys() == {"interval-outside", "missing-file"}


def test_check_reports_paths_that_no_file_can_have(tmp_path: Path) -> None:
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    clips = [Clip("long", "a" * 5000, ("x",)), Clip("loop", "loop.mp4", ("x",))]
    write(tmp_path / "m.jsonl", clips)
    found = check(tmp_path / "m.jsonl", tmp_path)
    assert [(f.clip, f.kind) for f in found] == [("long", "missing-file"), ("loop", "missing-file")]


def test_check_misses_a_named_sound_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("a")
    clip = Clip("a", "a.mp4", ("x",), audio="a.wav")
    assert findings(tmp_path, [clip]) == {"missing-file": ("error", 1)}
