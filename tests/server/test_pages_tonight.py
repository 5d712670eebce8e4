"""What the front page says of the next 24 hours: by the forecast where there is one, by the clock where there is not."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from reconciler.adapters.sql import open_store
from reconciler.cli.foresee import foreseer
from reconciler.controller.board import Board
from reconciler.ports import TransientError
from reconciler.server.dashboard.view_tonight import Basis, tonight_of
from reconciler.server.foreseen import Ahead, Course, Foreseen, Moves, Outlook
from tests.controller.staging import Stage, desired
from tests.server.pages import Page, Reader, reading
from tests.server.service import NOW, running
from tests.server.test_stream import Listener
from tests.support.processes import wait_until

HOUR = timedelta(hours=1)
NIGHT = (NOW + HOUR / 2, NOW + 2.5 * HOUR)


def board() -> Board:
    stage = Stage(desired(12))
    return stage.tick(*stage.everybody())


def moves(wave: str, release: str, devices: int, first_h: float, last_h: float, **more: object) -> Moves:
    given = {"window": NIGHT, "begin": devices, "arrive": devices} | more
    return Moves(wave, release, first_at=NOW + first_h * HOUR, last_at=NOW + last_h * HOUR, **given)  # type: ignore[arg-type]


def place(wave: str, release: str, starts: float | None = None, proven: float | None = None) -> Ahead:
    def at(hours: float | None) -> datetime | None:
        return None if hours is None else NOW + hours * HOUR

    return Ahead(wave, release, 2, at(starts), None, at(proven), None, 0)


def outlook(*several: Moves, places: tuple[Ahead, ...] = (), silent: int = 0) -> Outlook:
    course = Course(NOW + 100 * HOUR, False, places)
    return Outlook(Foreseen(NOW, "c1", silent, 0, course, course, {}, several))


def tonight(page: Page) -> str:
    return next(node.words() for node in page.nodes if node.attributes.get("aria-labelledby") == "tonight-title")


def settled(reader: Reader) -> Page:
    """The front page once its forecast has been made."""
    wait_until(lambda: "not computed yet" not in tonight(reader.get("/")))
    return reader.get("/")


def test_waves_are_told_with_their_devices_and_windows() -> None:
    several = (moves("lab", "v1.4.2", 2, 0.5, 1.1), moves("canary", "v1.4.2", 1200, 2, 30, arrive=1100))
    made = tonight_of(board(), (), outlook(*several, places=(place("lab", "v1.4.2", 0.5, 2),)), NOW)
    assert made.basis is Basis.FORECAST
    assert made.summary == "Foreseen to begin: v1.4.2 on about 1,202 devices (waves lab, canary)."
    assert [(due.at, due.text) for due in made.due] == [
        (NOW + HOUR / 2, "wave lab: about 2 devices begin v1.4.2"),
        (NOW + 2 * HOUR, "wave canary: about 1,200 devices begin v1.4.2"),
        (NOW + 2 * HOUR, "wave lab is through its soak of v1.4.2"),
    ]
    assert made.due[0].detail == "in the window 02:00–04:00 UTC, the last of them there at 2026-01-15 02:36 UTC"


def test_what_is_past_or_later_than_a_day_is_not_of_tonight() -> None:
    several = (moves("lab", "v1.4.2", 2, -3, -2), moves("all", "v1.4.2", 7, 25, 27))
    made = tonight_of(board(), (), outlook(*several), NOW)
    assert made.summary == "Nothing is foreseen to begin." and made.due == ()


def test_what_does_not_move_stays_held_and_until_when_is_said() -> None:
    places = (place("canary", "v1.4.2", starts=48.5),)
    made = tonight_of(board(), (), outlook(moves("lab", "v1.4.2", 2, 0.5, 1), places=places), NOW)
    (stay,) = made.stays
    assert (stay.wave, stay.subject, stay.devices, stay.until, stay.likely) == (
        "canary", "v1.4.2", 2, NOW + 48.5 * HOUR, True,
    )  # fmt: skip
    assert stay.words == "an earlier wave comes first"
    (stay,) = tonight_of(board(), (), outlook(moves("lab", "v1.4.2", 2, 0.5, 1)), NOW).stays
    assert (stay.until, stay.likely) == (None, False), "no end is foreseen"


def test_the_page_tells_the_forecast_that_is_really_made(tmp_path: Path) -> None:
    other = open_store(tmp_path / "store.db")
    with reading(tmp_path, foresee=foreseer(other.export, lambda: NOW)) as reader:
        reader.api.stage.desired = desired(12)
        devices = reader.api.stage.everybody()
        reader.api.stage.store.observe(devices, sequences={})
        reader.api.stage.tick(*devices)
        first = tonight(reader.get("/"))
        assert "The forecast is not computed yet." in first and "a maintenance window opens for 2 devices" in first
        text = tonight(settled(reader))
        assert "Foreseen to begin: v1.4.2 on about 3 devices (waves lab, canary)." in text
        assert "wave lab: about 2 devices begin v1.4.2: at S0, in the window 02:00–04:00 UTC" in text
        assert "Then, 2026-01-18 02:18 UTC: wave canary is through its soak of v1.4.2" in text
        assert "As foreseen now, if devices stay as healthy as they are." in text
        rollout = reader.get("/rollout").text
        assert "2026-01-18 02:18 UTC" in rollout, "the page of the rollout tells the same"
    other.close()


def test_an_open_page_can_tell_that_another_forecast_is_there(tmp_path: Path) -> None:
    with reading(tmp_path, foresee=lambda board: outlook().foreseen) as reader:
        reader.api.stage.tick(*reader.api.stage.everybody())
        before = reader.get("/").html
        assert 'data-forecast="0"' in before
        assert "Nothing is foreseen to begin." in tonight(settled(reader))
        assert 'data-forecast="1"' in reader.get("/").html
        told = reader.api.client.get("/v1/events/stream").text
        assert 'event: forecast\ndata: {"number":1}\n\n' in told


@pytest.mark.slow
def test_why_there_is_none_is_said(tmp_path: Path) -> None:
    def never(_board: Board) -> Foreseen:
        raise TransientError("<b>the store</b> does not answer")

    with reading(tmp_path, foresee=never) as reader:
        reader.api.stage.tick(*reader.api.stage.everybody())
        page = settled(reader)
        assert "There is no forecast now: <b>the store</b> does not answer. This is what is due" in tonight(page)
        assert "<b>the store" not in page.html
    with reading(tmp_path / "other") as reader:
        reader.api.stage.tick(*reader.api.stage.everybody())
        assert "No forecast is made here" in tonight(reader.get("/"))


def test_a_forecast_of_another_commit_is_not_told(tmp_path: Path) -> None:
    seen = outlook(moves("lab", "v1.4.2", 2, 0.5, 1)).foreseen
    assert seen is not None
    with reading(tmp_path, foresee=lambda board: replace(seen, commit="c0")) as reader:
        reader.api.stage.tick(*reader.api.stage.everybody())
        assert "Foreseen" not in tonight(settled(reader))


@pytest.mark.slow
@pytest.mark.parametrize(
    "silent, said", [(1, "1 device that is silent stays so"), (3, "3 devices that are silent stay so")]
)
def test_what_it_takes_for_granted_is_said(tmp_path: Path, silent: int, said: str) -> None:
    with reading(tmp_path, foresee=lambda board: outlook(silent=silent).foreseen) as reader:
        reader.api.stage.tick(*reader.api.stage.everybody())
        assert said in tonight(settled(reader))


def test_whoever_listens_is_told_when_the_forecast_has_been_made(tmp_path: Path) -> None:
    may_end = threading.Event()

    def slowly(_board: Board) -> Foreseen:
        assert may_end.wait(250)
        seen = outlook().foreseen
        assert seen is not None
        return seen

    stage = Stage()
    stage.tick(*stage.everybody())
    with running(tmp_path, boards=stage.boards, foresee=slowly, local=True) as service:
        listener = Listener(service, {}, "/events/stream")
        try:
            listener.wait("board")
            page = {"Accept": "text/html"}
            assert "not computed yet" in service.client.get("/", headers=page).text
            may_end.set()
            (told,) = listener.wait("forecast")
            assert told.data == {"number": 1}
            assert "Nothing is foreseen to begin." in service.client.get("/", headers=page).text
        finally:
            listener.close()
            stage.boards.close()
            assert listener.ended.wait(60)
