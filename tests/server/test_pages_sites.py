"""The grid of sites, the same as a list, and the page of one site."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from reconciler.controller.board import DeviceState
from reconciler.server.dashboard import pages_sites, view_sites
from reconciler.server.dashboard.view_sites import Chosen, grid_of
from reconciler.server.paging import cursor_of
from tests.controller.staging import Stage, desired, observed
from tests.server.pages import Page, Reader, reading
from tests.server.service import NOW
from tests.server.test_api import filled


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A fleet with a device that failed, one that is silent, and history."""
    with reading(tmp_path_factory.mktemp("sites")) as reader:
        filled(reader.api)
        yield reader


def cells(page: Page) -> dict[str, str]:
    """Address → class of each cell of the grid."""
    grids = [node for node in page.nodes if "grid" in node.attributes.get("class", "").split()]
    found = [node for grid in grids for node in grid.walk() if node.tag == "a"]
    return {node.attributes["href"]: node.attributes["class"] for node in found}


def test_each_site_is_a_cell_with_its_state_in_its_wave(full: Reader) -> None:
    page = full.get("/sites")
    assert cells(page) == {"/sites/S0": "failed", "/sites/S1": "held", "/sites/S2": "good", "/sites/S3": "silent"}
    assert "4 sites: ◆ 1 failed, ○ 1 silent, ■ 1 held, ● 1 good." in page.text
    assert "S0, failed" in page.text, "a cell is read aloud with its state"
    assert [row.split()[:2] for row in page.rows()][:2] == [["S0", "lab"], ["S3", "all"]]


@pytest.mark.parametrize(
    "query, names",
    [
        ("wave=all", "S2 S3"),
        ("state=silent", "S3"),
        ("q=s1", "S1"),
        ("wave=&state=&q=", "S0 S1 S2 S3"),
        ("wave=nothing", ""),
    ],
)
def test_the_grid_and_the_list_are_cut_down_alike(full: Reader, query: str, names: str) -> None:
    assert [path.rpartition("/")[2] for path in cells(full.get(f"/sites?{query}"))] == names.split()
    listed = full.get(f"/sites?view=list&{query}")
    assert [row.split()[0] for row in listed.rows()] == names.split()


def test_what_was_chosen_stays_chosen(full: Reader) -> None:
    page = full.get("/sites?wave=all&state=silent&q=S")
    chosen = [node.attributes["value"] for node in page.nodes if "selected" in node.attributes]
    assert chosen == ["all", "silent"] and page.ids["of-name"].attributes["value"] == "S"
    assert "No site is like that" in full.get("/sites?q=nowhere").text
    for wrong in ("state=strange", "view=map", f"q={'x' * 64}", "view=list&cursor=!"):
        assert full.get(f"/sites?{wrong}", 400)


def test_the_list_is_read_page_by_page(full: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconciler.server.dashboard.pages_sites._PAGE", 2)
    first = full.get("/sites?view=list&q=s")
    (onward,) = [link for link in first.links if "cursor=" in link]
    second = full.get(onward)
    assert [row.split()[0] for page in (first, second) for row in page.rows()] == ["S0", "S1", "S2", "S3"]
    assert not [link for link in second.links if "cursor=" in link]


def test_a_site_says_what_it_is_and_why(full: Reader) -> None:
    page = full.get("/sites/S0")
    assert page.heading == "S0" and "1 device failed" in page.text and "02:00–04:00 local time" in page.text
    assert {"/devices/S0-1", "/devices/S0-2", "/waves/lab", "/releases/v1.4.2"} <= set(page.links)
    said = full.api.get("/v1/explain/S0", kind="site")["text"]
    explained = next(node for node in page.nodes if node.tag == "pre")
    assert said and all(line.strip() in explained.inside[0] for line in said)  # type: ignore[operator]
    assert "no such site" in full.get("/sites/S9", 404).text.lower()


def test_before_anything_is_planned_and_where_there_are_no_sites(tmp_path: Path) -> None:
    with reading(tmp_path) as reader:
        assert "Nothing is planned yet" in reader.get("/sites").text
        assert "Nothing is planned yet" in reader.get("/sites/S0").text
        reader.api.stage.desired = replace(desired(), sites={})
        reader.api.stage.tick()
        assert "Git names no site yet" in reader.get("/sites").text
        assert reader.get("/sites?view=list").heading == "Sites, as a list"


def timed(reader: Reader, path: str) -> tuple[str, float]:
    """A page, and how many seconds the service worked for it."""
    began = time.process_time()
    answer = reader.browser.get(path, headers={"Accept": "text/html"})
    assert answer.status_code == 200
    return answer.text, time.process_time() - began


@pytest.mark.slow
def test_five_thousand_sites_are_one_page(tmp_path: Path) -> None:
    with reading(tmp_path) as reader:
        reader.api.stage.desired = desired(5000)
        devices = {one.name: one for one in reader.api.stage.everybody()}
        for number in range(10, 200):
            devices[f"S{number}-1"] = observed(f"S{number}-1", last_seen=NOW - timedelta(days=1))
        reader.api.stage.tick(*devices.values())
        reader.get("/account")
        html, took = timed(reader, "/sites")
        page = Page(html)
        assert len(cells(page)) == 5000 and len(html) < 600_000 and took < 2
        assert "5,000 sites: ○ 190 silent" in page.text and "and 170 more" in page.text
        assert len(cells(reader.get("/sites?state=silent"))) == 190


def blocks(page: Page) -> dict[str, str]:
    """What each block of sites says → its address."""
    found = [node for grid in page.nodes if grid.attributes.get("class") == "blocks" for node in grid.walk()]
    return {node.words(): node.attributes["href"] for node in found if node.tag == "a"}


def test_a_wave_that_is_too_large_is_shown_in_blocks_that_lead_to_their_sites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_sites, "_NAMED", 5)
    monkeypatch.setattr(
        pages_sites, "grid_of", lambda board, chosen, after: grid_of(board, chosen, after, most=20, block=12)
    )
    with reading(tmp_path) as reader:
        reader.api.stage.desired = desired(40)
        devices = {one.name: one for one in reader.api.stage.everybody()}
        devices["S9-2"] = observed("S9-2", last_seen=NOW - timedelta(days=1))
        reader.api.stage.tick(*devices.values())
        page = reader.get("/sites")
        assert set(cells(page)) == {"/sites/S0", "/sites/S1"}, "small waves have their cells"
        said = list(blocks(page))
        assert [line.split(": ", 1)[0] for line in said] == [
            "S10 to S20 12 sites", "S21 to S31 12 sites", "S32 to S7 12 sites", "S8 to S9 2 sites",
        ]  # fmt: skip
        assert said[-1].endswith("2 sites: ○ 1 silent, ● 1 good") and "silent" not in said[0]
        assert "38 sites" in page.text and page.rows()[0].startswith("S9 "), "the worst by name"
        seen = [path for href in blocks(page).values() for path in cells(reader.get(href))]
        names = sorted(f"S{number}" for number in range(2, 40))
        assert [path.rpartition("/")[2] for path in seen] == names, "each site is in one block, in order"
        # Page after page, from the first block, leads to the same.
        href, walked = next(iter(blocks(page).values())), list[str]()
        while href:
            there = reader.get(href)
            walked += cells(there)
            href = next((link for link in there.links if "cursor=" in link), "")
        assert walked == seen
        chosen = reader.get("/sites?wave=all&state=good&q=s")
        assert all("wave=all&state=good&q=s&cursor=" in href for href in blocks(chosen).values())
        assert sum(len(cells(reader.get(href))) for href in blocks(chosen).values()) == 37


def test_what_a_block_leads_to_may_be_gone(full: Reader) -> None:
    page = full.get(f"/sites?wave=all&cursor={cursor_of('S9')}")
    assert "There are no more" in page.text and "/sites?wave=all" in page.links
    assert full.get("/sites?cursor=!", 400)


def test_a_few_sites_in_no_wave_are_cells_and_their_number_is_said() -> None:
    stage = Stage(desired(30))
    board = stage.tick(*stage.everybody())
    assert board.rows is not None
    none = replace(board.rows, site_wave=np.full_like(board.rows.site_wave, -1))
    grid = grid_of(replace(board, rows=none), Chosen(), most=20)
    assert [(group.wave, group.total, len(group.sites)) for group in grid.groups] == [(None, 30, 30)]
    assert grid.of_state(DeviceState.GOOD) == 28


@pytest.mark.slow
def test_a_hundred_thousand_sites_are_one_readable_page(tmp_path: Path) -> None:
    with reading(tmp_path) as reader:
        fleet = desired(100_000)
        devices = {name: observed(name) for spec in fleet.sites.values() for name in spec.devices}
        for number in range(10, 2000):
            devices[f"S{number}-1"] = observed(f"S{number}-1", last_seen=NOW - timedelta(days=1))
        reader.api.stage.desired = fleet
        reader.api.stage.tick(*devices.values())
        reader.get("/account")
        for path in ("/sites", "/sites?state=good", "/sites?q=9", "/sites?wave=all"):
            html, took = timed(reader, path)
            page = Page(html)
            assert len(html) < 100_000 and len(page.nodes) < 2_500 and took < 1, (
                path,
                len(html),
                len(page.nodes),
                took,
            )
        page = reader.get("/sites")
        assert len(blocks(page)) == 100 and "○ 1,990 silent" in page.text and "and 1,970 more" in page.text
        html, took = timed(reader, next(iter(blocks(page).values())))
        assert len(cells(Page(html))) == 1000 and len(html) < 200_000 and took < 1
        assert len(cells(reader.get("/sites?state=silent"))) == 1990


def test_a_name_that_somebody_typed_is_text(full: Reader) -> None:
    page = full.get("/sites?q=%22%3E%3Cscript%3E")
    assert "<script>" not in page.html.replace("<script src", "")
