"""The page in a real browser, against a real server."""

import importlib.util
import os
from pathlib import Path

import pytest

_specification = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
_module = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(_module)
Browser, find_browser = _module.Browser, _module.find_browser

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome on the PATH")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture
def page(browser, page_server):
    """The browser on the page of a server with a student and a teacher. Afterwards, the page must have no errors."""
    browser.events.clear()
    browser.call("Page.navigate", url=page_server.url + "/")
    browser.until("document.readyState === 'complete' && !document.querySelector('#go')?.disabled")
    yield browser
    browser.run("1")
    problems = [event for event in browser.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
    assert not [event for event in problems if event["params"].get("entry", {}).get("level") != "info"], problems
    asked = [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert all(url.startswith((page_server.url, "data:")) for url in asked), asked


def texts(browser) -> list[str]:
    return browser.run("[...document.querySelectorAll('.answer .text')].map(e => e.innerText)")


def test_student_and_teacher_fill_masks_side_by_side(page):
    page.type("#prompt", "Thank you <extra_id_0> me to your party <extra_id_1> week.")
    page.click("#go")
    page.until("document.querySelectorAll('.answer:not(.waiting)').length === 2")
    if where := os.environ.get("SCREENSHOTS"):
        page.screenshot(Path(where) / "page.png")
    assert texts(page) == [
        "Thank you for inviting me to your party last week.",
        "Thank you for welcoming me to your party next week.",
    ]
    assert page.run("[...document.querySelectorAll('.student mark')].map(e => e.innerText)") == ["for inviting", "last"]
    left, right = page.run("[...document.querySelectorAll('.answer')].map(e => e.getBoundingClientRect().x)")
    assert left < right
    assert "9 tokens in" not in texts(page)[0] and "tokens in" in page.run(
        "document.querySelector('.student').innerText"
    )


def test_the_answer_to_a_prompt_without_masks_is_shown_as_text_and_not_as_html(page):
    page.type("#prompt", "repeat <img src=x onerror=alert(1)> & <b>this</b>")
    page.call(
        "Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, modifiers=2
    )
    page.until("document.querySelectorAll('.answer:not(.waiting)').length === 2")
    assert texts(page)[0] == "repeat <img src=x onerror=alert(1)> & <b>this</b>"
    assert page.run("document.querySelectorAll('.answer img, .answer b').length") == 0


def test_an_error_message_is_shown(page):
    page.type("#prompt", "hello")
    page.run("document.querySelector('#max_tokens').value = 100000")
    page.click("#go")
    page.until("document.querySelectorAll('.answer .error').length === 2")
    assert "max_tokens is 100000; the limit is 256" in texts(page)[0]
    page.run("document.querySelector('#max_tokens').value = 16")
    page.click("#go")
    page.until("document.querySelectorAll('.answer:not(.waiting)').length === 2")
    assert texts(page)[0].startswith("hello")
    page.events[:] = [event for event in page.events if "max_tokens" not in str(event) and "400" not in str(event)]


def test_the_button_inserts_the_next_mask(page):
    page.type("#prompt", "a ")
    page.click("#mask")
    page.call("Input.insertText", text=" b ")
    page.click("#mask")
    assert page.run("document.querySelector('#prompt').value") == "a <extra_id_0> b <extra_id_1>"


def test_the_page_fits_a_phone(page):
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    try:
        page.type("#prompt", "Thank you <extra_id_0> me")
        page.click("#go")
        page.until("document.querySelectorAll('.answer:not(.waiting)').length === 2")
        if where := os.environ.get("SCREENSHOTS"):
            page.screenshot(Path(where) / "phone.png")
        assert page.run("document.documentElement.scrollWidth <= 390")
        upper, lower = page.run("[...document.querySelectorAll('.answer')].map(e => e.getBoundingClientRect().y)")
        assert upper < lower
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")
