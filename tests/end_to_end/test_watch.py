"""`avarnet watch` as a user runs it: a camera that is cut, a pipe, a file that grows, mistakes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from cameras import Camera, Chunks, transport_stream, whole
from command import as_json, avarnet
from servers import free_port, rtsp

from extract.synthetic import make_clip

pytestmark = pytest.mark.slow

Line = dict[str, Any]


@pytest.fixture(scope="module")
def runs(clips: Path, sound_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs ``causal``, ``ahead`` (its store is not live) and ``offline``."""
    folder = tmp_path_factory.mktemp("runs")
    manifest, store = folder / "m.jsonl", folder / "store"
    avarnet("manifest", "folders", clips, "-o", manifest)
    avarnet("manifest", "split", manifest, "--test", 0.3, "--val", 0.3)
    network: list[object] = ["--weights", "random", "--video-model", "mobilevit_xxs"]
    network += ["--audio-model", sound_model, "--workers", 1]
    avarnet("extract", manifest, store, *network)
    output = avarnet("train", manifest, store, folder / "ahead", "--causal", "--epochs", 1)
    assert "not for 'avarnet watch': these features (audio) heard" in " ".join(output.split())
    avarnet("train", manifest, store, folder / "offline", "--epochs", 1)
    live = folder / "live"
    avarnet("extract", manifest, live, *network, "--live")
    assert "heard as a live stream" in avarnet("features", "info", live)
    output = avarnet(
        "train", manifest, live, folder / "causal", "--causal", "--epochs", 2, "--seeds", 2
    )
    assert "avarnet watch" not in output
    return folder


@pytest.fixture(scope="module")
def show(tmp_path_factory: pytest.TempPathFactory) -> Chunks:
    clip = tmp_path_factory.mktemp("show") / "siren.mp4"
    return transport_stream(make_clip(clip, "Police siren", 41, seconds=3.0))


def watch(
    runs: Path, source: object, *options: object, run: str = "causal", **settings: Any
) -> subprocess.Popen[str]:
    """Start the command."""
    words = [sys.executable, "-m", "avarnet", "watch", runs / run, source, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(word) for word in words], **{**pipes, **settings})


def output(process: subprocess.Popen[str], code: int = 0) -> tuple[list[Line], str]:
    """Return the lines and the messages of a command that ends."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    return [json.loads(line) for line in out.splitlines()], err


def check(lines: list[Line]) -> None:
    """Check that lines follow each other, gaps included, and are complete."""
    clock = 0.0
    for line in lines:
        assert line["start"] == pytest.approx(clock, abs=1e-3)
        clock = line["end"]
        if "gap" not in line:
            assert line["end"] - line["start"] == pytest.approx(0.25, abs=1e-3)
            assert line["score"] == max(line["probabilities"].values())
            assert line["score"] == line["probabilities"][line["label"]]
            assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-3)
            assert line["latency"] >= 0


def test_a_camera_is_cut_and_comes_back(runs: Path, show: Chunks) -> None:
    camera = Camera([[chunk for chunk in show if chunk[0] < 2], None, show])
    lines, messages = output(watch(runs, camera.url, "--retries", 2), code=1)
    camera.close()
    check(lines)
    gaps = [number for number, line in enumerate(lines) if "gap" in line]
    assert len(gaps) == 1
    gap, before, after = lines[gaps[0]], lines[: gaps[0]], lines[gaps[0] + 1 :]
    assert gap["gap"]
    assert 6 <= len(before) <= 8
    assert len(after) == 12
    assert gap["end"] - gap["start"] > 1.5  # the pauses before it was refused, and after
    # the model starts anew: the same show is scored as it was at first
    for one, other in zip(before[:6], after, strict=False):
        assert other["probabilities"] == pytest.approx(one["probabilities"], abs=1e-3)
    assert all(line["streams"] == ["video", "audio"] for line in before[:6] + after)
    assert f"gap from {gap['start']:.2f} s on" in messages
    assert "HEARS DIFFERENTLY" not in messages
    assert f"{camera.url} is given up after 2 retries" in messages


def test_rtsp_is_cut_and_comes_back(runs: Path, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "siren.mp4", "Police siren", 41, seconds=3.0)
    port = free_port()
    with ExitStack() as stack:
        with rtsp(clip, port) as url:
            process = stack.enter_context(watch(runs, url))
            assert process.stdout is not None
            before = [json.loads(process.stdout.readline()) for _ in range(4)]
        stack.enter_context(rtsp(clip, port))  # in the middle, and another one in its place
        while "gap" not in before[-1]:
            before.append(json.loads(process.stdout.readline()))
        after = [json.loads(process.stdout.readline()) for _ in range(4)]
        process.send_signal(signal.SIGINT)
        rest, messages = output(process)
    check([*before, *after, *rest])
    *before, gap = before
    assert 4 <= len(before) < 11
    assert gap["end"] - gap["start"] > 0.5
    assert f"gap from {gap['start']:.2f} s on: {gap['gap']}" in messages
    for one, other in zip(before[:4], after, strict=True):
        assert one["streams"] == other["streams"] == ["video", "audio"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-3)


def test_standard_input(runs: Path, show: Chunks, tmp_path: Path) -> None:
    (tmp_path / "show.ts").write_bytes(whole(show))
    mute = make_clip(tmp_path / "mute.mp4", "Normal", 42, seconds=1.0, sound=False)
    (tmp_path / "mute.ts").write_bytes(whole(transport_stream(mute)))
    with open(tmp_path / "show.ts", "rb") as pipe:
        lines, messages = output(watch(runs, "-", stdin=pipe))
    check(lines)
    assert len(lines) == 12
    assert "RANDOM WEIGHTS" in messages
    with open(tmp_path / "mute.ts", "rb") as pipe:
        lines, _ = output(watch(runs, "-", stdin=pipe))
    check(lines)
    assert [line["streams"] for line in lines] == [["video"]] * 4
    media, index = mute.read_bytes().rsplit(b"moov", 1)  # behind four bytes of its length
    far = (2**20).to_bytes(4, "big") + b"free" + bytes(2**20 - 8)  # a box that means nothing
    mute.write_bytes(media[:-4] + far + media[-4:] + b"moov" + index)
    with open(mute, "rb") as pipe:
        _, messages = output(watch(runs, "-", stdin=pipe), code=1)
    assert "standard input cannot be watched: Invalid data" in messages
    assert "ffmpeg -i FILE -c copy -f mpegts - | avarnet watch RUN -" in messages


def test_alarms_of_a_calibrated_run(runs: Path, show: Chunks, tmp_path: Path) -> None:
    (tmp_path / "show.ts").write_bytes(whole(show))
    with open(tmp_path / "show.ts", "rb") as pipe:
        before, _ = output(watch(runs, "-", stdin=pipe))
    assert [line["alarm"] for line in before] == [None] * 12
    shutil.copytree(runs / "causal", tmp_path / "calibrated")
    words = [tmp_path / "calibrated", runs / "live", "--false-alarms-per-hour", 1000]
    chosen = as_json("calibrate", *words)
    scores = sorted(line["anomaly"] for line in before)
    chosen["threshold"] = (scores[5] + scores[6]) / 2  # so that some are below it, some above
    (tmp_path / "calibrated" / "calibration.json").write_text(json.dumps(chosen))
    with open(tmp_path / "show.ts", "rb") as pipe:
        after, _ = output(watch(tmp_path, "-", run="calibrated", stdin=pipe))
    clear = [line for line in after if abs(line["anomaly"] - chosen["threshold"]) > 1e-4]
    assert [line["alarm"] for line in clear] == [
        line["anomaly"] > chosen["threshold"] for line in clear
    ]
    assert {line["alarm"] for line in after} == {True, False}


def test_a_file_that_grows(runs: Path, show: Chunks, tmp_path: Path) -> None:
    file = tmp_path / "growing.ts"
    file.touch()

    def grow() -> None:
        with open(file, "ab") as sink:
            for at, content in show:
                time.sleep(max(0.0, began + at - time.monotonic()))
                sink.write(content)
                sink.flush()

    with watch(runs, file) as process:
        assert process.stderr is not None
        process.stderr.readline()  # RANDOM WEIGHTS: it is about to open the file
        began = time.monotonic()
        threading.Thread(target=grow).start()
        lines, _ = output(process)
    check(lines)
    assert len(lines) == 12
    (tmp_path / "whole.ts").write_bytes(whole(show))
    again, _ = output(watch(runs, tmp_path / "whole.ts"))
    for one, other in zip(lines, again, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-3)


@pytest.mark.parametrize("remote", [True, False])
def test_falling_behind_and_catching_up_are_reported(
    runs: Path, tmp_path_factory: pytest.TempPathFactory, remote: bool
) -> None:
    """The process is stopped for some seconds, as on a machine that is busy with other things."""
    clip = tmp_path_factory.mktemp("long") / "siren.mp4"
    show = transport_stream(make_clip(clip, "Police siren", 41, seconds=12.0))
    camera = Camera([show])
    if remote:
        process = watch(runs, camera.url, "--retries", 0)
    else:  # a pipe that is written to in real time
        copy = (
            f"shutil.copyfileobj(urllib.request.urlopen({camera.url!r}), sys.stdout.buffer, 1024)"
        )
        program = f"import shutil, sys, urllib.request; {copy}"
        feed = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        process = watch(runs, "-", stdin=feed.stdout)
    with process:
        assert process.stdout is not None
        first = [process.stdout.readline() for _ in range(8)]  # the networks are warm by then
        process.send_signal(signal.SIGSTOP)
        time.sleep(5)
        process.send_signal(signal.SIGCONT)
        rest, messages = output(process, code=int(remote))
    camera.close()
    lines = [line for line in [*map(json.loads, first), *rest] if "gap" not in line]
    late = re.findall(r"behind by (\d+\.\d) s at (\d+\.\d\d) s: (.*)", messages)
    assert late
    if remote:
        by_end = {f"{line['end']:.2f}": line["latency"] for line in lines}
        assert all(by_end[at] < float(seconds) + 0.1 for seconds, at, _ in late)
    assert all(float(seconds) >= 2 for seconds, *_ in late)
    then = "10 s are passed over, which is a gap" if remote else "nothing is lost"
    assert then in late[0][2]
    if lines[-1]["latency"] < 1:
        assert "caught up at" in messages.rpartition("behind by")[2]


def test_slow_decoding_is_reported(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The process that decodes is stopped for some seconds; its lines have no great latency."""
    clip = tmp_path_factory.mktemp("slow") / "siren.mp4"
    show = transport_stream(make_clip(clip, "Police siren", 41, seconds=12.0))
    camera = Camera([show])
    with watch(runs, camera.url, "--retries", 0) as process:
        assert process.stdout is not None
        first = [process.stdout.readline() for _ in range(8)]
        (decoder,) = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "extract.live.child" in " ".join(child.cmdline())
        ]
        decoder.suspend()
        time.sleep(5)
        decoder.resume()
        rest, messages = output(process, code=1)  # the camera is given up when it has ended
    camera.close()
    assert "gap" not in json.loads(first[-1])
    found = re.search(r"behind by (\d+\.\d) s at (\d+\.\d\d) s: it comes so late, or is", messages)
    assert found, messages
    (line,) = [line for line in rest if f"{line['end']:.2f}" == found[2]]
    assert line["latency"] < float(found[1]) / 2  # by which alone it was not seen


def test_ctrl_c_is_no_error_and_other_reading_code_is_reported(runs: Path, show: Chunks) -> None:
    with watch(runs, "-", run="ahead", stdin=subprocess.PIPE, text=False) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(whole(show))
        process.stdin.flush()
        assert "label" in json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        messages = process.stderr.read().decode()
        assert process.wait(60) == 0, messages
        assert "Traceback" not in messages
        assert messages.count("HEARS DIFFERENTLY (audio)") == 1
        assert "avarnet extract MANIFEST NEW-STORE --live" in messages


def test_mistakes(runs: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.ts"
    assert f"{nowhere} cannot be watched" in avarnet("watch", runs / "causal", nowhere, code=1)
    refused = "http://127.0.0.1:1/live"
    output = avarnet("watch", runs / "causal", refused, code=1)
    assert f"{refused} cannot be watched: Connection refused" in output
    output = avarnet("watch", runs / "offline", refused, code=1)
    assert "is not causal" in output
    assert "--causal" in output
