"""Sound is where ffmpeg puts it: with holes, late, drifting, broken, or changing on its way."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import soundfile
from films import (
    CODECS,
    HOLE,
    INSTANTS,
    LATE,
    RATE,
    SECONDS,
    SOUND_RATE,
    clicks,
    ffmpeg,
    film,
    frame_times,
    heard_by_ffmpeg,
    holed,
    peaks,
    remade,
    seen_by_ffmpeg,
)
from numpy.typing import NDArray

from extract import Extractor, Gap, live_snippets, make_recipe
from extract.decoding.child import read_clip
from extract.decoding.container import probe
from extract.decoding.frames import frames
from extract.decoding.messages import End, Files, Request, Sound
from extract.decoding.sound_placement import SoundPlacement
from extract.decoding.sound_track import SoundTrack
from extract.live import stream_receiver as receiver
from features import Flag, Recipe

NEAR = 5e-3  # seconds by which a click may be away from where ffmpeg puts it
# what a container cannot say, so that ffmpeg does not know it either
CANNOT_SAY = {
    ("avi", "hole"): "AVI counts packets and has no time stamps",
    ("avi", "late"): "AVI counts packets and has no time stamps",
    ("pcm.mov", "hole"): "QuickTime has no times for single samples of PCM",
}


class Heard(NamedTuple):
    """What is read of a clip's sound."""

    sound: NDArray[np.float32]  # at 16 kHz from the first frame on, zeros where there is none
    runs: list[tuple[float, float]]  # seconds
    damaged: bool
    flags: frozenset[str]


def heard(path: Path, seconds: float = SECONDS + 1) -> Heard:
    sound, runs = np.zeros(round(seconds * RATE), np.float32), []
    last = -1
    for message in read_clip(Request(Files(path), 0.25, {})):
        if isinstance(message, Sound):
            first, end = message.first, message.first + len(message.samples)
            sound[first:end] = message.samples
            begins = runs.pop()[0] if first == last else first / RATE
            runs.append((begins, end / RATE))
            last = end
        if isinstance(message, End):
            return Heard(sound, runs, message.sound_damaged, message.flags)
    pytest.fail("there was no end")


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Make a film of a kind in a container; each is made once."""
    folder = tmp_path_factory.mktemp("films")

    def make(name: str, kind: str) -> Path:
        path = folder / f"{kind}-{name}" if "." in name else folder / f"{kind}.{name}"
        codecs = ("libx264", "pcm_s16le") if name == "pcm.mov" else None
        if not path.exists():
            if kind == "hole":
                holed(make(name, "whole"), path)
            else:
                film(path, late=LATE if kind == "late" else 0.0, codecs=codecs)
        return path

    return make


KINDS = [(name, kind) for name in [*CODECS, "pcm.mov"] for kind in ("whole", "hole", "late")]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_click_and_a_flash_are_where_ffmpeg_puts_them(
    make: Callable[[str, str], Path], name: str, kind: str
) -> None:
    path = make(name, kind)
    times, flash = seen_by_ffmpeg(path)
    origin, theirs = times[0], heard_by_ffmpeg(path)
    media, found = probe(path), heard(path)
    pictures = frames(path, media, np.arange(len(media.frame_times)))
    flashes = media.frame_times[[picture.mean() > 128 for picture in pictures]]
    assert flashes == pytest.approx(times[flash] - origin, abs=2e-3)
    assert len(flashes) == len(INSTANTS)

    expected = np.array(peaks(theirs, [origin + instant for instant in INSTANTS])) - origin
    clicks = np.array(peaks(found.sound, list(INSTANTS)))
    assert clicks == pytest.approx(expected, abs=NEAR, nan_ok=True)
    valid = [not (kind == "late" and instant < LATE) for instant in INSTANTS]
    if (name, kind) in CANNOT_SAY:
        assert np.isnan(expected[valid]).any()  # once it can say so, it is no exception
        return
    assert np.isfinite(expected).tolist() == valid
    # encoders' delays that AVI and old demultiplexers do not know of are some 25 ms
    assert np.abs(clicks - INSTANTS)[valid].max() < 0.03
    assert not found.damaged
    assert ("SOUND_GAP" in found.flags) == (kind == "hole")
    begins, ends = found.runs[0][0], found.runs[-1][1]
    assert len(found.runs) == (2 if kind == "hole" else 1)
    if kind == "hole":
        assert (found.runs[0][1], found.runs[1][0]) == pytest.approx(HOLE, abs=0.1)
    assert begins == pytest.approx(LATE if kind == "late" else 0.0, abs=0.05)
    assert ends == pytest.approx(SECONDS, abs=0.1)


def drifting(by: float) -> Callable[[Any], Any]:
    def change(packet: Any) -> Any:
        packet.pts, packet.dts = round(packet.pts * by), round(packet.dts * by)
        return packet

    return change


def trembling(packet: Any, draw: random.Random) -> Any:
    """Move a packet, not the order of packets, as a recorder does that stamps what arrives."""
    by = round(draw.uniform(0, 0.012) / packet.time_base)
    packet.pts, packet.dts = packet.pts + by, packet.dts + by
    return packet


def breaking(*numbers: int, lose: bool = False) -> Callable[[Any], Any]:
    """Return a change that makes noise of packets, or leaves them out."""
    count = 0
    draw = random.Random(1)

    def change(packet: Any) -> Any:
        nonlocal count
        count += 1
        if count not in numbers:
            return packet
        noise: Any = av.Packet(draw.randbytes(packet.size))
        noise.pts, noise.dts, noise.duration = packet.pts, packet.dts, packet.duration
        noise.time_base = packet.time_base
        return None if lose else noise

    return change


@pytest.mark.parametrize("by", [0.998, 0.9999, 1.001, 1.003])
@pytest.mark.parametrize("name", ["mp4", "mkv", "flv"])
def test_drift_is_put_right(
    make: Callable[[str, str], Path], tmp_path: Path, name: str, by: float
) -> None:
    whole = make(name, "whole")
    path = remade(whole, tmp_path / f"a.{name}", drifting(by))
    origin, was = frame_times(path)[0], frame_times(whole)[0]
    before = np.array(peaks(heard_by_ffmpeg(whole), list(INSTANTS)))  # of the container's clock
    expected = before * by - origin
    found = heard(path)
    assert peaks(found.sound, list(expected)) == pytest.approx(expected, abs=NEAR)
    assert len(found.runs) == 1
    assert not found.flags
    assert was == origin
    # ffmpeg, when it is told to correct drift, agrees
    theirs = peaks(heard_by_ffmpeg(path, how="async=1000"), list(expected + origin))
    assert np.array(theirs) - origin == pytest.approx(expected, abs=NEAR)


def test_stamps_that_tremble_are_no_gaps(make: Callable[[str, str], Path], tmp_path: Path) -> None:
    draw = random.Random(0)
    path = remade(make("mkv", "whole"), tmp_path / "a.mkv", lambda p: trembling(p, draw))
    path = remade(make("mp4", "whole"), tmp_path / "a.mp4", lambda p: trembling(p, draw))
    found = heard(path)
    assert len(found.runs) == 1
    assert not found.flags
    assert peaks(found.sound, list(INSTANTS)) == pytest.approx(np.add(INSTANTS, 0.006), abs=0.012)


# which of their packets; those of some codecs are longer than others'
NUMBERS = {"mp4": 100, "webm": 100, "ts": 100, "flv": 100, "mkv": 40, "wmv": 40}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_lost_packet_moves_nothing(
    make: Callable[[str, str], Path], tmp_path: Path, name: str
) -> None:
    whole = make(name, "whole")
    path = remade(whole, tmp_path / f"a.{name}", breaking(NUMBERS[name], lose=True))
    found, before = heard(path), heard(whole)
    assert peaks(found.sound, list(INSTANTS)) == pytest.approx(
        peaks(before.sound, list(INSTANTS)), abs=NEAR + 1e-3
    )
    assert found.flags == {"SOUND_GAP"}
    assert not found.damaged
    (_, ends), (begins, _) = found.runs
    assert 0.01 < begins - ends < 0.1


@pytest.mark.parametrize("name", ["mp4", "mkv", "ts", "flv", "avi"])
def test_a_broken_packet_is_passed_over(
    make: Callable[[str, str], Path], tmp_path: Path, name: str
) -> None:
    whole = make(name, "whole")
    number = NUMBERS.get(name, 100)
    path = remade(whole, tmp_path / f"a.{name}", breaking(number, number + 7))
    found, before = heard(path), heard(whole)
    assert found.damaged
    assert not found.flags  # what is missing could not be decoded
    assert found.runs[-1][1] == pytest.approx(before.runs[-1][1], abs=0.01)
    assert sum(ends - begins for begins, ends in found.runs) > 7.5
    assert peaks(found.sound, list(INSTANTS)) == pytest.approx(
        peaks(before.sound, list(INSTANTS)), abs=NEAR
    )


def test_all_packets_are_broken(make: Callable[[str, str], Path], tmp_path: Path) -> None:
    path = remade(make("mp4", "whole"), tmp_path / "a.mp4", breaking(*range(10_000)))
    found = heard(path)
    assert found.damaged
    assert not found.sound.any()


@pytest.mark.parametrize("codec", ["mp2", "aac"])
def test_rate_and_channels_change_on_the_way(tmp_path: Path, codec: str) -> None:
    """A broadcast: 44.1 kHz stereo, and from 3 s on 48 kHz mono."""
    parts, instants = [], []
    for number, (rate, channels) in enumerate(((44_100, 2), (48_000, 1))):
        part = tmp_path / f"{number}.ts"
        cut = clicks()[3 * SOUND_RATE * number : 3 * SOUND_RATE * (number + 1)]
        cut.tofile(tmp_path / "cut.f32")
        ffmpeg(
            *("-f", "lavfi", "-i", "color=gray:s=64x64:r=25:d=3"),
            *("-f", "f32le", "-ar", SOUND_RATE, "-ac", 1, "-i", tmp_path / "cut.f32"),
            *("-c:v", "mpeg2video", "-c:a", codec, "-ar", rate, "-ac", channels),
            *("-output_ts_offset", 3 * number, part),
        )
        parts.append(part.read_bytes())
        begins = 1.4 + 3 * number  # seconds, where ffmpeg has TS begin
        near = [begins + i - 3 * number for i in INSTANTS if 3 * number < i < 3 * number + 3]
        instants += peaks(heard_by_ffmpeg(part), near)
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(parts))
    found = heard(path)
    expected = np.array(instants) - frame_times(path)[0]
    assert len(expected) == 5
    assert peaks(found.sound, list(expected)) == pytest.approx(expected, abs=NEAR)
    assert found.runs[-1][1] == pytest.approx(6.0, abs=0.1)
    assert not found.damaged


@pytest.mark.parametrize("default", [0, 1])
def test_of_two_tracks_the_default_is_read(tmp_path: Path, default: int) -> None:
    first = film(tmp_path / "first.mkv", codecs=("mpeg4", "flac"))
    path = tmp_path / "two.mkv"
    ffmpeg(
        *("-i", first, "-itsoffset", 2, "-f", "lavfi", "-i", "sine=440:d=6:r=48000"),
        *("-map", "0:v", "-map", "0:a", "-map", "1:a", "-c:v", "copy", "-c:a", "flac"),
        *(f"-disposition:a:{default}", "default", f"-disposition:a:{1 - default}", "0", path),
    )
    found, theirs = heard(path), heard_by_ffmpeg(path, default)
    assert found.runs[0][0] == pytest.approx(2.0 * default, abs=1e-3)
    assert (
        np.abs(found.sound[: 7 * RATE] - theirs[: 7 * RATE]).max() < 5e-3
    )  # but for where it begins, the same


def test_wma_begins_where_its_first_sample_is(tmp_path: Path) -> None:
    """Its first packet gives no sound: what was said to be second 0 is 0.04 s later."""
    path = film(tmp_path / "a.wmv")
    first = next(f for f in av.open(str(path)).decode(audio=0))
    found = heard(path)
    assert found.runs[0][0] == pytest.approx(first.time - frame_times(path)[0], abs=1e-3)
    assert found.runs[0][0] > 0.02


def test_true_hd_is_read(tmp_path: Path) -> None:
    tone, path = tmp_path / "tone.wav", tmp_path / "a.mkv"
    soundfile.write(tone, clicks(), SOUND_RATE)
    ffmpeg(
        *("-f", "lavfi", "-i", "color=gray:s=64x64:r=25:d=8", "-i", tone),
        *("-c:v", "mpeg4", "-c:a", "truehd", "-strict", -2, path),
    )
    found = heard(path)
    assert not found.damaged
    assert not found.flags
    assert peaks(found.sound, list(INSTANTS)) == pytest.approx(INSTANTS, abs=NEAR)


@pytest.mark.parametrize("name", CODECS)
def test_a_track_without_packets_is_no_sound(
    make: Callable[[str, str], Path], tmp_path: Path, name: str
) -> None:
    path = remade(make(name, "whole"), tmp_path / f"a.{name}", lambda packet: None)
    found = heard(path)
    assert not found.damaged
    assert not found.flags
    assert found.runs == []
    assert not probe(path).has_sound


def test_a_track_that_begins_after_what_is_probed(tmp_path: Path) -> None:
    """FFmpeg opens a file without knowing when such a track begins."""
    path, tone = tmp_path / "a.mkv", tmp_path / "tone.wav"
    soundfile.write(tone, clicks()[: 2 * SOUND_RATE], SOUND_RATE)
    ffmpeg(
        *("-f", "lavfi", "-i", "color=gray:s=64x64:r=5:d=32", "-itsoffset", 30, "-i", tone),
        *("-c:v", "mpeg4", "-c:a", "flac", path),
    )
    found = heard(path, 33)
    assert found.runs == [pytest.approx((30.0, 32.0), abs=0.01)]
    assert probe(path).has_sound
    assert peaks(found.sound, [30.6]) == pytest.approx([30.6], abs=NEAR)


@pytest.mark.parametrize("fault", ["none", "broken", "no length"])
@pytest.mark.parametrize("suffix", ["flac", "ogg"])
def test_a_sound_file_beside_is_read_as_far_as_it_is_whole(
    tmp_path: Path, suffix: str, fault: str
) -> None:
    ffmpeg(
        *("-f", "lavfi", "-i", f"color=gray:s=64x64:r=25:d={SECONDS}"),
        *("-c:v", "mpeg4", tmp_path / "a.mp4"),
    )
    beside = tmp_path / f"a.{suffix.upper()}"
    soundfile.write(tmp_path / f"b.{suffix}", clicks(), SOUND_RATE)
    if fault == "no length":  # it comes through a pipe
        piped = ffmpeg("-i", tmp_path / f"b.{suffix}", "-c:a", "copy", "-f", suffix, "-")
        beside.write_bytes(piped)
    else:
        content = bytearray((tmp_path / f"b.{suffix}").read_bytes())
        if fault == "broken":
            at = len(content) * 45 // 100
            content[at : at + 200] = random.Random(1).randbytes(200)
        beside.write_bytes(content)
    found = heard(tmp_path / "a.mp4")
    near = [instant for instant in INSTANTS if fault != "broken" or not 2 < instant < 5]
    assert peaks(found.sound, near) == pytest.approx(near, abs=NEAR)
    assert (found.damaged or "SOUND_GAP" in found.flags) == (fault == "broken")


@pytest.mark.parametrize("codec", ["pcm_f32le", "pcm_s16le"])
def test_what_needs_no_resampling_stays_the_same(tmp_path: Path, codec: str) -> None:
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE).astype(np.float32)
    soundfile.write(tmp_path / "tone.wav", sound, RATE, "FLOAT")
    path = tmp_path / "a.mkv"
    ffmpeg(
        *("-f", "lavfi", "-i", "color=gray:s=64x64:r=25:d=2", "-i", tmp_path / "tone.wav"),
        *("-c:v", "mpeg4", "-c:a", codec, path),
    )
    found = heard(path, 2).sound
    assert np.abs(found - sound).max() <= (0 if codec == "pcm_f32le" else 2**-15)


def test_healthy_sound_is_what_pyav_resamples_it_to(
    make: Callable[[str, str], Path], clips: Path, shared: Path
) -> None:
    """Bit by bit: the features of stores made before, when samples were counted, stay the same."""
    fights = sorted((shared / "surv-fight").rglob("*.mp4"))[::40]
    media = [shared / "media" / name for name in ("nasa_13013.mp4", "video_90.mov")]
    for path in [clips / "Explosion" / "0.mp4", *map(make, CODECS, ["whole"] * 8), *fights, *media]:
        resampler = av.AudioResampler("flt", "mono", RATE)
        with av.open(str(path)) as container:
            if not container.streams.audio:
                continue
            decoded = chain(container.decode(audio=0), [None])
            parts = [p.to_ndarray()[0] for frame in decoded for p in resampler.resample(frame)]
        pieces = list(SoundTrack(str(path)))
        assert np.array_equal(np.concatenate([p.samples for p in pieces]), np.concatenate(parts))
        assert len({piece.begins for piece in pieces}) == 1, path


def frames_of_sound(*parts: tuple[float, float]) -> list[tuple[av.AudioFrame, float]]:
    """Return frames of 20 ms and their stamps, for stretches from one second to another."""
    made = []
    for start, stop in parts:
        for number in range(round((stop - start) / 0.02)):
            at = start + 0.02 * number
            ramp = (at + np.arange(320) / RATE)[None].astype(np.float32)  # each sample is its time
            frame = av.AudioFrame.from_ndarray(ramp, "flt", "mono")
            frame.sample_rate = RATE
            made.append((frame, at))
    return made


@pytest.mark.parametrize("block", [0, RATE])
@pytest.mark.parametrize(
    ("parts", "runs"),
    [
        ([(0, 2)], [(0, 2)]),
        ([(5, 6), (6.02, 7)], [(5, 6), (6.02, 7)]),  # one frame is lost
        ([(0, 1), (1.02, 1.04), (1.06, 2)], [(0, 1), (1.02, 1.04), (1.06, 2)]),
        ([(0, 1), (61, 62)], [(0, 1), (61, 62)]),
        ([(0, 2), (1.5, 3)], [(0, 3)]),  # half a second comes twice
        ([(0, 2), (1.5, 1.8), (2.5, 3)], [(0, 2), (2.5, 3)]),
    ],
)
def test_runs_begin_and_end_where_the_stamps_say(
    parts: list[tuple[float, float]], runs: list[tuple[float, float]], block: int
) -> None:
    placing = SoundPlacement(block)
    pieces = []
    for frame, at in frames_of_sound(*parts):
        pieces += placing.take(frame, at)
    pieces += placing.finish()
    found: dict[float, list[NDArray[np.float32]]] = {}
    for piece in pieces:
        assert piece.offset == sum(map(len, found.setdefault(piece.begins, [])))
        found[piece.begins].append(piece.samples)
    sounds = {begins: np.concatenate(blocks) for begins, blocks in found.items()}
    assert [(b, b + len(sound) / RATE) for b, sound in sounds.items()] == [
        pytest.approx(run) for run in runs
    ]
    for begins, sound in sounds.items():
        assert sound == pytest.approx(begins + np.arange(len(sound)) / RATE, abs=1e-4)


@pytest.mark.parametrize("by", [0.003, 0.015, 0.04])
def test_stamps_that_tremble_make_one_run(by: float) -> None:
    """Those of arrival do: a packet comes late by more than it is long, and nothing is lost."""
    draw = np.random.default_rng(1)
    placing = SoundPlacement()
    pieces = []
    for frame, at in frames_of_sound((-5, 5), (5, 15)):
        pieces += placing.take(frame, at + draw.uniform(0, by))
    pieces += placing.finish()
    assert len({piece.begins for piece in pieces}) == 1
    sound = np.concatenate([piece.samples for piece in pieces])
    clock = np.arange(len(sound)) / RATE + pieces[0].begins  # each sample is its time
    assert np.abs(sound - clock + by / 2).max() < 6e-3 + by / 2


@pytest.fixture(scope="module")
def live(sound_model: str) -> Recipe:
    return make_recipe(audio_model=sound_model, weights="random", live=True, only=["audio"])


@pytest.mark.parametrize(
    ("name", "kind"), [*KINDS, ("mp4", "drift"), ("mkv", "broken"), ("ts", "broken")]
)
def test_a_stream_of_it_hears_the_same(
    make: Callable[[str, str], Path],
    live: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: str,
) -> None:
    monkeypatch.setattr(receiver, "GROWN_SECONDS", 0.5)
    changes = {"drift": drifting(1.002), "broken": breaking(40, 60, 61)}
    if kind in changes:
        path = remade(make(name, "whole"), tmp_path / f"a.{name}", changes[kind])
    else:
        path = make(name, kind)
    if (name, kind) in CANNOT_SAY:
        pytest.skip("its sound is more than a second away from its picture, too much for a stream")
    os.utime(path, (1e9, 1e9))  # it does not grow any more
    offline = Extractor(live, "cpu")(path)
    snippets = {}
    for event in live_snippets(str(path), live, "cpu"):
        if not isinstance(event, Gap):
            snippets[round(event.start / 0.25)] = event
    assert max(snippets) >= 31
    for number in range(32):
        row, valid = offline.audio[number], offline.audio_valid[number]
        if (name, kind, number) == ("ts", "hole", 11):
            continue  # FFmpeg keeps the last packet until the next one comes, which is too late
        assert (number in snippets) == valid  # nothing to hear, and nobody looks: that is a gap
        if valid:
            assert np.allclose(snippets[number].rows["audio"], row, rtol=2e-3, atol=2e-3)


def test_a_gap_has_no_features(
    make: Callable[[str, str], Path], sound_model: str, live: Recipe
) -> None:
    usual = make_recipe(audio_model=sound_model, weights="random", only=["audio"])
    for recipe in (usual, live):
        whole = Extractor(recipe, "cpu")(make("mkv", "whole"))
        found = Extractor(recipe, "cpu")(make("mkv", "hole"))
        assert whole.audio_valid.all()
        assert whole.flags == Flag.NONE
        # the packets of 96 ms in it are from 2.88 to 4.224 s
        missing = [12 <= number < 16 for number in range(len(found))]
        assert found.audio_valid.tolist() == [not gone for gone in missing]
        assert not found.audio[missing].any()
        assert found.flags == Flag.SOUND_GAP
