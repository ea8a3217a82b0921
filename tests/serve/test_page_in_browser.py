"""The live page in a real browser: a small scan is replayed to a real server, and somebody looks and presses keys."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kstream.mrd.messages import Close, ConfigFile, Header
from kstream.mrd.recording import Recording
from kstream.serve import watch
from kstream.serve.settings import PageSettings
from kstream.serve.tap import Event, Tap
from kstream.serve.watch import LivePage
from kstream.types import Acquisition
from tests.serve.conftest import Client

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), "")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
KSTREAM = [sys.executable, "-m", "kstream"]
N_SPOKES = 34
SIZE = ("--seed", "7", "--matrix", "64", "--slices", "16", "--spokes", str(N_SPOKES), "--coils", "4", "--lesions", "1")
DRAWN = "new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))"
PICTURE = "document.getElementById('frame').toDataURL()"
SPOKES = "document.getElementById('kspace').toDataURL()"
WIDE, NARROW = (1600, 1000), (420, 900)
PATIENCE_MS = 60_000

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:playwright"),
]


def until(page: Page, expression: str) -> None:
    """Ask the page until this is true; from outside, for the page's policy forbids what `wait_for_function` does."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"{expression} did not come true"
        page.evaluate(DRAWN)


@dataclass
class Shown:
    """A server with a page, and what a browser saw while a scan came."""

    url: str
    browser: Browser
    trouble: list[str] = field(default_factory=list)
    before: str = ""
    hint: str = ""
    spokes: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)

    def open(self, size: tuple[int, int] = WIDE, scheme: Any = "dark") -> Page:
        """A new page that shows the scan whole."""
        page = self.new(size, scheme)
        until(page, "document.getElementById('frame').dataset.labels === 'true'")
        until(page, "!document.getElementById('curve-note').textContent.includes('point')")
        return page

    def new(self, size: tuple[int, int], scheme: Any) -> Page:
        context = self.browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        page = context.new_page()
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("console", lambda said: self.trouble.append(said.text) if said.type in ("error", "warning") else None)
        page.goto(self.url)
        return page


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A real server, a real page, a whole scan."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    folder = tmp_path_factory.mktemp("scan")
    subprocess.run([*KSTREAM, "simulate", "scan.h5", *SIZE], cwd=folder, check=True, capture_output=True)
    with _server(folder) as (port, url), playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        shown = Shown(url, browser)
        try:
            _watch_a_scan(shown, folder / "scan.h5", port)
            yield shown
        finally:
            browser.close()


@contextmanager
def _server(folder: Path) -> Iterator[tuple[int, str]]:
    """Port of a server, and the address of its page."""
    command = [*KSTREAM, "serve", "--port", "0", "--watch-port", "0"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert server.stdout is not None
    try:
        told = ""
        while "live page" not in told and (line := server.stdout.readline()):
            told += line
        port, url = re.search(r"port (\d+)", told), re.search("live page on (.+)", told)
        assert port is not None, (folder / "log").read_text()
        assert url is not None, (folder / "log").read_text()
        yield int(port[1]), url[1]
    finally:
        server.terminate()
        server.wait(30)
        server.stdout.close()


def _watch_a_scan(shown: Shown, recording: Path, port: int) -> None:
    """Replay a recording frame by frame, each when the one before has been seen."""
    page = shown.new(WIDE, "dark")
    page.wait_for_selector("#empty")
    until(page, "document.getElementById('state').textContent === 'waiting'")
    shown.before, shown.hint = page.evaluate(PICTURE), page.inner_text("#empty")
    client = Client(port)
    with Recording(recording) as source:
        client.send(ConfigFile("breast-dce"), Header(source.xml))
        for frame, acquisitions in itertools.groupby(source.acquisitions(), _frame):
            client.send(*acquisitions)
            until(page, f"document.getElementById('progress-text').textContent.startsWith('frame {frame}')")
            until(page, f"document.getElementById('frame').dataset.frame === '{frame}'")
            shown.pictures.append(page.evaluate(PICTURE))
            shown.spokes.append(page.evaluate(SPOKES))
    client.send(Close())
    client.receive_all()
    until(page, "document.getElementById('state').textContent === 'completed'")
    page.context.close()


def _frame(acquisition: Acquisition) -> int:
    return acquisition.counter("kspace_encode_step_1") // N_SPOKES


@pytest.fixture
def page(shown: Shown) -> Iterator[Page]:
    page = shown.open()
    yield page
    page.context.close()
    assert shown.trouble == []


def changed(page: Page, key: str, *, of: str = PICTURE) -> bool:
    """Press a key; True if the picture is another one once it is drawn."""
    before = page.evaluate(of)
    page.keyboard.press(key)
    page.evaluate(DRAWN)
    return bool(page.evaluate(of) != before)


def shows(page: Page, **data: str) -> None:
    """Wait until the frame's picture says of itself that it is this one."""
    for name, value in data.items():
        until(page, f"document.getElementById('frame').dataset.{name} === '{value}'")


def plane_of(page: Page) -> int:
    return int(page.get_attribute("#frame", "data-plane") or -1)


def test_the_picture_changes_while_a_scan_comes(shown: Shown) -> None:
    assert "Waiting for a scan" in shown.hint
    assert "kstream replay scan.h5 --port" in shown.hint
    assert len({shown.before, *shown.pictures}) == 4
    assert len(set(shown.spokes)) == 3


def test_a_page_that_comes_later_shows_everything(page: Page) -> None:
    assert page.inner_text("#state") == "completed"
    assert page.inner_text("#progress-text").endswith("3 frames, 64 images")
    assert re.search(r"lesion: [\d.]+ ml", page.inner_text("#legend"))
    assert "breast-gate-small" in page.inner_text("#legend")
    assert "% of the cells" in page.inner_text("#density-note")
    assert "goldenangle" in page.inner_text("#kspace-note")
    assert "labels of frame 2" in page.inner_text("#latency-note")
    assert re.search(r"median .+, 95 % .+, longest", page.inner_text("#histogram-note"))
    assert page.locator("#stages tbody tr").count() >= 8
    assert page.locator("#sessions tbody tr").count() == 1
    assert "Research use only" in page.inner_text("header")
    until(page, "document.querySelectorAll('#log li').length > 3")
    assert "%)" in page.inner_text("#curve-note")


def test_the_overlay_toggles(page: Page) -> None:
    before = page.evaluate(PICTURE)
    assert changed(page, "o")
    shows(page, labels="false")
    assert not page.is_checked("#overlay-in")
    page.check("#overlay-in")
    shows(page, labels="true")
    assert page.evaluate(PICTURE) == before
    assert changed(page, ".")
    assert page.inner_text("#opacity-out") == "55 %"


def test_modes_have_their_keys(page: Page) -> None:
    seen = {page.evaluate(PICTURE)}
    for key in "pril":
        assert changed(page, key)
        shows(page, mode=key)
        assert page.is_checked(f'input[name="mode"][value="{key}"]')
        seen.add(page.evaluate(PICTURE))
    assert len(seen) == 5
    page.keyboard.press("m")
    shows(page, mode="m")


def test_arrows_move_along_the_chosen_axis(page: Page) -> None:
    first = plane_of(page)
    page.keyboard.press("ArrowUp")
    shows(page, plane=str((first + 1) % 16))
    page.keyboard.press("ArrowDown")
    shows(page, plane=str(first))
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    shows(page, frame="1")
    assert not page.is_checked("#follow-in")
    page.keyboard.press("n")
    shows(page, frame="2")
    page.keyboard.press("ArrowRight")
    for key in ("1", "2", "Enter"):
        page.keyboard.press(key)
    shows(page, plane="11")
    assert page.inner_text("#plane-out") == "12 of 16"


def test_brackets_change_brightness_and_braces_contrast_as_in_sigpy(page: Page) -> None:
    before = page.evaluate(PICTURE)
    assert changed(page, "]")
    assert page.inner_text("#level-out") == "+10"
    assert changed(page, "{")
    assert page.inner_text("#width-out") == "+8"  # a tenth narrower
    assert changed(page, "q")
    assert page.evaluate(PICTURE) == before
    assert changed(page, "[")
    assert page.inner_text("#level-out") == "−10"


def test_swap_letters_and_marks(page: Page) -> None:
    before = page.evaluate(PICTURE)
    for key in "ta":
        assert changed(page, key)
        assert changed(page, key)
        assert page.evaluate(PICTURE) == before
    note = page.inner_text("#curve-note")
    assert changed(page, "Shift+ArrowRight")
    until(page, f"document.getElementById('curve-note').textContent !== {note!r}")


def test_pointing_reads_the_voxel_and_a_click_keeps_it(page: Page) -> None:
    box = page.locator("#frame").bounding_box()
    assert box is not None
    middle = box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2 + 3  # well inside a voxel of 7.8 pixels
    page.mouse.move(*middle)
    until(page, "document.getElementById('voxel').textContent.includes('x 32, y 32')")
    assert " mm" in page.inner_text("#voxel")
    until(page, "document.getElementById('curve-note').textContent.startsWith('x 32, y 32')")
    page.mouse.click(*middle)
    page.mouse.move(0, 0)
    until(page, "document.getElementById('voxel').textContent.includes('x 32, y 32')")
    first = plane_of(page)
    page.mouse.move(*middle)
    page.mouse.wheel(0, -120)
    shows(page, plane=str((first + 1) % 16))


def test_help_opens_and_closes(page: Page) -> None:
    page.keyboard.press("h")
    assert page.is_visible("#help")
    assert "magnitude, phase" in page.inner_text("#help")
    assert not changed(page, "o")  # keys wait until it is closed
    page.keyboard.press("h")
    assert not page.is_visible("#help")
    page.click("#help-open")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help")


def test_the_picture_can_be_saved(page: Page, tmp_path: Path) -> None:
    with page.expect_download() as download:
        page.keyboard.press("s")
    assert re.fullmatch(r"kstream-session-\d+-frame-2-slice-\d+\.png", download.value.suggested_filename)
    download.value.save_as(tmp_path / "saved.png")
    assert (tmp_path / "saved.png").read_bytes().startswith(b"\x89PNG")


def test_sliders_keep_their_own_arrows(page: Page) -> None:
    first = plane_of(page)
    page.focus("#plane-in")
    page.keyboard.press("ArrowLeft")
    shows(page, plane=str(first - 1))


def test_everything_has_a_name_and_can_be_reached_by_keyboard(page: Page) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('input, select, button, canvas, dialog, section, [role]')]
        .filter((e) => !(e.labels?.length || e.ariaLabel || e.getAttribute('aria-labelledby') || e.textContent.trim()
                         || ['state', 'banner'].includes(e.id)))
        .map((e) => e.id || e.outerHTML)"""
    )
    assert nameless == []
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.name"))
    wanted = {"session", "help-open", "frame", "plane-in", "mode", "overlay-in", "reset", "log", "log-warnings"}
    assert wanted <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, (1000, 800), NARROW], ids=["wide", "middle", "narrow"])
def test_it_fits_its_window(shown: Shown, size: tuple[int, int], scheme: str, tmp_path: Path) -> None:
    page = shown.open(size, scheme)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= size[0]
    small = page.evaluate(
        """() => [...document.querySelectorAll('canvas')].filter((c) => c.clientHeight < 50 || c.clientWidth < 200)
        .map((c) => c.id)"""
    )
    assert small == []
    if size == WIDE:  # all of it at once
        assert page.evaluate("document.scrollingElement.scrollHeight") <= size[1]
    picture = page.screenshot(path=tmp_path / f"{size[0]}-{scheme}.png", full_page=True)
    assert len(picture) > 20_000
    page.context.close()


def test_no_connection_is_told_and_mended(shown: Shown) -> None:
    page = shown.new(WIDE, "dark")
    page.route("**/events", lambda route: route.abort())
    page.reload()
    page.wait_for_selector("#banner:visible", timeout=PATIENCE_MS)
    assert "No connection" in page.inner_text("#banner")
    assert page.inner_text("#state") == "no connection"
    page.unroute("**/events")
    page.wait_for_selector("#banner", state="hidden", timeout=PATIENCE_MS)  # it tries again by itself
    shows(page, labels="true")
    page.context.close()
    shown.trouble.clear()  # the browser's own words about the failed request


@pytest.fixture
def alone() -> Iterator[LivePage]:
    """A page that no server feeds, but a test."""
    page = watch.LivePage(Tap(), PageSettings(port=0))
    page.start()
    yield page
    page.stop()


def tell_volume(page: LivePage, kind: str, frame: int, array: np.ndarray, session: str = "7") -> None:
    """A volume as a session leaves it."""
    fields: dict[str, Any] = {"session": session, "frame": frame, "slice": 0, "voxel_size_mm": [1.0, 1.0, 1.0]}
    fields["affine_lps"] = np.eye(4).tolist()
    if kind == "labels":
        fields |= {"table": [["background", 0, 0, 0], ["lesion", 255, 0, 0]], "provenance": {}}
    page.tap.volume(Event(kind, fields, array))


def test_a_picture_is_never_that_of_another_frame_or_revision(shown: Shown, alone: LivePage) -> None:
    volume, labels = np.ones((1, 16, 16), np.complex64), np.zeros((1, 16, 16), np.uint8)
    volume[0, 3:9, 2:7], labels[0, 4, 4] = 5, 1
    beside = Shown(alone.url, shown.browser)
    page = beside.new(WIDE, "dark")
    tell_volume(alone, "labels", 0, labels)  # a preset without images
    shows(page, frame="0", labels="true")
    assert page.is_hidden("#empty")
    assert page.inner_text("#curve-note") == "this preset makes labels and no image"
    tell_volume(alone, "image", 0, volume)
    until(page, "document.getElementById('curve-note').textContent !== 'this preset makes labels and no image'")
    shows(page, labels="true")
    provisional = page.evaluate(PICTURE)
    labels = labels.copy()
    labels[0, 4:7, 3:6] = 1
    tell_volume(alone, "labels", 0, labels)  # the final ones
    until(page, f"{PICTURE} !== {provisional!r} && document.getElementById('frame').dataset.labels === 'true'")
    page.route("**/image/7/1/*", lambda route: route.fulfill(status=404))
    tell_volume(alone, "image", 1, volume)
    until(page, "!document.getElementById('empty').hidden")
    assert page.inner_text("#empty").startswith("Frame 1, slice 1: not kept")
    assert page.get_attribute("#frame", "data-frame") is None
    pixels = "document.getElementById('frame').getContext('2d').getImageData(0, 0, 2000, 2000).data"
    assert page.evaluate(f"{pixels}.every((value) => value === 0)")
    page.context.close()


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_words_stand_out_in_light_and_dark() -> None:
    style = (Path(watch.__file__).parent / "page" / "page.css").read_text()
    light, dark = (
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.+?)\}", style, re.DOTALL)[:2]
    )
    for colours in (light, dark):
        for name in ("ink", "muted", "accent", "good", "warn", "bad"):
            assert contrast(colours[name], colours["panel"]) >= 4.5, name
        for name in ("median", "tail", "magnitude", "labels"):  # lines and dots
            assert contrast(colours[name], colours["panel"]) >= 3, name
