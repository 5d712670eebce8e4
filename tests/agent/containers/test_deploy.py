"""Releases of an app come and go, back and forth, over power cuts: what runs, what stays, and what nobody is asked for."""

from __future__ import annotations

import subprocess
import time

import pytest

from reconciler.agent.containers import Limits
from reconciler.agent.machine import State
from reconciler.protocol.report import Report
from tests.agent.containers.world import APP, REPOSITORY, AppDevice, Apps, runs
from tests.support.faults import FaultProxy

pytestmark = [pytest.mark.system, pytest.mark.slow]


def test_from_a_merged_revert_to_healthy_on_the_previous_release_in_seconds_and_without_the_registry(
    device: AppDevice, apps: Apps, proxy: FaultProxy
) -> None:
    device.limits = Limits(fresh_s=0.5)  # a device's own times
    device.boot()
    report = device.until(
        lambda report: report.apps == {APP: apps.one.digest}
    )  # by the wave's tag, without any assignment
    device.assign(apps.two)
    assert "2.8.0" in device.journal()
    proxy.seen.clear()
    between: list[float] = []  # when a step had ended, and the app ran and was still watched

    def done(report: Report) -> bool:
        work = device.device.agent.work
        if work.state is State.RESTARTING and device.containers.running() == {APP: apps.one.digest}:
            between.append(time.monotonic())
        return runs(report, apps.one)

    report = device.assign(apps.one, done, seconds=120)  # two minutes are allowed
    assert (report.attempts, report.refusals) == ({}, ())
    assert proxy.seen == [], "the registry was asked"
    assert device.names() == {"edge/video-ingest:current", "edge/video-ingest:previous"}
    assert {f"TAG={apps.one.tag}", f"DIGEST={apps.one.digest}", f"REPOSITORY={REPOSITORY}"} <= set(
        device.env().split("\n")
    )
    assert between[-1] - between[0] > 3, "one step waited until the app had run steadily, for ten seconds"


def test_the_same_release_comes_up_after_a_power_cut_without_a_registry(
    device: AppDevice, apps: Apps, proxy: FaultProxy
) -> None:
    device.assign(apps.two)
    proxy.seen.clear()
    device.boot()
    device.office.reports.clear()
    report = device.until(lambda report: runs(report, apps.two))
    assert (report.attempts, report.refusals) == ({}, ())
    assert device.units.starts == 1, "what was coming up was started again"
    assert proxy.seen == []


def test_a_third_release_removes_the_first_pruning_spares_the_second_and_an_index_is_reported_as_it_was_assigned(
    device: AppDevice, apps: Apps, proxy: FaultProxy
) -> None:
    for app in (apps.one, apps.two, apps.index):
        device.assign(app)
    assert device.images() == 2
    subprocess.run([device.runtime, "image", "prune", "--force"], check=True, capture_output=True)
    proxy.seen.clear()
    device.assign(apps.two)
    device.assign(apps.index)
    assert proxy.seen == []
    device.assign(apps.one)
    assert proxy.seen, "the oldest release is fetched again"


def test_what_does_not_run_or_is_something_else_is_reported_as_such(device: AppDevice, apps: Apps) -> None:
    device.assign(apps.two)
    subprocess.run([device.units.systemctl, "stop", f"{APP}.service"], check=True)
    time.sleep(0.5)
    assert device.containers.running() == {}
    words = [
        "run",
        "--detach",
        "--rm",
        "--pull",
        "never",
        "--name",
        APP,
        "--label",
        f"edge.app={APP}",
        "--network",
        "host",
    ]
    other = f"{device.registry.removeprefix('http://')}/{REPOSITORY}@{apps.one.digest}"
    subprocess.run([device.runtime, *words, other], check=True, capture_output=True)
    time.sleep(0.5)
    assert device.containers.running() == {APP: apps.one.digest}
    # The next look puts it right.
    device.office.reports.clear()
    device.device.call_in()
    device.until(lambda report: runs(report, apps.two))
