"""A live stream gives the rows that its frames and sounds have offline, and tells of every gap."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from cameras import Camera, Chunks, transport_stream, whole
from compare import cosine

from extract import ClipError, Extractor, Gap, Snippet, live_snippets, make_recipe
from extract.live import stream_receiver as receiver
from extract.synthetic import make_clip
from features import Recipe

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "GROWN_SECONDS", 1.0)


@pytest.fixture(scope="module")
def fight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "fight.mp4", "Brawling", 5, seconds=3.0)


@pytest.fixture(scope="module")
def live(sound_model: str) -> Recipe:
    return make_recipe("mobilevit_xxs", sound_model, "random", further=["flow"], live=True)


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


def shifted(clip: Path, copy: Path, seconds: float) -> Path:
    """Copy a clip whose sound then starts so much later."""
    with av.open(str(clip)) as source, av.open(str(copy), "w") as sink:
        streams = {s.index: sink.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.pts is None or packet.dts is None:
                continue
            if packet.stream.type == "audio":
                later = round(seconds / packet.time_base)
                packet.pts, packet.dts = packet.pts + later, packet.dts + later
            packet.stream = streams[packet.stream.index]
            sink.mux(packet)
    return copy


@pytest.mark.parametrize("sound", ["from the start", "late", "early", "none"])
def test_rows_are_those_of_the_store(fight: Path, live: Recipe, tmp_path: Path, sound: str) -> None:
    """What `avarnet extract --live` makes of a file, a stream of it has too."""
    clip = fight
    if sound == "none":
        clip = make_clip(tmp_path / "mute.mp4", "Normal", 1, seconds=1.0, sound=False)
    elif sound != "from the start":
        clip = shifted(fight, tmp_path / "a.mkv", 0.61 if sound == "late" else -0.33)
    events, gaps = in_a_row(list(live_snippets(str(clip), live, "cpu")))
    offline = Extractor(live, "cpu")(clip)
    snippets = events[: len(offline)]  # sound that outlasts the picture has snippets in a stream
    assert not gaps
    assert len(snippets) == len(offline)
    for stream, rows in offline.streams.items():
        found = np.stack([snippet.rows[stream] for snippet in snippets])
        assert [snippet.valid[stream] for snippet in snippets] == offline.valid[stream].tolist()
        assert np.allclose(found, rows, rtol=2e-3, atol=2e-3), stream  # float16 and batches
    first, last = {"from the start": (0, 11), "late": (2, 11), "early": (0, 10), "none": (4, 4)}[
        sound
    ]
    heard = [first <= number <= last for number in range(len(offline))]
    assert offline.valid["audio"].tolist() == heard


def test_a_run_of_whole_windows_hears_the_same(fight: Path, recipe: Recipe, live: Recipe) -> None:
    """The recipe of a store that was not made for it changes nothing of what can be heard."""
    given = [list(live_snippets(str(fight), r.only(["audio"]), "cpu")) for r in (recipe, live)]
    one, other = (np.stack([s.rows["audio"] for s in in_a_row(events)[0]]) for events in given)
    assert np.array_equal(one, other)
    assert cosine(one, Extractor(recipe, "cpu")(fight).audio) < 0.99


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


def receiving() -> list[psutil.Process]:
    return [c for c in psutil.Process().children() if "extract.live.child" in c.cmdline()]


def test_a_decoder_that_crashes_is_a_gap(fight: Path, recipe: Recipe) -> None:
    show = parts(transport_stream(fight), -1, 0.9)
    camera = Camera([[*show, (60.0, b"")], show])
    events = live_snippets(camera.url, recipe, "cpu", retries=1)
    first = [next(events) for _ in range(3)]  # FFmpeg keeps no second back to look into the stream
    (process,) = receiving()
    process.send_signal(signal.SIGSEGV)
    rest, _ = until_given_up(events)
    camera.close()
    snippets, (gap,) = in_a_row([*first, *rest])
    assert gap.why == "receiving it crashed (SIGSEGV)"
    before = [snippet for snippet in snippets if snippet.end <= gap.start]
    after = snippets[len(before) :]
    assert min(len(before), len(after)) >= 3
    assert np.array_equal(after[0].rows["video"], before[0].rows["video"])


def test_whoever_has_seen_enough_leaves_no_process(fight: Path, recipe: Recipe) -> None:
    events = live_snippets(str(fight), recipe, "cpu")
    next(events)
    assert receiving()
    events.close()  # type: ignore[attr-defined]
    assert not receiving()


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


@pytest.mark.parametrize("address", ["127.0.0.1:9/live", "127.0.0.1:9/live?token=hunter2"])
def test_the_password_of_a_camera_is_not_shown(live: Recipe, address: str) -> None:
    with pytest.raises(ClipError, match=r"rtsp://\*\*\*@127\.0\.0\.1:9/live.* cannot be") as caught:
        next(live_snippets(f"rtsp://admin:hunter2@{address}", live, "cpu"))
    assert "hunter2" not in str(caught.value)
