"""The log of a device's health: a row where it changed, and none where it did not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from reconciler.controller.reports import Received, record
from reconciler.model.events import MOST_SAID, CheckSaid
from reconciler.protocol.report import Check, Report
from reconciler.simulate.memory_store import MemoryStore

T0 = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
BAD = Check("camera", "critical", "no frames")


class Device:
    """Reports into a store, a minute apart."""

    def __init__(self) -> None:
        self.store, self.sequence = MemoryStore(), 0

    def says(self, health: str = "ok", *checks: Check, **more: Any) -> None:
        self.sequence += 1
        values: dict[str, Any] = {"site": "S", "boot_id": "b", "sequence": self.sequence, "image": "v1.4.1"} | more
        report = Report(device="d", health=health, checks=checks, **values)
        (outcome,) = record(self.store, [Received(report, T0 + self.sequence * timedelta(minutes=1))], 900)
        assert not isinstance(outcome, Exception)

    def log(self) -> list[tuple[str, str | None]]:
        return [(row.health, row.release) for row in reversed(self.store.health_log("d"))]


def test_a_row_is_written_where_health_or_image_changed() -> None:
    device = Device()
    for health in ("ok", "ok", "critical", "critical", "ok"):
        device.says(health)
    device.says("ok", image="v1.4.2", boot_id="b2")
    assert device.log() == [("ok", "v1.4.1"), ("critical", "v1.4.1"), ("ok", "v1.4.1"), ("ok", "v1.4.2")]
    assert [row.at for row in device.store.health_log("d")][-1] == T0 + timedelta(minutes=1)


def test_a_row_names_the_checks_that_were_not_ok_and_those_that_got_worse() -> None:
    device = Device()
    device.says("ok")
    device.says("critical", BAD, Check("docker", "ok", "active"), checks_before=(Check("camera", "ok"),))
    (row, _) = device.store.health_log("d")
    assert row.checks == (CheckSaid("camera", "critical", "no frames"),) and row.worse == ("camera",)


def test_a_row_is_bounded() -> None:
    device = Device()
    device.says("critical", *(Check(f"check{number}", "critical", "x" * 300) for number in range(MOST_SAID + 5)))
    (row,) = device.store.health_log("d")
    assert len(row.checks) == MOST_SAID and all(len(check.message) == 200 for check in row.checks)


def test_a_late_report_adds_nothing() -> None:
    device = Device()
    device.says("ok")
    device.says("ok")
    device.says("critical", sequence=1)
    assert device.log() == [("ok", "v1.4.1")]
