"""The page of `combo report` in a real browser: nothing is asked of a network, and all of it works.

Needs Debian's `chromium`, or another Chromium of that name, and the extra `dev`; else skipped.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from combo.pipeline.report.of_run import look_at_run
from combo.pipeline.report.of_store import look_at_store
from combo.pipeline.report.page import write_report

from .conftest import finished_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt install chromium")


@pytest.fixture(scope="module")
def file(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs and a store, in which one clip has a hostile name."""
    run = finished_run(prepared, tmp_path_factory, ("iterations=2", "log_every=1"))
    looks = look_at_run(run.root, "test", torch.device("cpu"))
    name = looks.best[0].title
    evil = replace(
        looks,
        best=[replace(looks.best[0], title=EVIL)],
        evaluations={
            sound: replace(e, clips={EVIL if n == name else n: s for n, s in e.clips.items()})
            for sound, e in looks.evaluations.items()
        },
    )
    path = tmp_path_factory.mktemp("pages") / "report.html"
    write_report(path, [looks, evil], [look_at_store(prepared.parent / "store")])
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install '.[dev]'")
    with api.sync_playwright() as started:
        # A container's root may have no sandbox; the page is our own.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """The page, opened, and all that happened that should not."""

    def __init__(self, browser: Any, file: Path, **settings: Any) -> None:
        self.page = browser.new_context(**settings).new_page()
        self.unwanted: list[str] = []
        self.page.on("console", lambda message: self.unwanted.append(message.text))
        self.page.on("pageerror", lambda error: self.unwanted.append(str(error)))
        self.page.on("dialog", lambda dialog: self.unwanted.append(dialog.message))
        self.page.on("request", self._asked)
        self.page.goto(file.as_uri())

    def _asked(self, request: Any) -> None:
        if not request.url.startswith("data:") and not request.is_navigation_request():
            self.unwanted.append(request.url)

    def until(self, holds: str) -> None:
        """Wait, 10 s at most; Playwright's own way is forbidden by the page's policy."""
        for _ in range(200):
            if self.page.evaluate(holds):
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"never: {holds}")

    def colour(self) -> str:
        return self.page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Opened]:
    found = Opened(browser, file, viewport={"width": 1200, "height": 900})
    yield found
    found.page.context.close()
    assert found.unwanted == []


@pytest.mark.parametrize("width", [1200, 390])
def test_it_is_light_or_dark_as_the_system_or_somebody_says_and_fits_the_screen(
    browser: Any, file: Path, width: int
) -> None:
    colours: dict[str, str] = {}
    for theme in ("light", "dark"):
        screen = {"width": width, "height": 800}
        opened = Opened(browser, file, viewport=screen, color_scheme=theme)
        colours[theme] = opened.colour()
        assert opened.page.evaluate("document.documentElement.scrollWidth") == width
        opened.page.click("#theme")
        assert opened.colour() != colours[theme]
        loaded = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
        assert opened.page.evaluate(loaded)
        opened.page.context.close()
        assert opened.unwanted == []
    assert colours["light"] != colours["dark"]


def test_a_player_plays_alone_and_a_line_in_the_spectrogram_goes_with_it(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("j")
    page.keyboard.press("p")
    opened.until("document.querySelectorAll('audio')[0].currentTime > 0.2")
    left = page.evaluate("document.querySelector('.head').style.left")
    assert 0 < float(left.rstrip("%")) < 100
    page.locator(".wave").nth(1).click()  # in the middle
    opened.until("document.querySelectorAll('audio')[1].currentTime > 2.4")
    paused = page.evaluate("[...document.querySelectorAll('audio')].map(a => a.paused)")
    assert paused[:2] == [True, False]
    assert page.evaluate("document.querySelectorAll('audio')[1].duration") == 5


def test_a_filter_leaves_the_rows_that_hold_its_words(opened: Opened) -> None:
    page = opened.page
    rows = page.locator("#run-1 .filtered tbody tr")
    said = page.locator("#run-1 .filter output")
    names = page.locator("#run-1 .filtered tbody th").all_text_contents()
    assert said.text_content() == "3 of 3 clips"
    page.fill("#run-1 .filter input", names[1].upper())
    assert [row.is_visible() for row in rows.all()] == [False, True, False]
    assert said.text_content() == "1 of 3 clips"
    page.fill("#run-1 .filter input", "")
    kinds = page.locator("#run-1 .filter option").all_text_contents()
    page.select_option("#run-1 .filter select", kinds[1])
    shown = [row.get_attribute("data-kind") for row in rows.all() if row.is_visible()]
    assert set(shown) == {kinds[1]}
    assert 0 < len(shown) < 3


def test_a_column_sorts_by_number_up_and_down(opened: Opened) -> None:
    page = opened.page
    head = page.locator("#run-1 .filtered th").nth(2)
    rows = "[...document.querySelectorAll('#run-1 .filtered tbody tr')]"
    values = f"{rows}.map(row => +row.cells[2].dataset.value)"
    for direction, sign in (("ascending", 1), ("descending", -1)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == direction
        found = page.evaluate(values)
        assert found == sorted(found, key=lambda value: sign * value)
        assert len(set(found)) > 1


def test_it_can_be_used_with_the_keyboard_alone(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#keys").is_visible()
    titles = page.locator(".card h4").all_text_contents()
    for key, place in (("j", 0), ("j", 1), ("k", 0)):
        page.keyboard.press(key)
        assert (
            page.evaluate("document.activeElement.querySelector('h4').textContent") == titles[place]
        )
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.type") == "search"
    page.keyboard.type("t?")  # a key while somebody writes is a letter
    assert page.evaluate("document.activeElement.value") == "t?"
    assert not page.locator("#keys").is_visible()


def test_a_hostile_name_is_shown_and_does_nothing(opened: Opened) -> None:
    page = opened.page
    assert EVIL in page.locator(".card h4").all_text_contents()
    assert page.locator("img[src=x]").count() == 0
    page.evaluate("document.body.append(Object.assign(document.createElement('img'), {src: 'x'}))")
    page.wait_for_timeout(50)
    blocked, opened.unwanted[:] = [*opened.unwanted], []
    assert any("Content Security Policy" in text for text in blocked)
