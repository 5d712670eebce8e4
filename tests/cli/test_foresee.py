"""The forecast behind the page of the rollout: here and in a process of its own it is the same, and the forecast's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest

from reconciler.cli.foresee import foreseer
from reconciler.model.observed import DeviceObservation
from reconciler.ports import Export, TransientError
from reconciler.simulate.forecast import forecast
from reconciler.simulate.trace import calendar_of
from tests.controller.staging import SHARED, Stage, observed


def stage(silent: bool = False) -> tuple[Stage, list[DeviceObservation]]:
    made = Stage()
    devices = made.everybody()
    if silent:
        devices[2] = observed(devices[2].name, last_seen=made.now - timedelta(days=1))
    return made, devices


def exporting(devices: list[DeviceObservation]) -> object:
    @contextmanager
    def export() -> Iterator[Export]:
        yield Export(1, SHARED, (one.model_dump_json(by_alias=True, exclude_none=True) for one in devices))

    return export


@pytest.mark.slow
@pytest.mark.parametrize("silent", [False, True])
def test_it_is_what_the_forecast_says_here_and_aside(silent: bool) -> None:
    made, devices = stage(silent)
    board = made.tick(*devices)
    here = foreseer(exporting(devices), lambda: made.now)(board)  # type: ignore[arg-type]
    observed = SHARED.model_copy(update={"devices": tuple(devices), "at": made.now})
    for course, how in ((here.likely, "stay"), (here.earliest, "return")):
        wanted = calendar_of(forecast(made.desired, observed, made.now, silent=how))  # type: ignore[arg-type]
        assert [(one.wave, one.release, one.proven_at) for one in course.places] == [
            (one.wave, one.key, one.proven_at) for one in wanted
        ]
        assert not course.cut_off
    # 02:00 to 04:00 in UTC, two weeks of it, in every wave.
    assert set(here.windows) == {"lab", "canary", "all"} and len(here.windows["lab"]) == 14
    assert here.windows["all"][0] == (made.now + timedelta(minutes=30), made.now + timedelta(hours=2, minutes=30))
    assert (here.silent, here.commit, here.at) == (int(silent), "c1", made.now)
    assert (here.likely == here.earliest) is not silent
    aside = foreseer(exporting(devices), lambda: made.now, many=1)(board)  # type: ignore[arg-type]
    assert aside == here


@pytest.mark.slow
def test_a_child_that_fails_is_no_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    made, devices = stage()
    board = made.tick(*devices)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(TransientError, match=r"not finished \(its process ended\)"):
        foreseer(exporting(devices), lambda: made.now, many=1)(board)  # type: ignore[arg-type]
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(TransientError, match=r"not finished \(No such file"):
        foreseer(exporting(devices), lambda: made.now, many=1)(board)  # type: ignore[arg-type]
    monkeypatch.undo()
    strange = [devices[0].model_construct(**{**devices[0].__dict__, "name": "A" * 10_000})]
    with pytest.raises(TransientError, match=r"not finished \(\S"):
        foreseer(exporting(strange), lambda: made.now, many=1)(board)  # type: ignore[arg-type]
    with pytest.raises(TransientError, match="nothing was planned"):
        foreseer(exporting(devices), lambda: made.now)(replace(board, rows=None))  # type: ignore[arg-type]


def test_what_begins_is_counted_by_wave_and_window() -> None:
    made, devices = stage()
    seen = foreseer(exporting(devices), lambda: made.now)(made.tick(*devices))  # type: ignore[arg-type]
    night = seen.windows["lab"][0]
    lab, canary = seen.moves[0], [one for one in seen.moves if one.wave == "canary"]
    assert (lab.wave, lab.release, lab.window, lab.begin, lab.arrive) == ("lab", "v1.4.2", night, 2, 2)
    assert lab.first_at == night[0] and night[0] < lab.last_at < night[1]
    # A site's devices go one by one: the canary's second has to wait for the night after.
    assert [(one.window, one.begin) for one in canary] == [(night, 1), (seen.windows["canary"][1], 1)]
    place = next(one for one in seen.likely.places if (one.wave, one.release) == ("lab", "v1.4.2"))
    assert (lab.first_at, lab.last_at) == (place.starts_at, place.arrived_at)
