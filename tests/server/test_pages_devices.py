"""Lists of devices, a device's page, and the search, through the real app."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from reconciler.model.events import CheckSaid, HealthChange
from reconciler.server.dashboard.timeline import timeline
from tests.server.inside import PAGE
from tests.server.pages import Reader, reading
from tests.server.service import NOW
from tests.server.test_api import filled


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A fleet with a device that failed, one that is silent, and history."""
    with reading(tmp_path_factory.mktemp("devices")) as reader:
        filled(reader.api)
        reader.app.store.add_health([HealthChange("S0-1", NOW - timedelta(hours=3), "ok", "v1.4.1")])
        yield reader


@pytest.mark.parametrize(
    "query, names",
    [
        ("", "S0-1 S0-2 S1-1 S1-2 S2-1 S2-2 S3-1 S3-2"),
        ("?wave=lab&site=&state=&health=&release=&flagged=&q=", "S0-1 S0-2"),
        ("?state=silent", "S3-2"),
        ("?health=critical", "S0-1"),
        ("?release=v1.4.2", "S0-1 S0-2"),
        ("?flagged=true", "S0-1"),
        ("?site=S2", "S2-1 S2-2"),
        ("?q=s1", "S1-1 S1-2"),
    ],
)
def test_devices_are_listed_and_filtered(full: Reader, query: str, names: str) -> None:
    page = full.get(f"/devices{query}")
    assert [row.split()[0] for row in page.rows()] == names.split()


def test_a_row_says_state_and_why(full: Reader) -> None:
    page = full.get("/devices")
    assert "◆ failed" in page.of("device-S0-1") and "▲ critical" in page.of("device-S0-1")
    assert "■ held too many devices failed" in page.of("device-S1-1") and "v1.4.2" in page.of("device-S1-1")
    assert "○ silent" in page.of("device-S3-2") and "24 h ago" not in page.of("device-S0-1")


def test_nothing_found_is_said(full: Reader) -> None:
    assert "No device is so. Show all 8." in full.get("/devices?q=nothing").text


@pytest.mark.parametrize(
    "query", ["state=strange", "health=strange", "flagged=maybe", "cursor=nonsense!", "q=" + "x" * 64]
)
def test_what_cannot_be_asked_is_refused_on_a_page(full: Reader, query: str) -> None:
    page = full.get(f"/devices?{query}", status=400)
    assert page.ids["q"] is not None and page.heading


def test_long_lists_go_on(full: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconciler.server.dashboard.pages_devices.ROWS", 3)
    names, path, pages = list[str](), "/devices?q=s", 0
    while path:
        page = full.get(path)
        names += [row.split()[0] for row in page.rows()]
        following = [node.attributes["href"] for node in page.nodes if node.attributes.get("rel") == "next"]
        path, pages = (following[0] if following else ""), pages + 1
    assert pages == 3 and names == [f"S{site}-{number}" for site in range(4) for number in (1, 2)]


def test_a_device_says_what_it_is_and_why(full: Reader) -> None:
    page = full.get("/devices/S0-1")
    assert page.heading == "S0-1 ◆ failed"
    assert "It failed on v1.4.2, 50 min ago." in page.text and "Nobody has acknowledged it yet." in page.text
    assert "Booted slot v1.4.2" in page.text and "Other slot v1.4.1 Ran before v1.4.1" in page.text
    assert "camera ● ok ▲ critical no frames" in page.text
    assert "S0-1 failed on v1.4.2: critical for 1 h" in page.text
    assert "  image: v1.4.2 → v1.4.2: settled" in page.html


def test_health_is_drawn_and_written(full: Reader) -> None:
    page = full.get("/devices/S0-1")
    drawing = next(node for node in page.nodes if node.attributes.get("class") == "timeline")
    assert drawing.attributes["aria-label"] == "Health over 3 h: critical for 1 s; critical 1 time"
    assert [node.attributes["class"] for node in drawing.walk() if node.tag == "rect"] == ["rest", "good", "bad"]
    assert "2026-01-14 22:30 UTC ● ok 3 h v1.4.1 none" in page.text
    assert "▲ camera" in page.text


def test_a_device_that_nothing_is_on_record_of_does_not_contradict_itself(full: Reader) -> None:
    page = full.get("/devices/S2-1")
    assert "Its health is ok since 2025-12-16 01:30 UTC, and no change of it is on record." in page.text
    assert "not reported its health" not in page.text and "Nothing has happened" not in page.text
    assert "No event names it. An update that goes well is not an event of its own" in page.text
    assert full.get("/devices/S9-1", status=404).heading == "No such device"
    assert full.get("/devices/%3Cscript%3E", status=404).heading == "No such device"


def test_a_silent_device_has_a_next_step(full: Reader) -> None:
    said = full.get("/devices/S3-2").of("step")
    assert said.startswith("1 other device of its site answers: look at this device") and "journalctl" in said


@pytest.mark.parametrize(
    "q, where",
    [
        ("S0-1", "/devices/S0-1"),
        ("s0-1", "/devices/S0-1"),
        ("lab", "/waves/lab"),
        ("1-2", "/devices/S1-2"),
        ("v1.4.2", "/releases/v1.4.2"),
    ],
)
def test_a_search_that_finds_one_leads_there(full: Reader, q: str, where: str) -> None:
    answer = full.browser.get("/search", params={"q": q}, headers=PAGE)
    assert (answer.status_code, answer.headers["location"]) == (303, where)


def test_a_site_is_found_by_its_name(full: Reader) -> None:
    answer = full.browser.get("/search", params={"q": "s2"}, headers=PAGE)
    assert answer.headers["location"].endswith(("/sites/S2", "/devices?site=S2"))


def test_a_search_that_finds_several_lists_them(full: Reader) -> None:
    page = full.get("/search?q=s")
    assert page.ids["q"].attributes["value"] == "s"
    assert "8 devices" in page.text and "S3" in page.text
    assert "No site and no device has <zz> in its name." in full.get("/search?q=%3Czz%3E").text
    assert "Type the name" in full.get("/search").text


def test_a_drawing_never_leaves_its_frame() -> None:
    assert timeline([], NOW) is None
    rows = [HealthChange("D", NOW - timedelta(days=30), "ok", id=1), HealthChange("D", NOW, "critical", id=2)]
    rows.insert(1, HealthChange("D", NOW - timedelta(seconds=1), "warning", checks=(CheckSaid("a", "warning"),), id=3))
    drawn = timeline(rows, NOW)
    assert drawn is not None and [one.change.health for one in drawn.stretches] == ["ok", "warning", "critical"]
    for one in drawn.stretches:
        assert one.x >= 0 and one.x + one.width <= 1000.01 and one.width >= 2
