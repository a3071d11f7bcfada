"""The page in a real Chromium, against a real server."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Server, free_port
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

PICTURE = os.environ.get("T2V_PAGE_PICTURE")  # where to leave a screenshot of the gallery


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        assert not os.environ.get("CI"), "no Chromium: apt-get install chromium"
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


def open_page(browser: Browser, server: Server, **options: object) -> tuple[Page, list[str]]:
    """The page, and what its console complains of from now on."""
    context = browser.new_context(locale="en-US", **options)  # type: ignore[arg-type]
    page, complaints = context.new_page(), list[str]()

    def note(message: ConsoleMessage) -> None:
        # That a server which is restarted cannot be reached is logged by the browser itself.
        if message.type == "error" and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server.url)
    expect(page.locator("#submit")).to_be_enabled()
    return page, complaints


def card_of(page: Page, prompt: str) -> Locator:
    return page.locator("li.card").filter(has=page.locator(".card-prompt", has_text=prompt))


def make(page: Page, prompt: str, steps: int | None = None) -> Locator:
    page.fill("#prompt", prompt)
    if steps is not None:
        if not page.locator("#num_inference_steps").is_visible():
            page.click("#more summary")
        page.fill("#num_inference_steps", str(steps))
    page.click("#submit")
    card = card_of(page, prompt)
    expect(card).to_be_visible()
    return card


def test_a_video_is_made_watched_cancelled_and_found_again_after_a_restart(
    browser: Browser, videos: Path
) -> None:
    port = f"127.0.0.1:{free_port()}"
    with Server.start(videos, T2V_BIND=port) as server:
        server.wait_until_ready()
        page, complaints = open_page(browser, server)
        expect(page.locator("#empty")).to_be_visible()

        # Made, with live progress ...
        card = make(page, "a dog running", steps=300)
        bar = card.get_by_role("progressbar")
        seen = set[str]()
        deadline = time.monotonic() + 60
        while card.get_attribute("data-status") != "completed":
            if bar.count():
                seen.add(bar.get_attribute("aria-valuenow", timeout=2000) or "")
            assert time.monotonic() < deadline
            page.wait_for_timeout(50)
        assert len(seen - {""}) > 5, seen

        # ... played ...
        expect(card.locator("img")).to_be_visible()
        card.locator(".play").click()
        video = page.locator("#player-video")
        expect(video).to_be_visible()
        deadline = time.monotonic() + 20
        while not video.evaluate("element => element.readyState >= 2 && element.videoWidth"):
            assert time.monotonic() < deadline
            page.wait_for_timeout(100)
        assert video.evaluate("element => element.videoWidth") == 64
        page.keyboard.press("Escape")
        expect(page.locator("#player")).to_be_hidden()

        # ... another one cancelled half way.
        other = make(page, "a long film", steps=1000)
        expect(other.locator(".stage")).to_contain_text("Denoising", timeout=20_000)
        other.get_by_role("button", name="Cancel").click()
        expect(other).to_have_attribute("data-status", "cancelled", timeout=5000)
        deadline = time.monotonic() + 5
        while server.engine_status()["job"] is not None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert complaints == []

    with Server.start(videos, T2V_BIND=port) as server:
        server.wait_until_ready()
        # The page that was open goes on by itself, and a new one shows the same.
        again = make(page, "after the restart", steps=2)
        expect(again).to_have_attribute("data-status", "completed", timeout=30_000)
        fresh, fresh_complaints = open_page(browser, server)
        expect(card_of(fresh, "a dog running")).to_have_attribute("data-status", "completed")
        expect(card_of(fresh, "a long film")).to_have_attribute("data-status", "cancelled")
        expect(card_of(fresh, "after the restart")).to_have_attribute("data-status", "completed")
        with fresh.expect_download() as download:
            card_of(fresh, "a dog running").locator("a.download").click()
        assert download.value.suggested_filename.endswith(".mp4")
        assert Path(download.value.path()).read_bytes()[4:8] == b"ftyp"
        assert complaints == fresh_complaints == []
        if PICTURE:
            fresh.set_viewport_size({"width": 1280, "height": 800})
            fresh.mouse.wheel(0, -2000)
            fresh.wait_for_timeout(500)
            fresh.screenshot(path=PICTURE)


def test_mistakes_are_said_at_the_field_before_anything_is_sent(
    browser: Browser, server: Server
) -> None:
    page, complaints = open_page(browser, server)
    page.click("#submit")
    expect(page.locator("#prompt-error")).not_to_be_empty()
    page.fill("#prompt", "x")
    page.click("label.preset:last-child")
    page.fill("#width", "100")
    page.click("#submit")
    expect(page.locator("#width-error")).to_contain_text("multiple of 32")
    assert complaints == []


def test_it_speaks_chinese_and_fits_a_phone(browser: Browser, server: Server) -> None:
    page, complaints = open_page(browser, server, viewport={"width": 390, "height": 844})
    page.click("#language")
    expect(page.locator("#submit")).to_have_text("生成视频")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    for width in (320, 390, 768):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.reload()
    expect(page.locator("#submit")).to_have_text("生成视频")  # it remembers
    assert complaints == []


def test_a_video_can_be_made_with_the_keyboard_alone(browser: Browser, server: Server) -> None:
    page, complaints = open_page(browser, server)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skip to the prompt
    page.keyboard.type("by keyboard")
    page.keyboard.press("Control+Enter")
    expect(card_of(page, "by keyboard")).to_have_attribute(
        "data-status", "completed", timeout=20_000
    )
    assert complaints == []


def test_with_authentication_the_page_asks_for_a_token(browser: Browser, videos: Path) -> None:
    from t2v_server.api.auth import new_key

    keys = videos.with_name("keys")
    key, line = new_key("ann")
    keys.write_text(line + "\n")
    with Server.start(videos, T2V_API_KEYS_FILE=str(keys)) as server:
        server.wait_until_ready()
        context = browser.new_context(locale="en-US")
        page = context.new_page()
        page.goto(server.url)
        page.fill("#token", "sk-t2v-wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token-why")).to_contain_text("not accepted")
        page.fill("#token", key)
        page.keyboard.press("Enter")
        expect(page.locator("#submit")).to_be_enabled()
        card = make(page, "mine")
        expect(card).to_have_attribute("data-status", "completed", timeout=20_000)
        expect(card.locator("img")).to_be_visible()


def test_nothing_comes_from_elsewhere(browser: Browser, server: Server) -> None:
    context = browser.new_context()
    page, asked = context.new_page(), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    page.goto(f"{server.url}/docs")
    page.wait_for_load_state("networkidle")

    assert len(asked) > 8
    assert all(url.startswith((server.url, "blob:", "data:")) for url in asked), asked
