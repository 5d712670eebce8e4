"""Pages say one thing: until when something waits, what follows a wave, and which devices a reason is of, are the same on all."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from reconciler.model.plan import Hold, Reason
from reconciler.server.dashboard.view_ahead import Until, follows, places_of, until_of
from reconciler.server.dashboard.view_tonight import some
from tests.controller.staging import observed
from tests.server.pages import Reader, reading
from tests.server.service import NOW
from tests.server.test_pages_tonight import HOUR, moves, outlook, place, tonight
from tests.support.processes import wait_until

LIKELY = outlook(
    moves("lab", "v1.4.2", 2, 0.5, 1, sites=("S0",), sites_in_all=1),
    places=(place("lab", "v1.4.2", 0.5, 2), place("canary", "v1.4.2", starts=48.5)),
)


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Two waves that have not begun, outside of their windows, and a forecast."""
    with reading(tmp_path_factory.mktemp("ahead"), foresee=lambda _board: LIKELY.foreseen) as reader:
        reader.api.stage.tick(*reader.api.stage.everybody())
        wait_until(lambda: "Foreseen to begin" in reader.get("/").text)
        yield reader


def test_an_end_that_only_the_forecast_knows_is_the_same_on_every_page(ahead: Reader) -> None:
    front, said = ahead.get("/"), "likely 2026-01-17 02:00 UTC"
    assert "likely until 2026-01-17 02:00 UTC" in tonight(front)
    assert said in next(row for row in front.rows() if "an earlier wave comes first" in row)
    assert said in next(row for row in ahead.get("/waves/canary").rows() if "an earlier wave comes first" in row)
    assert "the next devices begin at 2026-01-17 02:00 UTC" in ahead.get("/waves/canary").text
    assert f"wave canary may begin when wave lab has a proof; {said}" in ahead.get("/waves/lab").text
    devices = ahead.get("/devices?wave=canary").rows()
    assert devices and all("an earlier wave comes first, likely until 2026-01-17 02:00 UTC" in row for row in devices)


def test_sites_that_begin_are_named_and_so_is_every_device_of_a_reason(ahead: Reader) -> None:
    assert "about 2 devices begin v1.4.2: at S0, in the window" in tonight(ahead.get("/"))
    page = ahead.get("/waves/lab")
    assert "S0-1 and S0-2 outside the window" in page.text
    assert {"/devices/S0-1", "/devices/S0-2"} <= set(page.links)
    assert (some(("A", "B"), 9), some(("A",), 1)) == ("A, B and 7 more sites", "A")


def test_what_ends_with_the_device_itself_is_not_given_the_waves_instant() -> None:
    places = places_of(LIKELY)
    waits: dict[str, Any] = {"wave": "canary", "image": "v1.4.2", "devices": ("S1-1",), "message": ""}
    late = NOW + 20 * HOUR
    assert until_of(Hold(reason=Reason.WAVE_WAITS, until=late, **waits), places, NOW) == Until(NOW + 48.5 * HOUR, True)
    assert until_of(Hold(reason=Reason.OFFLINE, **waits), places, NOW) == Until(None, event="it reports")
    assert until_of(Hold(reason=Reason.IN_PROGRESS, **waits), places, NOW) == Until(None, event="it is done")
    assert until_of(Hold(reason=Reason.WAVE_WAITS, **waits), {}, NOW) == Until(None)


@pytest.mark.slow
def test_what_follows_a_wave_is_what_the_next_one_asks_for(tmp_path: Path) -> None:
    with reading(tmp_path) as reader:
        board = reader.api.stage.tick(*reader.api.stage.everybody())
        assert follows(board.waves, "lab", "v1.4.2") == "wave canary may follow"
        said = "wave all asks for v1.4.1, and follows once git asks it for v1.4.2"
        assert follows(board.waves, "canary", "v1.4.2") == said
        assert follows(board.waves, "all", "v1.4.1") == "there is no wave after it"
        assert "wave all asks for v1.4.1; it follows once git raises it" in reader.get("/waves/canary").text
    later = outlook(places=(place("canary", "v1.4.2", proven=3),))
    with reading(tmp_path / "other", foresee=lambda _board: later.foreseen) as reader:
        reader.api.stage.tick(*reader.api.stage.everybody())
        wait_until(lambda: "is through its soak" in tonight(reader.get("/")))
        text = tonight(reader.get("/"))
        assert f"if it stays healthy; {said}" in text and "wave after it may follow" not in text


def test_what_is_in_flight_times_out_and_is_not_held_until_then(tmp_path: Path) -> None:
    with reading(tmp_path) as reader:
        stage = reader.api.stage
        moving = observed("S0-1", updating_to="v1.4.2", updating_since=stage.now - timedelta(minutes=5))
        stage.tick(moving, *(device for device in stage.everybody() if device.name != "S0-1"))
        page = reader.get("/devices/S0-1")
        assert ", times out 2026-" in page.text and ", until 2026-" not in page.text
        row = next(row for row in reader.get("/").rows() if "S0-1: an action is in progress" in row)
        assert row.endswith("it is done")
