"""An open page follows what happens: flags, waves, the service going and coming; what somebody does on it stays."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest

from reconciler.model.observed import Health
from reconciler.server import stream
from tests.browser.conftest import Opener
from tests.browser.fleet import WELL, Fleet, serving
from tests.browser.window import Window

pytestmark = [pytest.mark.system, pytest.mark.slow]

_LOAD = "window.performance.timeOrigin"


def ill(fleet: Fleet) -> dict[str, Any]:
    """What a device reports that has been critical for long enough to count as failed."""
    return {"health": Health.CRITICAL, "health_since": fleet.at - timedelta(minutes=11)}


def test_a_device_that_fails_is_flagged_on_an_open_page_with_the_loops_word(
    opened: Opener, held: ExitStack, moved: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody comes to look by themselves: neither the stream nor, as ever, the page.
    monkeypatch.setattr(stream, "LOOK_S", 250.0)
    monkeypatch.setattr(stream, "HEARTBEAT_S", 250.0)
    address = held.enter_context(serving(moved.options()))
    window = opened(address).open("/").live()
    loaded = window.page.evaluate(_LOAD)
    moved.change(WELL, **ill(moved))
    window.wait("document.getElementById('tally').textContent === '2'")
    window.wait("document.getElementById('lead').innerText.includes('v1.4.2 is stopped in every wave')")
    assert "2 devices are flagged" in window.text and "◆ failed" in window.text
    assert window.page.evaluate(_LOAD) == loaded, "the page was loaded again"


def test_a_wave_moves_under_the_eyes(opened: Opener, held: ExitStack, moved: Fleet) -> None:
    address = held.enter_context(serving(moved.options()))
    window = opened(address).open("/").live()
    assert "20 of 30 on it" in window.text
    since = moved.at - timedelta(seconds=20)
    done = {"image": "v1.4.2", "image_since": since, "health_since": since, "previous_image": "v1.4.1"}
    moved.change("SITE-1122-2", **done, inactive_slot="v1.4.1", updating_to=None, updating_since=None)
    window.wait("document.getElementById('wave-half').innerText.includes('21 of 30 on it')")
    assert "21 of 30 on it" in window.page.locator("#wave-half svg").get_attribute("aria-label")  # type: ignore[operator]


def test_what_somebody_does_on_a_page_stays(opened: Opener, held: ExitStack, moved: Fleet) -> None:
    address = held.enter_context(serving(moved.options()))
    window = opened(address).open(f"/devices/{WELL}").live()
    page = window.page
    page.locator("details").first.locator("summary").click()
    page.locator("#q").fill("SITE-28")
    page.locator("#q").evaluate("(box) => box.setSelectionRange(2, 4)")
    page.evaluate("() => window.scrollTo(0, 180)")
    moved.change(WELL, **ill(moved))
    window.wait("document.querySelector('h1').innerText.includes('failed')")
    assert page.locator("details").first.evaluate("(one) => one.open")
    assert page.evaluate("() => window.scrollY") == 180
    box = "() => [document.activeElement.id, document.activeElement.value, document.activeElement.selectionStart]"
    assert page.evaluate(box) == ["q", "SITE-28", 2]
    # Where somebody has gone by keyboard in what is swapped stays too.
    link = page.locator("main a").first
    link.focus()
    name = link.inner_text()
    moved.change(WELL, health=Health.OK, health_since=moved.at)
    window.wait("!document.querySelector('h1').innerText.includes('critical')")
    assert page.evaluate("() => document.activeElement.innerText") == name


def test_a_page_comes_back_with_the_service(opened: Opener, held: ExitStack, moved: Fleet) -> None:
    with serving(moved.options()) as address:
        window = opened(address).open("/").live()
        loaded = window.page.evaluate(_LOAD)
    window.wait("document.getElementById('link').textContent === 'not live: reconnecting'")
    assert "20 of 30 on it" in window.text, "what was known is shown"
    moved.change(WELL, **ill(moved))
    held.enter_context(serving(moved.options(), int(address.rpartition(":")[2])))
    window.live()
    window.wait("document.getElementById('tally').textContent === '2'")
    assert window.page.evaluate(_LOAD) == loaded
    window.forgive("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET")


def test_an_acknowledgement_shows_on_the_page_of_another(opened: Opener, held: ExitStack, moved: Fleet) -> None:
    address = held.enter_context(serving(moved.options()))
    other = opened(address).open("/flagged").live()
    mine = log_in(opened(address), moved.token()).open("/flagged")
    mine.page.get_by_label("Note").fill("I <look>")
    mine.page.get_by_role("button", name="Acknowledge").click()
    mine.page.wait_for_selector("text=ada has acknowledged it")
    other.wait("document.getElementById('main').innerText.includes('ada has acknowledged it, now: I <look>')")


def log_in(window: Window, token: str) -> Window:
    """Log in by the form."""
    window.open("/login")
    window.page.get_by_label("Operator's token").fill(token)
    window.page.get_by_role("button", name="Log in").click()
    window.page.wait_for_selector("text=Log out")
    return window
