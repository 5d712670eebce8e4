"""Every page, as a browser shows it: no complaint in the console, nothing that axe-core calls serious, room for every word."""

from __future__ import annotations

import pytest

from reconciler.server.access import ROUTES, Need
from tests.browser.conftest import Opener
from tests.browser.fleet import CRITICAL, Fleet
from tests.browser.window import PHONE, name_of

pytestmark = pytest.mark.system

PAGES = {
    "/": "/",
    "/waves/{name}": "/waves/half",
    "/controller": "/controller",
    "/rollout": "/rollout",
    "/sites": "/sites",
    "/sites/{name}": "/sites/SITE-2417",
    "/devices": "/devices",
    "/devices/{name}": f"/devices/{CRITICAL}",
    "/flagged": "/flagged",
    "/releases": "/releases",
    "/releases/{release}": "/releases/v1.4.2",
    "/releases/{before}/diff/{after}": "/releases/v1.4.1/diff/v1.4.2",
    "/commits": "/commits",
    "/commits/{sha}": "",
    "/search": "/search?q=284",
    "/account": "/account",
}
"""Route → an address of it in the example fleet."""
MORE = ("/sites?view=list", "/devices?state=held", "/search?q=nothing", "/login", "/rollout?past=7")


def test_every_page_is_looked_at() -> None:
    pages = {key.removeprefix("GET ") for key, need in ROUTES.items() if need is Need.PAGE and key.startswith("GET ")}
    assert set(PAGES) == pages - {"/events/stream"}, "give a new page its address in PAGES"


@pytest.mark.parametrize("route", [*PAGES, *MORE])
def test_a_page_stands_in_light_and_dark_and_on_a_phone(
    opened: Opener, address: str, shared: Fleet, route: str
) -> None:
    path = PAGES.get(route, route) or f"/commits/{shared.controller.git.head}"
    window = opened(address, color_scheme="light").open(path)
    assert window.page.locator("h1").count() == 1
    assert window.violations() == []
    assert window.overflow() == [] and window.scrolled() == []
    window.keep(name_of(path, "light"))
    window.page.emulate_media(color_scheme="dark")
    assert window.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(16, 21, 27)"
    assert window.violations("color-contrast", "link-in-text-block") == []
    window.keep(name_of(path, "dark"))
    window.page.emulate_media(color_scheme="light")
    window.size(PHONE)
    # Rows become blocks there; drawings and matrices scroll in their own box.
    assert window.overflow() == [] and window.scrolled(".scroll:has(table.stack)") == []
    assert window.violations("color-contrast", "target-size", "scrollable-region-focusable") == []
    window.keep(name_of(path, "phone"))


def test_a_phone_begins_where_the_rollout_is_now_and_has_a_front_page_of_a_few_screens(
    opened: Opener, address: str
) -> None:
    window = opened(address, size=PHONE).open("/rollout")
    seen = """(() => {
      const box = document.querySelector(".gantt").getBoundingClientRect();
      const now = document.querySelector(".gantt .now line").getBoundingClientRect();
      return box.left < now.left && now.right < box.right;
    })()"""
    window.wait(seen)
    window.open("/").wait("!document.body.innerText.includes('not computed yet')")
    assert window.page.evaluate("() => document.documentElement.scrollHeight") < 9 * PHONE[1]
    row = window.page.locator("#wave-half")
    tops = [row.locator(f"[data-label={name}]").bounding_box()["y"] for name in ("Healthy", "Failed")]  # type: ignore[index]
    assert tops[0] == tops[1], "short cells stand side by side"
    assert window.page.locator("#events-before").get_attribute("open") is None
