"""Pages as a browser shows them: they need nothing from elsewhere, and curve and player agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from extract import Reader, glimpse
from extract.synthetic import make_clip
from features import Features, Recipe, Store, Writer
from manifests import Clip, Interval, assign_split
from train import Config, Predictor, Run, evaluate_run, judge_run, train_run
from train.evaluation.anomaly_intervals import Anomaly
from train.evaluation.evaluate import Evaluation
from train.report.comparison import write_comparison
from train.report.examples import Preview, examples
from train.report.index import Row, write_index
from train.report.prediction import write_prediction_page
from train.report.run import write_report
from train.report.run_plots import run_plots

pytestmark = pytest.mark.slow

RECIPE = Recipe(0.25, "fp32", {"video": {"features": 6}, "audio": {"features": 4}})
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = (
    "<img src=x onerror=alert(1)> </script> `${alert(2)}`"  # a label and an id that must stay text
)
WIDTHS = [1280, 390]  # a desktop's and a phone's
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
READABLE = 4.5  # contrast of a text, by WCAG 2.2's criterion 1.4.3
TEXTS = ".main-svg text:not(.heatmap-label text, .hoverlayer text)"  # those have their own ground
INKS = f"""[...document.querySelectorAll('{TEXTS}')].map(text => {{
    const canvas = document.createElement('canvas').getContext('2d');
    canvas.fillStyle = getComputedStyle(text).fill;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
}})"""  # red, green and blue of the texts in plots
BROKEN = """[...document.querySelectorAll('th, td, dd')].flatMap(cell => {
    const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), broken = [];
    const words = /(?<!\\S)(?:--)?[\\p{L}\\d]{2,12}(?!\\S)/gu;
    for (const range = document.createRange(); texts.nextNode();) {
        for (const word of texts.currentNode.data.matchAll(words)) {
            range.setStart(texts.currentNode, word.index);
            range.setEnd(texts.currentNode, word.index + word[0].length);
            if (range.getClientRects().length > 1) broken.push(word[0]);
        }
    }
    return broken;
})"""  # words of a table or a list of facts that are continued on the next line, but for long ones
CURSOR = "document.querySelector('#timeline .plotly-graph-div').layout.shapes[0].x0"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser, whose pages are closed after each test: open ones take time from the next."""
    yield chromium
    for context in chromium.contexts:
        context.close()


class Visit:
    """A page in the browser, and all that it complained of or asked for."""

    def __init__(self, browser: Browser, file: Path, width: int) -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 800})
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_load_state("load")

    def look(self, script: str) -> Any:
        return self.page.evaluate(script)

    def check(self, *allowed: Path) -> None:
        # every plot is drawn, and none is wider than its place
        self.page.wait_for_function(
            "(plots => plots.length && plots.every(plot => plot.querySelector('svg') && "
            "plot.querySelector('svg').clientWidth <= plot.parentElement.clientWidth))"
            "([...document.querySelectorAll('.plotly-graph-div')])"
        )
        assert self.complaints == []
        outside = {url for url in self.requests if not url.startswith("data:")}
        assert outside == {file.as_uri() for file in allowed}
        assert self.look("document.documentElement.scrollWidth <= innerWidth")
        cut = "[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth)"
        assert self.look(f"{cut}.map(table => table.innerText)") == []
        assert self.look(BROKEN) == []
        for scheme in SCHEMES:
            self.page.emulate_media(color_scheme=scheme)
            background = self.picture("h1")[0, -1]
            inks = np.array(self.look(INKS))
            assert min(contrast(ink, background) for ink in inks) >= READABLE, scheme

    def picture(self, selector: str) -> NDArray[np.uint8]:
        """Return the pixels of what is there; one for each pixel of the page."""
        content = self.page.locator(selector).first.screenshot()
        return np.asarray(Image.open(BytesIO(content)).convert("RGB"))


def luminance(colour: NDArray[Any]) -> float:
    """By WCAG 2.2, of red, green and blue from 0 to 255."""
    share = colour / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: NDArray[Any], other: NDArray[Any]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def features(kind: int, seed: int) -> Features:
    rng = np.random.default_rng(seed)
    rows = {"video": rng.normal(kind, 1, (12, 6)), "audio": rng.normal(0, 1, (12, 4))}
    heard = seed % 5 != 0
    valid = {"video": np.ones(12, bool), "audio": np.full(12, heard)}
    return Features({n: x.astype(np.float16) for n, x in rows.items()}, valid, 0.25, 3.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Clip], Store]:
    path = tmp_path_factory.mktemp("store")
    clips = []
    with Writer(path, RECIPE) as writer:
        for n in range(60):
            name = f"{HOSTILE.replace('/', '')}{n}" if n < 30 else f"c{n}"
            writer.add(name, features(n % 3, n))
            label = ("Normal", HOSTILE, "Crash")[n % 3]
            events = (Interval(0, 1),) if n % 3 else ()
            clips.append(Clip(name, "x.mp4", (label,), intervals=events, fps=25))
    gone = Clip("gone", "x.mp4", ("Crash",), split="train")
    return [*assign_split(clips, test=0.4, val=0.2), gone], Store(path)


@pytest.fixture(scope="module", params=["recognition", "detection"])
def run(
    world: tuple[list[Clip], Store],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    settings = Config(channels=8, stages=2, epochs=2, layers=2, task=request.param)
    return train_run(*world, tmp_path_factory.mktemp("runs") / "run", settings)


@pytest.fixture(scope="module")
def evaluation(world: tuple[list[Clip], Store], run: Run) -> Evaluation:
    return judge_run(run, world[1])


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(
        tmp_path_factory.mktemp("film") / "a [b] #1 100%.mp4", "Police siren", 1, seconds=3.0
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_the_player_and_its_curve_agree(
    run: Run, film: Path, browser: Browser, tmp_path: Path, width: int
) -> None:
    clip, predictor = features(2, 1), Predictor(run)
    found = [Anomaly(0.5, 1.0, HOSTILE, 0.9), Anomaly(2.0, 2.5, "Crash", 0.8)]
    answer = predictor(clip)._replace(intervals=found)
    without = {name: predictor(clip, [name]) for name in clip.streams}
    page = tmp_path / "pages" / "page.html"
    page.parent.mkdir()
    write_prediction_page(page, film, clip, run, answer, without)
    visit = Visit(browser, page, width)
    visit.page.wait_for_function("video.readyState >= 2")

    visit.look("video.currentTime = 1.5")  # the curve follows the player
    visit.page.wait_for_function(f"Math.abs({CURSOR} - 1.5) < 0.01")
    assert "0:01.5" in visit.page.inner_text("#now")
    visit.page.keyboard.press("n")
    visit.page.wait_for_function("Math.abs(video.currentTime - 2.0) < 0.01")
    current = "[...document.querySelectorAll('[aria-current=true]')].length"
    visit.page.wait_for_function(f"{current} == 1")
    visit.page.keyboard.press("p")
    visit.page.wait_for_function("Math.abs(video.currentTime - 0.5) < 0.01")
    visit.page.keyboard.press("ArrowRight")
    visit.page.wait_for_function("Math.abs(video.currentTime - 1.5) < 0.01")

    curve = visit.page.locator("#timeline .nsewdrag").first
    curve.scroll_into_view_if_needed()
    box = curve.bounding_box()
    assert box is not None
    for share in (0.3, 0.9):
        visit.page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        visit.page.wait_for_function(f"Math.abs(video.currentTime - {3 * share}) < 0.05")
    visit.page.locator(".intervals button").first.click()
    visit.page.wait_for_function(f"Math.abs({CURSOR} - 0.5) < 0.01")

    visit.page.locator("h1").click()
    visit.page.keyboard.press(" ")
    visit.page.wait_for_function(f"!video.paused && {CURSOR} > 0.7")
    visit.page.keyboard.press(" ")
    visit.page.wait_for_function("video.paused")
    visit.check(page, film)


def test_the_name_of_a_class_is_never_part_of_the_program(
    run: Run, film: Path, browser: Browser, tmp_path: Path
) -> None:
    clip = features(2, 1)
    label = HOSTILE if HOSTILE in run.classes else "anomaly"
    answer = Predictor(run)(clip)._replace(label=label, anomaly=None, intervals=[])
    write_prediction_page(tmp_path / "page.html", film, clip, run, answer, {})
    visit = Visit(browser, tmp_path / "page.html", 1280)
    assert label in visit.page.inner_text("#now")
    assert "previous interval" not in visit.page.inner_text("body")  # where there is none
    visit.check(tmp_path / "page.html", film)


def test_a_film_that_cannot_be_played_leaves_a_page_that_can_be_read(
    run: Run, browser: Browser, tmp_path: Path
) -> None:
    film = tmp_path / "broken.mp4"
    film.write_bytes(b"nonsense" * 100)
    clip, predictor = features(2, 5), Predictor(run)  # one without sound
    answer = predictor(clip)._replace(intervals=[Anomaly(2.0, 2.5, "Crash", 0.8)])
    write_prediction_page(tmp_path / "page.html", film, clip, run, answer, {})
    visit = Visit(browser, tmp_path / "page.html", 1280)
    visit.page.wait_for_selector("#unplayable", state="visible")
    assert "no audio" in visit.page.inner_text("body")
    visit.page.locator(".intervals button").click()
    visit.page.wait_for_function(f"{CURSOR} == 2.0")
    visit.check(tmp_path / "page.html", film)


def predicted(run: Run, film: Path, page: Path, **settings: bool) -> None:
    page.parent.mkdir(exist_ok=True)
    answer = Predictor(run)(features(2, 1))
    write_prediction_page(page, film, features(2, 1), run, answer, {}, **settings)


def test_pages_of_a_folder_share_a_program_and_find_the_video_after_a_move(
    run: Run, film: Path, browser: Browser, tmp_path: Path
) -> None:
    here, moved = tmp_path / "here", tmp_path / "moved" / "elsewhere"
    (here / "blobs").mkdir(parents=True)
    shutil.copy(film, here / "blobs" / "1a")
    (here / "film.mp4").symlink_to("blobs/1a")
    predicted(run, here / "film.mp4", here / "pages" / "a.html", single_file=False)
    predicted(run, film, here / "pages" / "b.html", single_file=False)
    (program,) = (here / "pages").glob("*.js")
    moved.parent.mkdir()
    here.rename(moved)
    program = moved / "pages" / program.name
    both = Visit(browser, moved / "pages" / "a.html", 1280)  # and the film with it
    both.page.wait_for_function("video.readyState >= 2")
    both.check(moved / "pages" / "a.html", moved / "film.mp4", program)
    alone = Visit(browser, moved / "pages" / "b.html", 1280)  # which film stayed where it was
    alone.page.wait_for_function("video.readyState >= 2")
    assert alone.look("video.currentSrc") == film.as_uri()
    program.unlink()
    without = Visit(browser, moved / "pages" / "a.html", 1280)
    without.page.wait_for_function("video.readyState >= 2")
    without.page.wait_for_selector("#plotless", state="visible")
    assert program.name in without.page.inner_text("#plotless")
    without.look("video.currentTime = 1.5")
    without.page.wait_for_function("now.textContent.startsWith('at 0:01.5')")


def test_a_thousand_predictions_take_less_than_50_mb(run: Run, film: Path, tmp_path: Path) -> None:
    rng, length = np.random.default_rng(0), 120  # of half a minute
    clip = Features(
        {n: rng.normal(0, 1, (length, d)).astype(np.float16) for n, d in run.sizes.items()},
        {name: np.ones(length, bool) for name in run.sizes},
        0.25,
        length / 4,
    )
    predictor = Predictor(run)
    answer = predictor(clip)
    without = {name: predictor(clip, [name]) for name in clip.streams}
    for number in range(20):
        page = tmp_path / f"{number}.html"
        write_prediction_page(page, film, clip, run, answer, without, single_file=False)
    pages = sum(page.stat().st_size for page in tmp_path.glob("*.html"))
    (program,) = tmp_path.glob("*.js")
    assert pages * 1000 / 20 + program.stat().st_size < 50e6


@pytest.mark.parametrize("width", WIDTHS)
def test_the_list_of_predictions(browser: Browser, tmp_path: Path, width: int) -> None:
    rows = [
        Row(Path("calm.mp4"), tmp_path / "calm.html", "Normal", 0.9, 0.8, 0, 0.0, 12.0),
        Row(Path("a [b] #1.mp4"), tmp_path / "a [b] #1.html", HOSTILE, 0.6, 0.95, 2, 3.5, 12.0),
        Row(Path("crash.mp4"), tmp_path / "crash.html", "Crash", 0.8, 0.7, 1, 2.0, 3700.0),
    ]
    for row in rows:
        row.page.write_text("<title>a page</title>")
    visit = Visit(browser, write_index(tmp_path, rows, {"bad.mp4": HOSTILE}), width)
    names = "[...document.querySelectorAll('tbody tr:not([hidden]) a')].map(a => a.textContent)"
    assert visit.look(names) == ["a [b] #1.mp4", "crash.mp4", "calm.mp4"]
    assert "1:01:40.0" in visit.page.inner_text("tbody")
    assert f"bad.mp4: {' '.join(HOSTILE.split())}" in visit.page.inner_text("ul")
    visit.page.fill("#least", "0.8")
    assert visit.look(names) == ["a [b] #1.mp4", "calm.mp4"]
    assert visit.page.inner_text("#count") == "2 of 3 videos"
    visit.page.select_option("#class", HOSTILE)
    assert visit.look(names) == ["a [b] #1.mp4"]
    visit.page.select_option("#class", index=0)
    visit.page.fill("#least", "0")
    visit.page.check("#found")
    visit.page.fill("#name", "CRASH")
    assert visit.look(names) == ["crash.mp4"]
    assert visit.complaints == []
    assert visit.look("document.documentElement.scrollWidth <= innerWidth")
    table = "document.querySelector('.wide')"
    assert visit.look(f"{table}.scrollWidth <= {table}.clientWidth")
    visit.page.fill("#name", "a [")
    visit.page.click("tbody tr:not([hidden]) a")
    visit.page.wait_for_function("document.title == 'a page'")


def test_the_list_where_no_class_is_normal(tmp_path: Path) -> None:
    rows = [
        Row(Path(f"{c}.mp4"), tmp_path / f"{c}.html", "Crash", c, None, 0, 0.0, 1.0)
        for c in (0.5, 0.9)
    ]
    page = write_index(tmp_path, rows, {}).read_text()
    assert page.index("0.9.mp4") < page.index("0.5.mp4")  # the surest first
    assert "anomal" not in page.split("<tbody>")[0].split("<body>")[1]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_stands_alone(
    world: tuple[list[Clip], Store],
    run: Run,
    evaluation: Evaluation,
    film: Path,
    browser: Browser,
    tmp_path: Path,
    width: int,
) -> None:
    seen: list[str] = []
    reader = Reader()

    def preview(clip_id: str) -> Preview | None:
        seen.append(clip_id)
        return Preview(*glimpse(reader, film, None, 3.0), film) if len(seen) % 2 else None

    page = tmp_path / "report.html"
    command = "avarnet train videos.jsonl store run" + " --task detection --epochs 10" * 3
    run = replace(run, made={**run.made, "command": command})
    write_report(run, evaluation, page, preview, reasons={"gone": "the file is empty"})
    reader.close()
    visit = Visit(browser, page, width)
    body = visit.page.inner_text("body")
    assert HOSTILE in body
    assert "the file is empty" in body
    assert "without audio" in body
    for fact in ("trained\n", "command\n", f"store\n{world[1].path}", "this report\n"):
        assert fact in body
    assert seen
    pictures = visit.look(
        "[...document.querySelectorAll('.clip img')].map(picture => picture.naturalWidth)"
    )
    assert pictures == [480] * len(pictures)
    assert len(pictures) >= len(seen) // 2
    visit.check(page)  # no film is asked for before somebody wants to see it


def test_mistakes_are_played_at_the_moment_with_sound(
    run: Run, evaluation: Evaluation, film: Path, browser: Browser, tmp_path: Path
) -> None:
    sound = tmp_path / "beside.wav"
    soundfile.write(sound, np.sin(np.arange(3 * 8000) / 3), 8000)
    page = tmp_path / "report.html"
    apart = examples(run, evaluation, lambda _: None, page)[0][2][-1].id

    def preview(clip_id: str) -> Preview:
        seen = Preview(b"", np.zeros(0, np.float32), film)
        return seen._replace(audio=sound if clip_id == apart else None)

    write_report(run, evaluation, page, preview)
    visit = Visit(browser, page, 1280)
    clip = visit.page.locator(".clip[data-audio='[]']").first
    moment = float(clip.get_attribute("data-moment") or "nan")
    clip.locator(".play").click()
    visit.page.wait_for_function("!video.paused && video.webkitAudioDecodedByteCount > 0")
    assert moment <= visit.look("video.currentTime") <= 3.0
    assert not visit.look("video.muted")
    visit.look("video.pause()")
    visit.page.keyboard.press("Escape")
    visit.page.wait_for_function("!player.open && video.childElementCount == 0")

    curve = clip.locator(".nsewdrag").first
    curve.scroll_into_view_if_needed()
    box = curve.bounding_box()
    assert box is not None
    visit.page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    visit.page.wait_for_function("player.open && video.currentTime >= 2.2")
    visit.page.locator("dialog form button").click()

    visit.page.locator(".clip:not([data-audio='[]']) .play").first.click()
    visit.page.wait_for_function("!audio.paused && audio.webkitAudioDecodedByteCount > 0")
    assert visit.look("video.muted")
    visit.look("video.pause()")
    visit.page.wait_for_function("audio.paused")
    visit.look("video.currentTime = 1.5")
    visit.page.wait_for_function("Math.abs(audio.currentTime - 1.5) < 0.1")
    visit.page.keyboard.press("Escape")
    visit.page.wait_for_function("!player.open")
    visit.check(page, film, sound)


def test_the_moment_of_a_mistake(run: Run, evaluation: Evaluation, tmp_path: Path) -> None:
    for _, _, shown in examples(run, evaluation, lambda _: None, tmp_path / "report.html"):
        for example in shown:
            clip = next(c for c in evaluation.clips if c.id == example.id)
            if clip.id in run.truth and run.truth[clip.id].intervals:
                assert example.moment == 0.0  # its annotated interval begins there
                continue
            column = 1 if clip.id in run.truth else run.classes.index(clip.predicted)
            course = clip.snippets[:, column].tolist()
            assert example.moment == 0.25 * course.index(max(course))


def test_a_missing_video_is_reported(
    run: Run, evaluation: Evaluation, browser: Browser, tmp_path: Path
) -> None:
    seen = Preview(b"", np.zeros(0, np.float32), tmp_path / "gone.mp4")
    page = tmp_path / "report.html"
    write_report(run, evaluation, page, lambda _: seen)
    visit = Visit(browser, page, 1280)
    visit.page.locator(".play").first.click()
    visit.page.wait_for_selector("dialog .note", state="visible")


@pytest.mark.parametrize("run", ["recognition"], indirect=True)
@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_of_the_confusion_matrix_are_readable(
    run: Run, evaluation: Evaluation, browser: Browser, tmp_path: Path, width: int
) -> None:
    metrics: Any = deepcopy(evaluation.metrics)
    metrics["model"]["confusion"] = [[97, 2, 1], [40, 60, 0], [0, 20, 80]]
    page = tmp_path / "report.html"
    write_report(run, replace(evaluation, metrics=metrics), page)
    visit = Visit(browser, page, width)
    visit.page.wait_for_selector(".heatmap-label")
    for scheme in SCHEMES:
        visit.page.emulate_media(color_scheme=scheme)
        visit.page.locator(".heatmap-label").first.scroll_into_view_if_needed()
        pixels = np.asarray(Image.open(BytesIO(visit.page.screenshot())).convert("RGB"))
        labels = visit.look(
            """[...document.querySelectorAll('.heatmap-label')].map(e => [e.textContent,
                getComputedStyle(e.querySelector('text')).fill, e.getBoundingClientRect()])"""
        )
        assert sorted(text for text, *_ in labels if text) == [
            "1",
            "2",
            "20",
            "40",
            "60",
            "80",
            "97",
        ]
        seen = 0
        for text, fill, box in labels:
            if not text or box["bottom"] > len(pixels):
                continue
            seen += 1
            beside = pixels[round(box["top"] + box["height"] / 2), round(box["left"]) - 2]
            ink = np.array([int(part) for part in fill[4:-1].split(",")])
            assert contrast(ink, beside) >= READABLE, (scheme, text)
        assert seen


@pytest.mark.parametrize("scheme", SCHEMES)
def test_where_all_is_anomalous_the_curves_are_seen(
    run: Run, film: Path, browser: Browser, tmp_path: Path, scheme: Literal["light", "dark"]
) -> None:
    answer = Predictor(run)(features(2, 1))._replace(intervals=[Anomaly(0.0, 3.0, "Crash", 1.0)])
    page = tmp_path / "page.html"
    write_prediction_page(page, film, features(2, 1), run, answer, {})
    visit = Visit(browser, page, 1280)
    visit.page.emulate_media(color_scheme=scheme)
    visit.page.wait_for_selector("#timeline .main-svg")
    pixels = visit.picture("#timeline .nsewdrag").astype(int)
    common = np.median(pixels.reshape(-1, 3), axis=0)
    page_colour = visit.picture("h1").astype(int)[0, -1]
    assert np.abs(common - page_colour).max() <= 2  # and not a colour that lies over all of it


def test_ticks_are_round_numbers(
    run: Run, evaluation: Evaluation, browser: Browser, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    write_report(run, evaluation, page)
    visit = Visit(browser, page, 1280)
    visit.page.wait_for_selector(".y2tick text")
    ticks = "[...document.querySelectorAll('.{}tick text')].map(e => e.textContent)"
    assert visit.look(ticks.format("y2")) == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    plot = "document.querySelector('.y2tick').closest('.plotly-graph-div')"
    epochs = visit.look(f"[...{plot}.querySelectorAll('.xtick text')].map(e => e.textContent)")
    assert epochs == ["1", "2"]


def test_each_start_of_a_training_is_a_curve_of_its_own(
    world: tuple[list[Clip], Store], run: Run, tmp_path: Path
) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    rows += [{**row, "start": 9, "val_loss": 9.0} for row in rows[-2:]]
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[-2:])
    again = Run.load(tmp_path / "run")
    plot = run_plots(again, judge_run(again, world[1]))["training"]
    curves = [(list(t.x), list(t.y)) for t in plot.data if t.name == "validation loss"]
    losses = [row["val_loss"] for row in rows]
    assert curves == [([1, 2], losses[n : n + 2]) for n in range(0, len(losses), 2)]


def test_plots_have_their_place_before_the_page_is_whole(
    run: Run, evaluation: Evaluation, browser: Browser, tmp_path: Path
) -> None:
    """A page that is captured at once: the event that fits plots in has no effect yet."""
    file = tmp_path / "report.html"
    write_report(run, evaluation, file, lambda _: None)
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.add_init_script("dispatchEvent = () => true")
    page.goto(file.as_uri())
    beyond = page.evaluate(
        """[...document.querySelectorAll('.pair .main-svg')].map(plot =>
            plot.getBoundingClientRect().right
            - plot.closest('.pair > *').getBoundingClientRect().right)"""
    )
    assert beyond
    assert max(beyond) < 1
    page.close()


@pytest.fixture(scope="module")
def comparison(
    world: tuple[list[Clip], Store], run: Run, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The page of a run and another, of which something is in doubt."""
    folder = tmp_path_factory.mktemp("comparison")
    settings = replace(run.config, streams=("audio",), layers=1)
    other = train_run(*world, folder / "audio-only", settings)
    for one in (run, other):
        evaluate_run(one, world[1])
    doubtful = json.loads((other.path / "evaluation.json").read_text())
    doubtful["doubts"] = ["It is too good to be true."]
    (other.path / "evaluation.json").write_text(json.dumps(doubtful))
    write_comparison([run, other], folder / "compare.html")
    return folder / "compare.html"


@pytest.mark.parametrize("width", WIDTHS)
def test_runs_side_by_side(run: Run, comparison: Path, browser: Browser, width: int) -> None:
    visit = Visit(browser, comparison, width)
    body = visit.page.inner_text("body")
    assert "audio-only: It is too good to be true." in body
    assert ("McNemar" in body) == (run.config.task == "recognition")
    visit.check(comparison)


def test_a_glimpse_shows_frames_and_hears_sound(film: Path, tmp_path: Path) -> None:
    reader = Reader()
    seen = glimpse(reader, film, None, 3.0)
    mute = glimpse(reader, make_clip(tmp_path / "m.mp4", "Normal", 1, 3.0, sound=False), None, 3.0)
    silence = tmp_path / "silence.wav"  # a track that is there, and has nothing in it
    soundfile.write(silence, np.zeros(3 * 8000), 8000)
    silent = glimpse(reader, film, silence, 3.0)
    reader.close()
    assert seen.picture.startswith(b"\xff\xd8")
    assert len(seen.loudness) == 200
    assert 0.05 < float(seen.loudness.max()) <= 1
    assert len(mute.loudness) == 0
    assert len(silent.loudness) == 0


@pytest.mark.parametrize(
    ("clips", "why"), [(40, "all clips are alike"), (12, "there are 3 clips, and it needs 4")]
)
def test_clips_that_cannot_be_distinguished_have_no_map(
    tmp_path: Path, clips: int, why: str
) -> None:
    """Of streams that are silent in every held-out clip; t-SNE crashes the process there."""
    made = [Clip(f"c{n}", "x.mp4", (("Normal", "Crash")[n % 2],)) for n in range(clips)]
    made = assign_split(made, test=0.25, val=0.25)
    with Writer(tmp_path / "store", RECIPE) as writer:
        for n, clip in enumerate(made):
            heard = np.full(12, clip.split != "test")
            valid = {"video": np.ones(12, bool), "audio": heard}
            writer.add(clip.id, replace(features(n % 2, n), valid=valid))
    store = Store(tmp_path / "store")
    settings = Config(channels=8, epochs=1, layers=1, streams=("audio",), starts=1)
    run = train_run(made, store, tmp_path / "run", settings)
    write_report(run, judge_run(run, store), tmp_path / "report.html")
    assert f"No map: {why}" in (tmp_path / "report.html").read_text()
