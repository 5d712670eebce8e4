"""What a person does: by keyboard, by search, logging in, acknowledging, without scripts."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from reconciler.model.access import Scope
from tests.browser.conftest import Opener
from tests.browser.fleet import CRITICAL, Fleet, serving
from tests.browser.test_live import log_in
from tests.browser.window import Window

pytestmark = [pytest.mark.system, pytest.mark.slow]

_STOPS = """() => [...document.querySelectorAll("a[href], button, input:not([type=hidden]), select, summary, [tabindex='0']")]
  .filter((one) => one.checkVisibility()).length"""
_AT = """() => {
  const at = document.activeElement, style = getComputedStyle(at), box = at.getBoundingClientRect();
  at.dataset.reached = "yes";
  const outline = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  return { tag: at.tagName, words: (at.innerText || at.id).slice(0, 40), outline,
    seen: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth };
}"""


def test_the_first_key_leads_past_the_navigation(opened: Opener, address: str) -> None:
    window = opened(address).open("/")
    window.page.keyboard.press("Tab")
    stop = window.page.evaluate(_AT)
    assert stop["words"] == "Skip to content" and stop["seen"] and stop["outline"]
    window.page.keyboard.press("Enter")
    window.page.keyboard.press("Tab")
    assert window.page.evaluate("() => document.activeElement.closest('main') !== null")


@pytest.mark.parametrize("path", ["/", "/rollout", "/sites", "/devices?wave=half", f"/devices/{CRITICAL}", "/account"])
def test_everything_is_reached_by_keyboard_and_seen_where_it_is(opened: Opener, address: str, path: str) -> None:
    window = opened(address).open(path)
    stops, found = window.page.evaluate(_STOPS), list[dict[str, Any]]()
    for _ in range(stops + 2):
        window.page.keyboard.press("Tab")
        stop = window.page.evaluate(_AT)
        if stop["tag"] == "BODY":
            break
        found.append(stop)
    assert window.page.locator("[data-reached]:not(body)").count() == stops
    blind = [stop for stop in found if not stop["outline"] or not stop["seen"]]
    assert blind == []


def test_the_search_leads_to_a_device_or_to_what_is_alike(opened: Opener, address: str) -> None:
    window = opened(address).open("/sites")
    page = window.page
    page.get_by_label("Site or device").focus()
    page.keyboard.type(CRITICAL.lower())
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/devices/{CRITICAL}")
    assert page.locator("h1").inner_text().startswith(CRITICAL)
    page.get_by_label("Site or device").fill("SITE-410")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?q=SITE-410")
    assert "SITE-4102" in window.text and "SITE-4104" in window.text


def test_a_commit_says_what_it_asked_for(opened: Opener, address: str, shared: Fleet) -> None:
    window = opened(address).open("/commits")
    window.page.get_by_role("link", name=shared.controller.git.head[:12]).first.click()
    window.page.wait_for_selector("text=What it asks for")
    assert "Promote video-ingest 2.8.0 to lab and canary" in window.text and "Not known here" not in window.text


def test_three_clicks_lead_to_trouble_reason_and_tonight(opened: Opener, address: str) -> None:
    """What the front page is for: which devices are in trouble, why nothing moves in a wave, what happens tonight."""
    window = opened(address).open("/")
    page = window.page
    page.get_by_role("link", name="1 device is flagged").click()
    page.wait_for_url("**/flagged")
    assert CRITICAL in window.text and "2 of 6 cameras deliver no frames" in window.text
    window.open("/")
    page.locator("#wave-all").get_by_role("link", name="all").click()
    page.wait_for_url("**/waves/all")
    assert "wave half is not complete" in window.text
    window.open("/")
    window.wait("document.getElementById('main').innerText.includes('Foreseen to begin: v1.4.2 on about 9 devices')")
    assert "In the next 24 hours" in window.text and "in the window 20:15–22:30 UTC" in window.text


def test_logging_in_acknowledging_and_logging_out(opened: Opener, held: ExitStack, moved: Fleet) -> None:
    address = held.enter_context(serving(moved.options(local=False)))
    window = opened(address)
    page = window.page
    window.refused = (401,)
    window.open("/flagged")
    assert "/login" in page.url and "Log in" in window.text
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Not logged in")
    page.get_by_label("Operator's token").fill(moved.token())
    page.keyboard.press("Enter")
    page.wait_for_url("**/flagged")
    window.refused = ()
    cookies = window.page.context.cookies()
    assert [(one["httpOnly"], one["sameSite"]) for one in cookies] == [(True, "Strict")]
    page.get_by_label("Note").fill("on my way")
    page.get_by_role("button", name="Acknowledge").click()
    page.wait_for_selector("text=ada has acknowledged it")
    assert "on my way" in window.text and "all acknowledged" in window.text
    page.get_by_role("button", name="Take back").click()
    page.wait_for_selector("text=1 not acknowledged")
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    window.open("/flagged")
    assert "/login" in page.url
    deeds = [entry.what.value for entry in moved.sql.access.audit(limit=10)]
    assert {"login", "acknowledge", "logout"} <= set(deeds)


def test_a_form_without_its_token_changes_nothing(opened: Opener, held: ExitStack, moved: Fleet) -> None:
    address = held.enter_context(serving(moved.options()))
    window = log_in(opened(address), moved.token()).open("/flagged")
    window.refused = (403,)
    window.page.evaluate("() => document.querySelectorAll('[name=csrf]').forEach((one) => { one.value = 'x'; })")
    window.page.get_by_role("button", name="Acknowledge").click()
    window.page.wait_for_selector("text=HTTP 403")
    assert moved.sql.access.acknowledgements() == []


def test_who_may_only_read_is_not_offered_the_form(opened: Opener, held: ExitStack, moved: Fleet) -> None:
    address = held.enter_context(serving(moved.options()))
    window = log_in(opened(address), moved.token("eve", Scope.READ)).open("/flagged")
    assert window.page.get_by_role("button", name="Acknowledge").count() == 0
    assert "with a token that has the scope acknowledge" in window.text


def test_pages_are_whole_without_scripts(opened: Opener, held: ExitStack, moved: Fleet) -> None:
    address = held.enter_context(serving(moved.options()))
    window: Window = opened(address, java_script_enabled=False)
    for path in ("/", "/rollout", "/sites", f"/devices/{CRITICAL}", "/flagged"):
        window.open(path)
        assert window.page.locator("#link").is_hidden()
    window = log_in(window, moved.token())
    window.open("/flagged").page.get_by_role("button", name="Acknowledge").click()
    window.page.wait_for_selector("text=ada has acknowledged it")
    window.page.get_by_label("Site or device").fill("4102")
    window.page.get_by_role("button", name="Find").click()
    window.page.wait_for_selector("h1")
    assert "SITE-4102" in window.text
