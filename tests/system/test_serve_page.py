"""The page in a real browser: ask, correct, browse, edit, retract; light and dark, by keyboard, on a phone.

``AGM_SCREENSHOTS=folder`` keeps pictures of what is tested.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from pipeline.data.lines import LessonLine
from pipeline.evaluate.gate import Check, Verdict
from pipeline.tracking import promotions
from tests.system.local_endpoint import Local, endpoint

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(300)]

CAPITAL = "What is the capital of Kazakhstan?"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    with endpoint(tmp_path_factory.mktemp("page")) as local:
        database = local.service.log.engine
        for version, kept in enumerate((1.0, 0.99, 0.62), 1):
            passed = kept > 0.9
            checks = (
                Check(name="retention kept", value=kept, low=kept - 0.02, margin=0.02, n=284, passed=passed),
                Check(name="earlier lessons", value=kept - 1, low=kept - 1, margin=0.05, n=60, passed=passed),
            )
            verdict = Verdict(promoted=passed, reasons=(f"retention kept: {kept}",), checks=checks).model_dump()
            commit = promotions.commit_promotion if passed else promotions.commit_refusal
            commit(database, version, verdict, version)
        yield local


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, place: Local) -> Iterator[Page]:
    """The page of a teacher; an error in its script, or a request to another host, fails the test."""
    context = browser.new_context(viewport={"width": 1000, "height": 760}, color_scheme="light")
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url.startswith((place.url, "data:")) or wrong.append(request.url))
    page.goto(f"{place.url}/#key={place.keys['teacher']}")
    expect(page.locator("#state")).to_contain_text("model 1")
    yield page
    context.close()
    assert wrong == []


def picture(page: Page, name: str) -> None:
    folder = os.environ.get("AGM_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def answered(page: Page) -> None:
    expect(page.locator("#answers article").first.locator(".strategy")).to_be_visible()


def test_an_answer_streams_and_a_correction_changes_the_next_one(page: Page, place: Local) -> None:
    assert "key" not in page.url
    page.keyboard.type(CAPITAL)  # the question has the focus
    page.keyboard.press("Enter")
    answered(page)
    card = page.locator("#answers article").first
    expect(card.locator(".strategy")).to_have_text("weights")
    picture(page, "asked")
    card.get_by_role("button", name="Correct it").click()
    picture(page, "correcting")
    page.keyboard.type("Astana")
    page.keyboard.press("Enter")
    corrected = page.locator("#answers article").first
    expect(corrected.locator(".answer")).to_have_text("Astana")
    expect(corrected.locator(".strategy")).to_have_text("copy")
    expect(corrected.locator(".cited li b")).to_have_text("Astana")
    expect(corrected.locator(".change")).to_contain_text("Was")
    corrected.get_by_role("button", name="Right").click()
    expect(corrected.get_by_role("button", name="Right")).to_have_attribute("aria-pressed", "true")
    picture(page, "corrected")
    page.get_by_role("button", name="Colours").click()
    page.get_by_role("button", name="Colours").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    picture(page, "corrected-dark")


def test_lessons_are_taught_searched_edited_and_retracted(page: Page, place: Local) -> None:
    with place.client() as client:
        for n in range(25):
            client.teach(LessonLine(question=f"What stands on shelf {n}?", answer=f"box {n}"))
    page.get_by_role("link", name="Lessons").click()
    expect(page.locator(".lesson")).to_have_count(20)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#more")).to_be_hidden()
    picture(page, "lessons")
    page.get_by_role("button", name="Teach a lesson").click()
    page.keyboard.type("What is the office plant called?")
    page.keyboard.press("Tab")
    page.keyboard.type("Fern")
    page.keyboard.press("Enter")
    expect(page.locator(".lesson").first).to_contain_text("Fern")
    page.keyboard.press("Escape")
    page.locator("#search").fill("office plant")
    expect(page.locator("#lesson-count")).to_have_text("1 lesson")
    card = page.locator(".lesson")
    card.get_by_role("button", name="Edit").click()
    card.get_by_label("New answer").fill("Ficus")
    picture(page, "editing")
    card.get_by_role("button", name="Save").click()
    expect(page.locator(".lesson b")).to_have_text("Ficus")
    with place.client() as client:
        assert client.ask("What is the office plant called?").text == "Ficus"
    page.get_by_role("button", name="Teach a lesson").click()
    page.locator("#teach-question").fill("What is the name of the plant in the office?")
    page.locator("#teach-answer").fill("Palm")
    page.keyboard.press("Enter")
    expect(page.locator("#overlap")).to_contain_text("“What is the office plant called?” still answers “Ficus”")
    picture(page, "overlap")
    page.get_by_role("button", name="Show it").click()
    expect(page.locator(".lesson b")).to_have_text("Ficus")
    page.get_by_role("button", name="Retract").click()
    page.get_by_role("button", name="Really retract?").click()
    expect(page.locator("#lesson-count")).to_have_text("0 lessons")
    expect(page.locator("#overlap")).to_be_hidden()


def test_cycles_show_decisions_and_curves(page: Page) -> None:
    page.get_by_role("link", name="Cycles").click()
    expect(page.locator("#cycle-list article")).to_have_count(3)
    expect(page.locator("#cycle-list article").first).to_contain_text("refused")
    expect(page.locator("#cycle-list article").nth(1)).to_contain_text("champion")
    expect(page.locator("#curve circle")).to_have_count(6)
    page.locator("summary").first.click()
    picture(page, "cycles")


def test_on_a_phone_in_the_dark(browser: Browser, place: Local) -> None:
    context = browser.new_context(
        viewport={"width": 360, "height": 740}, color_scheme="dark", has_touch=True, is_mobile=True
    )
    page = context.new_page()
    page.goto(f"{place.url}/#key={place.keys['teacher']}")
    page.locator("#question").fill("What stands on shelf 7?")
    page.get_by_role("button", name="Ask", exact=True).tap()
    answered(page)
    page.get_by_role("button", name="Correct it").tap()
    picture(page, "phone-asked")
    for view in ("Lessons", "Cycles"):
        page.get_by_role("link", name=view).tap()
        expect(page.locator(f"#view-{view.lower()} article").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
        picture(page, f"phone-{view.lower()}")
    context.close()


def test_a_wrong_key_is_told_and_can_be_replaced(browser: Browser, place: Local) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(place.url)
    expect(page.get_by_label("This endpoint asks for an API key")).to_be_visible()
    page.locator("#key").fill("agm_wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-error")).to_contain_text("not known here")
    picture(page, "wrong-key")
    page.locator("#key").fill(place.keys["asker"])
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_contain_text("model 1")
    page.locator("#question").fill("Who?")
    page.keyboard.press("Enter")
    answered(page)
    context.close()
