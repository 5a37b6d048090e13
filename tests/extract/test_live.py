"""A live stream gives the rows that its frames and sounds have offline, and tells of every gap."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from cameras import Camera, Chunks, transport_stream, whole
from compare import cosine

from extract import ClipError, Extractor, Gap, Snippet, live_snippets, make_recipe, receiver
from extract.audio import AudioBackbone
from extract.decode import read_sound_track
from extract.live import SOUND_SECONDS
from extract.synthetic import make_clip
from features import Recipe


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "GROWN_SECONDS", 1.0)


@pytest.fixture(scope="module")
def fight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "fight.mp4", "Brawling", 5, seconds=3.0)


@pytest.fixture(scope="module")
def with_flow(sound_model: str) -> Recipe:
    return make_recipe("mobilevit_xxs", sound_model, weights="random", further=["flow"])


def in_a_row(events: Sequence[Snippet | Gap]) -> tuple[list[Snippet], list[Gap]]:
    """Check that snippets and gaps follow each other without a hole, and return them."""
    over = [event for event in events if event.end is not None]
    clock = 0.0
    for event in over:
        assert event.start == pytest.approx(clock)
        clock = event.end
    snippets = [event for event in over if isinstance(event, Snippet)]
    assert all(s.end - s.start == pytest.approx(0.25) for s in snippets)
    return snippets, [event for event in over if isinstance(event, Gap)]


def until_given_up(source: Iterator[Snippet | Gap]) -> tuple[list[Snippet | Gap], str]:
    """Return what comes of a source until it cannot be opened again, and the error."""
    events: list[Snippet | Gap] = []
    try:
        events.extend(source)
    except ClipError as error:
        return events, str(error)
    pytest.fail("it came to an end")


def test_rows_are_those_of_the_file(fight: Path, with_flow: Recipe, sound_model: str) -> None:
    snippets, gaps = in_a_row(list(live_snippets(str(fight), with_flow, "cpu")))
    offline = Extractor(with_flow, "cpu")(fight)
    assert not gaps
    assert len(snippets) == len(offline.streams["video"])
    for stream in ("video", "flow"):
        rows = np.stack([snippet.rows[stream] for snippet in snippets])
        assert [snippet.valid[stream] for snippet in snippets] == offline.valid[stream].tolist()
        assert cosine(rows, offline.streams[stream]) > 0.9999
    # sound: what the network says of the seconds that end with the snippet
    source = {"name": sound_model, "weights": "random"}
    network, track = AudioBackbone(source, torch.device("cpu"), "fp32"), read_sound_track(fight)
    for number, snippet in enumerate(snippets[:-1]):
        stop = 4000 * (number + 1)
        window = track[max(0, stop - round(SOUND_SECONDS * 16_000)) : stop]
        outputs = network(window)
        centres = 320 * np.arange(len(outputs)) + 200
        expected = outputs[centres >= len(window) - 4000].mean(0)
        assert cosine(snippet.rows["audio"], expected) > 0.99
        assert snippet.valid["audio"]


def test_no_sound_is_not_silence(recipe: Recipe, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "mute.mp4", "Normal", 1, seconds=1.0, sound=False)
    snippets, _ = in_a_row(list(live_snippets(str(clip), recipe, "cpu")))
    assert [snippet.valid for snippet in snippets] == [{"video": True, "audio": False}] * 4
    assert not any(snippet.rows["audio"].any() for snippet in snippets)


def test_only_what_the_model_reads(fight: Path, recipe: Recipe, tmp_path: Path) -> None:
    snippets, _ = in_a_row(list(live_snippets(str(fight), recipe.only(["video"]), "cpu")))
    assert {stream for snippet in snippets for stream in snippet.rows} == {"video"}
    snippets, _ = in_a_row(list(live_snippets(str(fight), recipe.only(["audio"]), "cpu")))
    assert [snippet.valid for snippet in snippets] == [{"audio": True}] * 12
    mute = make_clip(tmp_path / "mute.mp4", "Normal", 1, seconds=1.0, sound=False)
    (gap,) = live_snippets(str(mute), recipe.only(["audio"]), "cpu")
    assert (gap.start, gap.end) == (0.0, None)


def test_a_camera_that_is_cut_and_comes_back(fight: Path, recipe: Recipe) -> None:
    show = transport_stream(fight)
    camera = Camera([parts(show, -1, 2), None, show])
    events, why = until_given_up(live_snippets(camera.url, recipe, "cpu", retries=2))
    camera.close()
    assert why.startswith(f"{camera.url} is given up after 2 retries: Server returned 5XX")
    snippets, (gap,) = in_a_row(events)
    assert 6 <= sum(snippet.end <= gap.start for snippet in snippets) <= 8
    assert gap.end is not None
    assert gap.end - gap.start > 1.5  # it waited 0.5 s, was refused, and waited 1 s
    after = [snippet for snippet in snippets if snippet.start >= gap.end]
    assert len(after) == 12
    assert np.array_equal(after[0].rows["video"], snippets[0].rows["video"])
    assert isinstance(events[-1], Gap)  # it has begun
    assert events[-1].end is None


def parts(show: Chunks, start: float, stop: float) -> Chunks:
    return [chunk for chunk in show if start <= chunk[0] < stop]


def test_a_lost_stretch_is_a_gap(recipe: Recipe, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "long.mp4", "Intruder", 3, seconds=6.0)
    show = transport_stream(clip)
    file = tmp_path / "holed.ts"
    file.write_bytes(whole(parts(show, -1, 1)) + whole(parts(show, 5, 7)))
    _, (gap,) = in_a_row(list(live_snippets(str(file), recipe, "cpu")))
    assert gap.why == "there was neither picture nor sound"
    # the last frame before the hole may be the one to be seen for two seconds
    assert gap.start == pytest.approx(3.0, abs=0.5)
    assert gap.end == pytest.approx(5.0, abs=0.5)


def test_a_clock_that_jumps_is_a_break(fight: Path, recipe: Recipe, tmp_path: Path) -> None:
    show = whole(transport_stream(fight))
    (tmp_path / "twice.ts").write_bytes(show + show)
    snippets, (gap,) = in_a_row(list(live_snippets(str(tmp_path / "twice.ts"), recipe, "cpu")))
    assert gap.why == "the stream's clock jumped"
    assert gap.start == pytest.approx(3.0)
    assert len(snippets) == 24
    again = [snippet.rows["video"] for snippet in snippets]
    assert cosine(np.stack(again[:12]), np.stack(again[12:])) > 0.9999


@pytest.mark.parametrize("paced", [True, False])
def test_what_is_too_late_is_passed_over(
    fight: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, paced: bool
) -> None:
    monkeypatch.setattr(receiver, "MOST_LATE", 1.0)
    camera = Camera([transport_stream(fight)], paced=paced)
    events = live_snippets(camera.url, recipe, "cpu", retries=0)
    first = next(events)
    camera.sent.wait()
    time.sleep(1)  # what was sent is received, and nobody has asked for it
    rest, _ = until_given_up(events)
    camera.close()
    snippets, gaps = in_a_row([first, *rest])
    assert gaps
    assert all(gap.why.startswith("too slow") for gap in gaps)
    assert len(snippets) < 12


def test_a_file_waits_for_the_networks(
    fight: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "MOST_LATE", 0.5)
    snippets, gaps = in_a_row(list(live_snippets(str(fight), recipe, "cpu")))
    assert (len(snippets), gaps) == (12, [])


def test_a_source_without_a_picture(recipe: Recipe, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "only.wav"), "w") as sink:
        stream = sink.add_stream("pcm_s16le", rate=16_000, layout="mono")
        noise = np.random.default_rng(0).integers(-999, 999, (1, 16_000), np.int16)
        frame = av.AudioFrame.from_ndarray(noise, "s16", "mono")
        frame.rate = 16_000
        sink.mux([*stream.encode(frame), *stream.encode(None)])
    for source, why in (
        (tmp_path / "only.wav", "there is no picture in it"),
        (tmp_path / "nowhere.ts", "No such file"),
        ("http://127.0.0.1:1/live", "Connection refused"),
    ):
        with pytest.raises(ClipError, match=f"{source} cannot be watched: {why}"):
            list(live_snippets(str(source), recipe, "cpu"))
