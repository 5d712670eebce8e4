"""The page of the rollout: the past from events, the present from the board, the future from the forecast; drawn and in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from reconciler.adapters.sql import open_store
from reconciler.cli.foresee import foreseer
from reconciler.controller.board import Board
from reconciler.model.events import Event, EventKind
from reconciler.model.plan import WaveState
from reconciler.ports import TransientError
from reconciler.server.dashboard.gantt import LEFT, WIDTH, gantt_of
from reconciler.server.dashboard.view_rollout import Rollout, Span, rollout_of
from reconciler.server.foreseen import Ahead, Barred, Course, Foreseen, Outlook
from tests.controller.staging import Stage, desired, observed
from tests.server.inside import PAGE, inside
from tests.server.service import NOW

HOUR = timedelta(hours=1)
CANARY = ("canary", "v1.4.2")


def happened(
    kind: EventKind, before_h: float, wave: str | None = "canary", release: str = "v1.4.2", **more: Any
) -> Event:
    at = NOW - before_h * HOUR
    return Event(None, at, kind, f"{kind} {at}", wave=wave, release=release, **{"commit": "c1"} | more)


def foreseen(*places: Ahead, earliest: tuple[Ahead, ...] | None = None, cut_off: bool = False) -> Outlook:
    likely = Course(NOW + 100 * HOUR, cut_off, places)
    early = likely if earliest is None else Course(NOW + 90 * HOUR, False, earliest)
    return Outlook(Foreseen(NOW, "c1", 0 if earliest is None else 1, 0, likely, early))


def ahead(
    wave: str, release: str, starts: float | None, arrived: float | None, proven: float | None, **more: Any
) -> Ahead:
    def at(hours: float | None) -> datetime | None:
        return None if hours is None else NOW + hours * HOUR

    return Ahead(wave, release, 2, at(starts), at(arrived), at(proven), None, 2, **more)


def board(**images: str) -> Board:
    stage = Stage()
    return stage.tick(*stage.everybody(**images))


def lane(rollout: Rollout, wave: str = "canary") -> tuple[Span, ...]:
    return next(one.spans for one in rollout.lanes if one.wave == wave and one.app is None)


def said(spans: tuple[Span, ...]) -> list[tuple[str, float, float | None, bool]]:
    """(state, hours from now, hours to, foreseen)."""
    return [
        (one.state, (one.since - NOW) / HOUR, None if one.until is None else (one.until - NOW) / HOUR, one.ahead)
        for one in spans
    ]


def test_the_past_is_what_the_events_say() -> None:
    events = [
        happened(EventKind.WAVE_OPENED, 60, release="v1.4.1"),
        happened(EventKind.WAVE_SOAKING, 58, release="v1.4.1"),
        happened(EventKind.WAVE_SOAKED, 10, release="v1.4.1"),
        happened(EventKind.WAVE_COMPLETE, 10, release="v1.4.1"),
        happened(EventKind.COMMIT_ACCEPTED, 5, None, ""),
        happened(EventKind.WAVE_OPENED, 4),
    ]
    made = rollout_of(board(), events, Outlook(None), NOW)
    assert said(lane(made)) == [("rolling", -60, -58, False), ("soaking", -58, -10, False), ("rolling", -4, 0, False)]
    marks = next(one.marks for one in made.lanes if one.wave == "canary")
    assert [(mark.what, mark.release) for mark in marks] == [("proven", "v1.4.1"), ("complete", "v1.4.1")]
    assert made.commits == ((NOW - 5 * HOUR, "c1"),) or made.since > NOW - 5 * HOUR
    row = next(row for row in made.rows if (row.wave, row.release) == CANARY)
    assert row.began.at == NOW - 4 * HOUR and not row.began.ahead and row.proven.at is None


def test_a_release_that_nobody_asks_for_any_more_ends_with_the_next_commit() -> None:
    events = [
        happened(EventKind.WAVE_OPENED, 30, release="v1.4.0"),
        happened(EventKind.GATE_FAILED, 20, release="v1.4.0"),
        happened(EventKind.COMMIT_ACCEPTED, 12, None, ""),
    ]
    made = rollout_of(board(), events, Outlook(None), NOW)
    assert said(lane(made)) == [("rolling", -30, -20, False), ("failed", -20, -12, False)]


def test_the_future_is_the_forecasts() -> None:
    outlook = foreseen(
        ahead("lab", "v1.4.2", 1, 2, 3), ahead(*CANARY, 3, 20, 68), ahead("all", "v1.4.1", None, None, None)
    )
    made = rollout_of(board(), [], outlook, NOW)
    assert said(lane(made)) == [("waiting", 0, 3, True), ("rolling", 3, 20, True), ("soaking", 20, 68, True)]
    assert [row.wave for row in made.moving if row.release.startswith("v")][:2] == ["lab", "canary"]
    assert made.until >= NOW + 68 * HOUR
    row = next(row for row in made.rows if (row.wave, row.release) == CANARY)
    assert (row.began.at, row.arrived.at, row.proven.at) == (NOW + 3 * HOUR, NOW + 20 * HOUR, NOW + 68 * HOUR)
    assert row.began.ahead and row.arrived.ahead and row.proven.ahead


def test_a_proof_before_the_last_device_is_there_is_shown_in_its_place() -> None:
    made = rollout_of(board(), [], foreseen(ahead(*CANARY, 1, 30, 10)), NOW)
    assert said(lane(made)) == [("waiting", 0, 1, True), ("rolling", 1, 10, True), ("rolling", 10, 30, True)]
    marks = next(one.marks for one in made.lanes if one.wave == "canary")
    assert [(mark.what, mark.at, mark.ahead) for mark in marks] == [("proven", NOW + 10 * HOUR, True)]


def test_what_never_passes_has_no_end_and_says_why() -> None:
    barred = (Barred("gate-unresolved", "too many are silent"),)
    made = rollout_of(board(), [], foreseen(ahead(*CANARY, 1, 2, None, barred=barred)), NOW)
    assert said(lane(made))[-1] == ("waiting", 2, None, True)
    assert [(row.wave, row.release) for row in made.stuck] == [CANARY] and made.ends_at is None


def test_silent_devices_have_an_earliest_instant_beside_the_likely_one() -> None:
    outlook = foreseen(ahead(*CANARY, 1, 20, 60), earliest=(ahead(*CANARY, 1, 10, 50),))
    made = rollout_of(board(), [], outlook, NOW)
    row = next(row for row in made.rows if (row.wave, row.release) == CANARY)
    assert row.began.earliest is None and row.proven.earliest == NOW + 50 * HOUR


@pytest.mark.parametrize("past, days", [(None, 7), (1, 1), (90, 90)])
def test_how_far_it_looks_back(past: int | None, days: int) -> None:
    made = rollout_of(board(), [], Outlook(None), NOW, past)
    assert NOW - made.since == timedelta(days=days)


def test_it_looks_back_to_what_is_under_way() -> None:
    made = rollout_of(board(), [happened(EventKind.WAVE_OPENED, 20)], Outlook(None), NOW)
    assert made.since == NOW - 22 * HOUR
    made = rollout_of(board(), [happened(EventKind.WAVE_OPENED, 24 * 80)], Outlook(None), NOW)
    assert made.since == NOW - timedelta(days=30)


@pytest.mark.parametrize("hours", [0.5, 5, 50, 500, 5000])
def test_everything_lies_in_the_picture_and_ticks_are_few(hours: float) -> None:
    events = [happened(EventKind.WAVE_OPENED, hours), happened(EventKind.WAVE_SOAKING, hours / 2)]
    events += [happened(EventKind.COMMIT_ACCEPTED, hours / 3, None, "")]
    made = rollout_of(board(), events, foreseen(ahead(*CANARY, None, None, hours)), NOW)
    drawn = gantt_of(made)
    assert 3 <= len(drawn.ticks) <= 15
    assert [tick.x for tick in drawn.ticks] == sorted(tick.x for tick in drawn.ticks)
    assert all(LEFT <= tick.x <= WIDTH for tick in drawn.ticks)
    bars = [bar for track in drawn.tracks for bar in track.bars]
    assert bars and all(bar.x >= LEFT and bar.x + bar.width <= WIDTH + 2 for bar in bars)
    assert LEFT < drawn.now < WIDTH and {bar.ahead for bar in bars} == {True, False}


# ---------------------------------------------------------------- the page


@dataclass
class Site:
    """The app over a stage, and a browser on the controller's own machine."""

    stage: Stage
    browser: httpx.Client

    def page(self, path: str = "/rollout", status: int = 200) -> str:
        answer = self.browser.get(path, headers=PAGE)
        assert answer.status_code == status, answer.text
        return answer.text


@contextmanager
def shown(tmp_path: Path, stage: Stage | None = None, **options: Any) -> Iterator[Site]:
    other = open_store(tmp_path / "store.db")
    stage = stage or Stage()
    stage.store, stage.boards._store = other, other
    options = {"foresee": foreseer(other.export, lambda: NOW)} | options
    with inside(tmp_path, boards=stage.boards, local=True, now=lambda: NOW, **options) as app:
        yield Site(stage, app.browser())
    other.close()


def words(page: str) -> str:
    """What a page says, without its markup."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.partition("<main")[2])).strip()


def test_the_page_tells_of_a_rollout_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    with shown(tmp_path) as site:
        devices = site.stage.everybody(S0_1="v1.4.2", S0_2="v1.4.2")
        devices = [
            one.model_copy(update={"image_since": NOW - HOUR / 2, "health_since": NOW - HOUR / 2})
            if one.name.startswith("S0")
            else one
            for one in devices
        ]
        site.stage.store.observe(devices, sequences={})
        site.stage.store.add_events(
            site.stage.store.begin_epoch(),
            [
                happened(EventKind.COMMIT_ACCEPTED, 3, None, ""),
                happened(EventKind.WAVE_OPENED, 2, "lab"),
                happened(EventKind.WAVE_SOAKING, 0.5, "lab"),
            ],
        )
        site.stage.tick(*devices)
        page = site.page()
        text = words(page)
        assert "v1.4.2: rolling from 2026-01-14 23:30 UTC until 2026-01-15 01:00 UTC" in text
        assert "v1.4.2: soaking expected from 2026-01-15 01:30 UTC until 2026-01-15 02:00" in text
        assert "The last is likely through" in text
        assert "the soak runs" in text and "as many are" not in text
        assert "no device, network or controller fails" in text
        assert page.count("<h1") == 1 and 'aria-current="page">Rollout' in page
        assert not re.search(r'\sstyle="|<style|\son[a-z]+="|<script(?![^>]*\ssrc=)', page), (
            "the CSP lets none of it through"
        )


def test_what_is_typed_is_looked_back_and_nothing_else_is_taken(tmp_path: Path) -> None:
    with shown(tmp_path) as site:
        site.stage.tick(*site.stage.everybody())
        assert '<strong aria-current="true">30 days</strong>' in site.page("/rollout?past=30")
        for wrong in ("past=-1", "past=x", "past="):
            site.page(f"/rollout?{wrong}", 400)


def test_without_a_plan_without_a_forecast_and_without_a_store(tmp_path: Path) -> None:
    def broken(_board: Board) -> Foreseen:
        raise TransientError("the <store> does not answer")

    with shown(tmp_path, foresee=broken) as site:
        assert "Nothing is planned yet" in site.page()
        site.stage.tick(*site.stage.everybody())
        assert "There is no forecast now: the &lt;store&gt; does not answer" in site.page()
    with shown(tmp_path, foresee=None) as site:
        site.stage.tick(*site.stage.everybody())
        assert "makes no forecasts" in site.page()
        site.stage.store.close()


def test_a_rollout_of_which_no_window_is_seen_has_its_picture(tmp_path: Path) -> None:
    def broken(_board: Board) -> Foreseen:
        raise TransientError("not now")

    for number, foresee in enumerate((None, broken)):
        (tmp_path / str(number)).mkdir()
        with shown(tmp_path / str(number), foresee=foresee) as site:
            site.stage.store.add_events(site.stage.store.begin_epoch(), [happened(EventKind.WAVE_OPENED, 2, "lab")])
            site.stage.tick(*site.stage.everybody(S0_1="v1.4.2"))
            page = site.page("/rollout?past=90")
            assert 'class="span rolling"' in page and "a window opens" not in page


def test_a_silent_device_and_a_stuck_wave_are_told(tmp_path: Path) -> None:
    with shown(tmp_path) as site:
        devices = {one.name: one for one in site.stage.everybody()}
        for name in ("S0-1", "S0-2"):
            devices[name] = observed(name, last_seen=NOW - timedelta(days=2))
        site.stage.store.observe(list(devices.values()), sequences={})
        site.stage.tick(*devices.values())
        text = words(site.page())
        assert "lab with v1.4.2 (silent: offered when the device reports)" in text
        assert "do not come to their proof without somebody" in text and "not by itself" in text
        assert "2 devices that are silent now stay silent" in text and "if silent devices answer" in text


def test_names_from_git_are_text_and_nothing_more(tmp_path: Path) -> None:
    fleet = desired()
    evil = "<script>alert(1)</script>"
    waves = [
        wave.model_copy(update={"name": evil if wave.name == "canary" else wave.name}) for wave in fleet.waves.waves
    ]
    fleet = type(fleet)(
        **{
            name: getattr(fleet, name) for name in fleet.__dataclass_fields__ if name != "waves"
        },
        waves=fleet.waves.model_copy(update={"waves": tuple(waves)}),
    )  # fmt: skip
    with shown(tmp_path, Stage(fleet)) as site:
        site.stage.tick(*site.stage.everybody())
        page = site.page()
        assert evil not in page and "&lt;script&gt;" in page


def test_states_of_waves_have_a_look() -> None:
    css = Path("reconciler/server/dashboard/static/rollout.css").read_text(encoding="utf-8")
    for state in (WaveState.ROLLING, WaveState.SOAKING, WaveState.ROLLING_BACK, WaveState.FAILED, WaveState.WAITING):
        assert f".span.{state.value}" in css
    for state in (WaveState.UNRESOLVED, WaveState.PAUSED):
        assert f".span.{state.value}" in css


@pytest.mark.slow
def test_a_store_that_is_down_hides_the_past_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(tmp_path) as site:
        site.stage.tick(*site.stage.everybody())

        def down(*_: object, **__: object) -> None:
            raise TransientError("the store does not answer")

        monkeypatch.setattr("reconciler.adapters.sql.SqlStore.events", down)
        text = words(site.page())
        assert "The store does not answer now: what was is not shown." in text and "The same in words" in text
        monkeypatch.setattr("reconciler.adapters.sql.SqlStore.accepted_commits", down)
        for path in ("/commits", "/commits/c1"):
            assert "does not answer now" in words(site.page(path, 503))


def test_lanes_of_which_nothing_is_seen_are_left_out() -> None:
    made = rollout_of(board(), [happened(EventKind.WAVE_OPENED, 20)], foreseen(ahead("lab", "v1.4.2", 1, 2, 3)), NOW)
    assert len(made.lanes) == 6
    assert [(track.name, track.under) for track in gantt_of(made).tracks] == [("lab", "image"), ("canary", "image")]


def test_more_history_than_is_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconciler.server.dashboard.pages_rollout._EVENTS", 3)
    with shown(tmp_path) as site:
        site.stage.store.add_events(
            site.stage.store.begin_epoch(), [happened(EventKind.WAVE_OPENED, hours) for hours in (9, 8, 7, 6)]
        )
        site.stage.tick(*site.stage.everybody())
        assert "More happened than is read for one page" in words(site.page("/rollout?past=1"))


def test_words_in_a_bar_stand_clear_of_marks() -> None:
    events = [
        happened(EventKind.WAVE_OPENED, 50),
        happened(EventKind.GATE_FAILED, 40),
        happened(EventKind.WAVE_OPENED, 20),
    ]
    (track,) = gantt_of(rollout_of(board(), events, Outlook(None), NOW)).tracks
    rolling, failed, _again = track.bars
    (sign,) = track.signs
    assert sign.x == failed.x and failed.text_x >= sign.x + 9
    assert rolling.text and rolling.text_x + len(rolling.text) * 6 <= sign.x - 5


def test_windows_that_are_to_open_are_shown_where_they_can_be_seen() -> None:
    nights = tuple((NOW + (24 * night + 1) * HOUR, NOW + (24 * night + 3) * HOUR) for night in range(-1, 14))
    for hours, seen in ((30, 2), (24 * 40, 0)):
        outlook = foreseen(ahead(*CANARY, 1, 2, hours))
        assert outlook.foreseen is not None
        outlook = replace(outlook, foreseen=replace(outlook.foreseen, windows={"canary": nights}))
        made = rollout_of(board(), [], outlook, NOW, 1)
        (track,) = gantt_of(made).tracks
        assert len(track.windows) == seen
        assert all(x >= LEFT and x + width <= WIDTH + 0.1 for x, width, _ in track.windows)


def test_a_wave_that_has_begun_does_not_wait_for_its_next_devices() -> None:
    made = rollout_of(board(), [happened(EventKind.WAVE_OPENED, 4)], foreseen(ahead(*CANARY, 3, 20, 68)), NOW)
    assert said(lane(made)) == [("rolling", -4, 0, False), ("rolling", 0, 20, True), ("soaking", 20, 68, True)]
