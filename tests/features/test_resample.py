"""Rows on another time grid, compared with the definition: a sum over overlaps, in fractions."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import avarnet
from hypothesis import given, settings
from hypothesis import strategies as st

from features import (
    FeatureError,
    Features,
    Flag,
    Recipe,
    Store,
    Writer,
    import_npy,
    join,
    resampled,
)


def by_definition(
    rows: np.ndarray[Any, Any], valid: list[bool], old: Fraction, new: Fraction
) -> tuple[list[list[Fraction]], list[bool]]:
    """Return the mean of the valid rows in each new snippet, weighted by how long they last in it.

    Valid are those of which valid rows cover at least half, of what lies in the clip.
    """
    end = len(rows) * old
    means, good = [], []
    for t in range(ceil(end / new)):
        start, stop = t * new, min((t + 1) * new, end)
        weight, total = Fraction(0), [Fraction(0)] * rows.shape[1]
        for r, row in enumerate(rows):
            overlap = min(stop, (r + 1) * old) - max(start, r * old)
            if overlap > 0 and valid[r]:
                weight += overlap
                total = [
                    sum_ + overlap * Fraction(float(x)) for sum_, x in zip(total, row, strict=True)
                ]
        good.append(weight * 2 >= stop - start)
        means.append([x / weight if good[-1] else Fraction(0) for x in total])
    return means, good


def clip_of(rows: np.ndarray[Any, Any], valid: list[bool], old: Fraction) -> Features:
    return Features(
        {"x": rows},
        {"x": np.array(valid, bool)},
        float(old),
        float(len(rows) * old),
        Flag.CUT_SHORT,
        "f" * 64,
    )


LENGTHS = [Fraction(1, 4), Fraction(16, 24), Fraction(1), Fraction(96, 100), Fraction(16, 25)]


@given(
    st.lists(st.booleans(), min_size=0, max_size=30),
    st.sampled_from(LENGTHS),
    st.sampled_from(LENGTHS),
    st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_it_is_the_mean_weighted_by_overlap(
    valid: list[bool], old: Fraction, new: Fraction, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(len(valid), 3)).astype(np.float16)
    rows[~np.array(valid, bool)] = 60_000  # means nothing
    found = resampled(clip_of(rows, valid, old), float(new))
    means, good = by_definition(rows, valid, old, new)
    assert found.valid["x"].tolist() == good
    right = np.array(means, np.float64).reshape(-1, 3)
    assert found.streams["x"] == pytest.approx(right, rel=1e-3, abs=1e-6)  # float16
    assert (found.snippet_seconds, found.duration) == (float(new), float(len(rows) * old))
    assert (found.flags, found.source) == (Flag.CUT_SHORT, "f" * 64)


def test_grids_too_unlike_are_refused() -> None:
    clip = clip_of(np.ones((2, 1), np.float16), [True, True], Fraction(1))
    with pytest.raises(FeatureError, match="at most 1000 times"):
        resampled(clip, 1e-9)


def test_i3d_and_vggish_need_no_hand_work(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    video, audio = (rng.normal(size=(n, 2)).astype(np.float32) for n in (9, 6))  # 6 s of both
    for name, rows in {"i3d": video, "vggish": audio}.items():
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", rows)
    streams = {"video": f"{tmp_path}/i3d/{{clip}}.npy", "audio": f"{tmp_path}/vggish/{{clip}}.npy"}
    step = Fraction(16, 24)
    words: list[object] = ["features", "import", tmp_path / "store", "--about", "XD-Violence"]
    for name, pattern in streams.items():
        words += ["--stream", f"{name}={pattern}"]
    avarnet(*words, "--snippet-seconds", "16/24", "--resample", "audio=1")
    store = Store(tmp_path / "store")
    right, good = by_definition(audio.astype(np.float16), [True] * 6, Fraction(1), step)
    assert store["a"].audio == pytest.approx(np.array(right, np.float64), rel=1e-3, abs=1e-6)
    assert store["a"].audio_valid.tolist() == good == [True] * 9
    assert (store["a"].video == video.astype(np.float16)).all()
    assert store.recipe.streams["audio"]["resampled_from"] == 1.0
    assert "resampled_from" not in store.recipe.streams["video"]

    # the same by two stores and a join, in Python and by the command
    for name, seconds in (("video", float(step)), ("audio", 1.0)):
        import_npy(tmp_path / name, {name: streams[name]}, seconds, "XD-Violence")
    apart = Store(tmp_path / "video"), Store(tmp_path / "audio")
    with pytest.raises(FeatureError, match="avarnet features join --resample"):
        join(*apart)
    both = join(*apart, resample=True)
    assert both.recipe == store.recipe
    assert (both["a"].audio == store["a"].audio).all()
    avarnet("features", "join", *(s.path for s in apart), "-o", tmp_path / "both", "--resample")
    joined = Store(tmp_path / "both")
    assert joined.recipe.fingerprint == store.recipe.fingerprint
    assert (joined["a"].audio == store["a"].audio).all()
    assert (joined["a"].video == store["a"].video).all()
    output = avarnet("features", "join", *(s.path for s in apart), "-o", tmp_path / "both", code=1)
    assert "--resample" in output


def test_a_clip_that_cannot_be_joined_is_named_and_the_others_are_written(tmp_path: Path) -> None:
    def fill(name: str, sources: dict[str, str]) -> Path:
        with Writer(tmp_path / name, Recipe(0.25, "fp32", {name: {"features": 1}})) as writer:
            for clip_id, source in sources.items():
                rows, valid = {name: np.ones((4, 1), np.float16)}, {name: np.ones(4, bool)}
                writer.add(clip_id, Features(rows, valid, 0.25, 1.0, source=source * 64))
        return tmp_path / name

    one, other = fill("one", {"a": "1", "b": "2"}), fill("other", {"a": "3", "b": "2"})
    output = avarnet("features", "join", one, other, "-o", tmp_path / "out", code=3)
    assert "clip a: the stores read different videos" in output
    assert list(Store(tmp_path / "out")) == ["b"]
    # again: what is there is left alone
    avarnet("features", "join", one, other, "-o", tmp_path / "out", code=3)
    assert len(Store(tmp_path / "out").shards) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["audio"], "expected NAME=SECONDS"),
        (["audio=one"], "--resample one"),
        (["sound=1"], "no stream sound to resample; there are audio"),
        (["audio=-1"], "rows of -1.0 seconds"),
    ],
)
def test_mistakes(words: list[str], message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 2)))
    output = avarnet(
        *("features", "import", tmp_path / "s", "--stream", f"audio={tmp_path}/{{clip}}.npy"),
        *("--snippet-seconds", 1, "--about", "x", "--resample", *words),
        code=1 if "=" in words[0] and words[0] != "audio=one" else 2,
    )
    assert message in " ".join(output.replace("│", "").split())
