"""When a healthcheck runs again for a report: a cheap one always, a long one seldom, one that was not good always; and never
an old result where something is judged."""

from __future__ import annotations

from datetime import timedelta

import pytest

from reconciler.agent import pace
from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.hardware import HardwareError
from reconciler.agent.machine import State
from reconciler.agent.pace import Pace
from reconciler.protocol.report import Check
from tests.agent.conftest import Releases
from tests.agent.world import START, Office, Site

OK, SLOW = (Check("disk", "ok"),), (Check("healthcheck", "critical", "gave no answer within 60 s"),)


class Script:
    """A healthcheck that takes `took_s`, by a count of its own."""

    def __init__(self, took_s: float, checks: tuple[Check, ...] = OK) -> None:
        self.took_s, self.checks, self.count_s, self.runs = took_s, checks, 100.0, 0

    def __call__(self) -> tuple[Check, ...]:
        self.runs += 1
        self.count_s += self.took_s
        return self.checks


def runs_over(script: Script, minutes: int, every_s: int = 60) -> int:
    """How often it runs, with a report every so many seconds."""
    kept = Pace(lambda: script.count_s)
    for at in range(0, minutes * 60, every_s):
        assert kept.checks(script, "same", START + timedelta(seconds=at)) == script.checks
    return script.runs


@pytest.mark.parametrize(
    ("took_s", "every_s", "runs"),
    [
        # At the default interval what takes up to three seconds is had with every report.
        (0.9, 60, 60),
        (3.0, 60, 60),
        (5.0, 60, 30),
        # However long it takes, what is told is never older than five minutes.
        (50.0, 60, 12),
        # Reports that come fast do not make it the load that it looks for.
        (0.9, 5, 720),
        (1.0, 5, 180),
        (3.0, 5, 60),
    ],
)
def test_a_good_result_stands_for_twenty_times_what_it_took(took_s: float, every_s: int, runs: int) -> None:
    assert runs_over(Script(took_s), 60, every_s) == runs


@pytest.mark.parametrize("status", ["critical", "unknown"])
def test_a_result_that_is_not_good_is_never_told_twice(status: str) -> None:
    assert runs_over(Script(60, (Check("gpu", status),)), 10) == 10


def test_no_result_is_told_of_something_else_or_by_a_clock_that_was_set_back() -> None:
    script = Script(10)
    kept = Pace(lambda: script.count_s)
    for count, (what, at) in enumerate([("a", 0), ("b", 1), ("b", 0), ("b", 5)], 1):
        kept.checks(script, what, START + timedelta(seconds=at))
        assert script.runs == min(count, 3)
    kept.forget()
    kept.checks(script, "b", START + timedelta(seconds=6))
    assert script.runs == 4


@pytest.fixture
def slow(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """The device's healthcheck takes ten seconds by the count; the state of the agent at each run."""
    ran, plain, count = [], type(site.hardware).healthcheck, [0.0]

    def healthcheck(hardware: object) -> tuple[Check, ...]:
        ran.append(site.device.agent.work.state)
        count[0] += 10
        return plain(hardware)  # type: ignore[arg-type]

    monkeypatch.setattr(type(site.hardware), "healthcheck", healthcheck)
    monkeypatch.setattr(pace.Pace.__init__, "__defaults__", (lambda: count[0],))
    return ran


@pytest.mark.system
def test_an_idle_device_reports_more_often_than_it_checks(site: Site, office: Office, slow: list[State]) -> None:
    site.settle(START + timedelta(minutes=40))
    assert len(office.reports) == 41
    assert len(slow) == 11, "each stands for 200 s, that is for four reports"
    assert {item.health for item in office.reports} == {"ok"}
    # One that becomes worse is told at the next run, and from then on every report has its own.
    (site.root / "faults" / "gpu").write_text("critical no answer")
    site.settle(START + timedelta(minutes=50))
    said = [item.health for item in office.reports[41:]]
    assert said == ["ok"] * said.index("critical") + ["critical"] * (len(said) - said.index("critical"))
    assert said.index("critical") <= 4
    # It is told of no longer than it is so.
    (site.root / "faults" / "gpu").unlink()
    site.settle(START + timedelta(minutes=51))
    assert office.last().health == "ok"


@pytest.mark.system
def test_where_something_is_judged_no_earlier_result_is(
    site: Site, office: Office, releases: Releases, slow: list[State]
) -> None:
    site.settle(START + timedelta(seconds=30))
    office.assign(releases.bad)
    slow.clear()
    site.settle(START + timedelta(minutes=4))
    # Before the boot for the intent; then every check of the trial, and every report in it.
    assert State.WRITTEN in slow and slow.count(State.TRIAL) >= 3
    trial = [item for item in office.reports if item.phase == "trial"]
    assert trial and all(item.health == "critical" for item in trial)
    assert (office.last().image, office.last().attempts, office.last().health) == ("v1", {"v3": 1}, "ok")


@pytest.mark.system
def test_after_a_restart_that_was_put_back_the_first_report_has_a_check_of_its_own(
    site: Site, office: Office, slow: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs is what ran before, and it was restarted: the result from before says nothing of that."""
    app, kind = office.push_app(b"one"), type(site.hardware)
    plain = kind.run_app

    def run_app(hardware: DirectoryHardware, name: str, digest: str | None) -> None:
        if digest == app.digest:
            raise HardwareError("it does not start")
        plain(hardware, name, digest)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "run_app", run_app)
    site.settle(START + timedelta(seconds=30))
    office.assign(apps={"video-ingest": app})
    site.settle(START + timedelta(seconds=90))
    assert office.last().attempts == {"video-ingest@2.8.0": 1} and office.last().apps == {}
    assert slow[0] is State.IDLE and State.RESTARTING in slow
    assert slow[-1] is State.IDLE, "within the time that the first result would have stood for"


@pytest.mark.system
def test_the_report_that_follows_a_judgement_tells_the_run_that_was_judged_by_and_no_other_does(
    site: Site, office: Office, releases: Releases, slow: list[State]
) -> None:
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=8))
    assert office.last().image == "v2"
    office.reports.clear()
    office.assign(releases.v1)
    slow.clear()
    site.settle(START + timedelta(minutes=9))
    # One run with the report that brings the assignment, and stands while the slot is hashed; one before the boot; one for the
    # report of the trial, and one to judge it by.
    assert [item.phase for item in office.reports][-4:] == ["writing", "rebooting", "trial", "idle"]
    assert (office.last().image, office.last().health) == ("v1", "ok")
    assert slow == [State.IDLE, State.WRITTEN, State.TRIAL, State.TRIAL]
    # It was told once: the next report is not of it.
    site.settle(START + timedelta(minutes=10))
    assert slow[4:] == [State.IDLE]
