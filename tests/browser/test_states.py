"""Pages where there is nothing to show, where a system behind them does not answer, and where there is very much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from reconciler.adapters.sql import open_store
from reconciler.controller.boards import Boards
from reconciler.model.observed import Health
from reconciler.planner.live import Live
from reconciler.ports import ConditionRow, TransientError
from reconciler.server.dashboard.frame import NAVIGATION
from reconciler.server.options import Options
from reconciler.simulate.memory_store import MemoryStore
from tests.browser.conftest import Opener
from tests.browser.fleet import CRITICAL, FREE, WELL, Fleet, serving
from tests.browser.window import PHONE, name_of
from tests.controller.harness import T0
from tests.controller.staging import Stage, desired

pytestmark = [pytest.mark.system, pytest.mark.slow]

SITES = 5_000


@contextmanager
def over(boards: Boards, store: MemoryStore, folder: Path) -> Iterator[str]:
    """A service over boards of the test's own."""
    sql = open_store(folder / "access.db")
    given = Options(
        store=store, now=lambda: T0, wall=lambda: T0, access=sql.access, local=True, boards=boards, limits=FREE
    )
    with serving(given) as address:
        yield address
    sql.close()


def test_before_the_first_tick_every_page_says_so(opened: Opener, held: ExitStack, tmp_path: Path) -> None:
    store = MemoryStore()
    boards = Boards(store)
    address = held.enter_context(over(boards, store, tmp_path))
    window = opened(address)
    for path, _ in NAVIGATION:
        window.open(path)
        assert "Nothing is planned yet" in window.text and window.overflow() == []
    assert window.violations() == []
    window.keep(name_of("empty", "light"))
    # What was lacking comes: the page fills by itself.
    window.open("/").live()
    stage = Stage(store=store)
    stage.boards = boards
    stage.tick(*stage.everybody())
    window.wait("document.querySelector('h1').innerText === 'Now'")
    assert "Wave lab moves to v1.4.2" in window.text


def test_without_a_fleet_the_front_page_says_what_is_lacking(opened: Opener, held: ExitStack, tmp_path: Path) -> None:
    store = MemoryStore()
    boards = Boards(store)
    rows = (ConditionRow("FleetValid", "False", "Invalid", "sites/A.yaml:3: no such wave", T0),)
    boards.publish(None, None, Live(), rows, ("f" * 40, "it has 2 errors: " + "x" * 200), T0)
    address = held.enter_context(over(boards, store, tmp_path))
    window = opened(address).open("/")
    assert "No fleet yet" in window.text and "sites/A.yaml:3: no such wave" in window.text
    assert window.violations() == []
    window.size(PHONE)
    assert window.overflow() == []
    window.keep(name_of("no-fleet", "phone"))
    assert "has no commit of the fleet repo to act on" in window.open("/rollout").text


def test_where_the_store_does_not_answer_pages_say_what_is_known_and_since_when(
    opened: Opener, held: ExitStack, moved: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_args: object, **_more: object) -> None:
        raise TransientError("the store does not answer")

    address = held.enter_context(serving(moved.options()))
    stays = opened(address).open(f"/devices/{CRITICAL}").live()
    for name in ("events", "observed", "observation", "health_log", "accepted_commits", "last_event"):
        monkeypatch.setattr(moved.store, name, down)
    window = opened(address).open("/")
    assert "The store does not answer now" in window.text and "20 of 30 on it" in window.text
    assert "as of 2026-03-15 07:25 UTC" in window.page.inner_text("footer")
    assert window.violations() == [] and window.overflow() == []
    window.keep(name_of("store-down", "light"))
    assert "is not shown" in window.open("/rollout").text
    window.refused = (503,)
    window.open(f"/devices/{CRITICAL}")
    assert "The controller's last word is of 2026-03-15 07:25 UTC" in window.text and "HTTP 503" in window.text
    # Without its events the stream cannot begin; a page that was open keeps what it shows.
    assert "2 of 6 cameras deliver no frames" in stays.text
    window.forgive("503", "/events/stream")
    stays.forgive("503", "/events/stream")


def test_where_the_loop_is_in_trouble_the_front_page_leads_with_it(
    opened: Opener, held: ExitStack, tmp_path: Path
) -> None:
    store = MemoryStore()
    stage = Stage(store=store)
    since = T0 - timedelta(minutes=25)
    stage.conditions = (ConditionRow("GitReady", "False", "Unreachable", "ssh: connect: no route to host", since),)
    stage.tick(*stage.everybody())
    address = held.enter_context(over(stage.boards, store, tmp_path))
    window = opened(address).open("/")
    assert "GitReady Unreachable, for 25 min" in window.text and "no route to host" in window.text
    assert window.text.startswith("Now ◆ 1 condition of the controller is not as it should be: GitReady.")
    assert window.violations() == []


def test_what_is_not_there_is_said_in_the_same_frame(opened: Opener, address: str) -> None:
    window = opened(address)
    window.refused = (404,)
    for path in ("/nothing", "/devices/SITE-0000-9", "/sites/SITE-0000", "/waves/none", "/releases/v9", "/commits/00"):
        window.open(path)
        assert "HTTP 404" in window.text and window.page.locator("nav.places a").count() == len(NAVIGATION)
    assert window.violations() == []
    window.page.get_by_role("link", name="To the front page").click()
    window.page.wait_for_selector("text=Waves")


def test_five_thousand_sites_are_read_and_found(opened: Opener, held: ExitStack, tmp_path: Path) -> None:
    store = MemoryStore()
    stage = Stage(desired(SITES), store)
    ill = {"health": Health.CRITICAL, "health_since": T0 - timedelta(hours=2)}
    devices = [one.model_copy(update=ill) if number % 50 == 0 else one for number, one in enumerate(stage.everybody())]
    stage.tick(*devices)
    address = held.enter_context(over(stage.boards, store, tmp_path))
    window = opened(address)
    accept = {"accept": "text/html"}
    sizes = {path: len(httpx.get(address + path, headers=accept, timeout=60).content) for path in ("/", "/sites")}
    window.open("/")
    assert sizes["/"] <= 200 * 1024 and window.overflow() == []
    assert window.page.evaluate("() => document.querySelectorAll('*').length") < 1_500
    window.open("/sites")
    assert "5,000 sites" in window.text and sizes["/sites"] <= 1024 * 1024
    assert window.page.locator(".grid a").count() == SITES
    # Small cells, a few elements each, so that laying them out is nothing that anybody waits for.
    assert window.page.evaluate("() => document.querySelectorAll('*').length") < 5 * SITES
    assert window.page.evaluate("() => document.body.scrollHeight") < 8_000
    assert "Sites that somebody may want to look at" in window.text
    assert window.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    window.keep(name_of("sites-5000", "light"))
    window.page.locator(".grid a").nth(7).hover()
    assert window.page.locator(".grid a b").nth(7).bounding_box()["width"] > 10  # type: ignore[index]
    window.page.get_by_label("Name has").fill("S4321")
    window.page.get_by_role("button", name="Show").click()
    window.page.wait_for_selector(".grid.named")
    assert window.page.locator(".grid a").count() == 1
    window.size(PHONE)
    window.open("/sites?view=list")
    assert window.page.locator("tbody tr").count() == 100 and window.overflow() == []


def test_a_page_of_very_many_sites_follows_what_happens(opened: Opener, held: ExitStack, tmp_path: Path) -> None:
    store = MemoryStore()
    stage = Stage(desired(SITES), store)
    stage.tick(*stage.everybody())
    address = held.enter_context(over(stage.boards, store, tmp_path))
    window = opened(address).open("/sites?state=failed").live()
    stage.tick(stage.everybody(S7_1="v1.4.1")[14].model_copy(update={"health": Health.CRITICAL, "health_since": T0}))
    window.wait("document.getElementById('main').innerText.includes('1 critical')")


def test_names_that_are_long_do_not_break_the_page(opened: Opener, held: ExitStack, moved: Fleet) -> None:
    long = "cameras-" + "x" * 56
    worse = [{"name": long, "before": "ok", "now": "critical", "message": "y" * 200, "since": moved.at}]
    since = moved.at - timedelta(minutes=11)
    moved.change(WELL, health=Health.CRITICAL, health_since=since, checks_worse=(long,), checks=worse)
    address = held.enter_context(serving(moved.options()))
    window = opened(address, size=PHONE)
    for path in ("/flagged", f"/devices/{WELL}", "/"):
        assert window.open(path).overflow() == []
