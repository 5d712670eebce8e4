"""What does not work in an app's deployment, how it is told, and what then runs."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from reconciler.agent.machine import State
from tests.agent.containers.world import APP, SOON, AppDevice, Apps, reason, refused, runs
from tests.support.faults import FaultProxy
from tests.support.registry import OCI_MANIFEST

pytestmark = [pytest.mark.system, pytest.mark.slow]


def test_a_release_that_keeps_ending_is_taken_back_and_counted(
    device: AppDevice, apps: Apps, proxy: FaultProxy
) -> None:
    device.assign(apps.one)
    with device.impatient():
        report = device.assign(apps.ending, lambda report: runs(report, apps.one) and bool(report.attempts))
    assert report.attempts == {f"{APP}@{apps.ending.version}": 1}
    assert [item.code for item in report.refusals] == ["restart-failed"]
    assert "does not keep running" in reason(report, "restart-failed") or "nothing runs" in reason(
        report, "restart-failed"
    )
    assert f"DIGEST={apps.one.digest}" in device.env()


def test_a_first_release_that_keeps_ending_leaves_what_the_unit_ran_by_itself(device: AppDevice, apps: Apps) -> None:
    with device.impatient():
        report = device.assign(apps.ending, lambda report: runs(report, apps.one) and bool(report.attempts))
    assert [item.code for item in report.refusals] == ["restart-failed"]


def test_an_app_that_fails_long_after_its_deployment_is_counted_and_left_to_its_unit(
    device: AppDevice, apps: Apps
) -> None:
    device.assign(apps.one)
    device.assign(apps.two)
    (device.system / "etc/edge/cameras").unlink()  # the container cannot be started without it
    subprocess.run([device.runtime, "kill", APP], check=True, capture_output=True)
    time.sleep(0.5)
    device.office.reports.clear()
    device.device.call_in()
    with device.impatient():
        report = device.until(refused("restart-failed"))
    assert report.apps == {}
    assert f"DIGEST={apps.two.digest}" in device.env()
    (device.system / "etc/edge/cameras").write_text("")
    device.office.reports.clear()
    device.device.call_in()
    device.until(lambda report: report.apps == {APP: apps.two.digest})


def test_what_is_not_what_was_assigned_or_cannot_be_had_is_refused_by_code_and_what_ran_runs(
    device: AppDevice, apps: Apps, proxy: FaultProxy
) -> None:
    device.until(lambda report: runs(report, apps.one))
    starts = device.units.starts
    other = {"status": 200, "body": apps.manifest_of_three, "headers": {"Content-Type": OCI_MANIFEST}}
    registry, nobody = device.registry, "http://127.0.0.1:9"
    absent = replace(apps.two, digest="sha256:" + "0" * 64)
    for number, (app, address, fault, code, words) in enumerate(
        (
            (apps.foreign_index, registry, None, "app-platform", "linux/amd64"),
            (apps.foreign, registry, None, "app-platform", "for linux/arm64"),
            (absent, registry, None, "not-fetched", "manifest unknown"),
            (apps.two, registry, ("answer", "/manifests/"), "app-digest", ""),
            (apps.two, registry, ("wrong", "/blobs/"), "app-digest", ""),
            (apps.two, nobody, None, "not-fetched", "connection refused"),
            (apps.two, "http://registry.example", None, "not-fetched", "needs https"),
            (apps.two, "https://registry.example/below", None, "not-fetched", "is no registry"),
            (apps.two, registry, ("drop", "/blobs/"), "not-fetched", ""),
        )
    ):
        proxy.mend()
        if fault is not None:
            proxy.next(fault[0], "", fault[1], times=9, **(other if fault[0] == "answer" else {}))
        device.office.registry = address
        # Another version each time: what was put off under the last one's name is not waited for.
        wanted = replace(app, version=f"9.{number}.0")
        report = device.assign(wanted, refused(code, words))
        assert (report.apps, report.attempts) == ({APP: apps.one.digest}, {}), number
        assert device.images() == 1, number
    assert device.units.starts == starts
    assert f"DIGEST={apps.two.digest}" not in "".join(path.read_text() for path in device.records())
    proxy.mend()
    device.pass_time(60)
    device.until(lambda report: runs(report, apps.two))


def test_a_full_disk_is_named_and_what_ran_runs(device: AppDevice, apps: Apps) -> None:
    device.until(lambda report: report.apps == {APP: apps.one.digest})
    full = device.folder / "podman-full"
    full.write_text(
        '#!/bin/sh\n[ "$1" != pull ] || { echo "Error: writing blob: write /var/tmp/x: no space left on device" >&2; exit 125; }\n'
        f'exec {device.runtime} "$@"\n'
    )
    full.chmod(0o755)
    device.command = [str(full)]
    device.boot()
    # Its container comes up after the boot in its own time.
    device.assign(apps.two, lambda report: refused("no-room")(report) and runs(report, apps.one))


def test_a_runtime_that_does_not_answer_keeps_nobody_waiting_for_long(device: AppDevice, apps: Apps) -> None:
    device.until(lambda report: report.apps == {APP: apps.one.digest})
    hung = device.folder / "podman-hung"
    hung.write_text("#!/bin/sh\nexec sleep 600\n")
    hung.chmod(0o755)
    device.command, device.limits, device.longest_step = [str(hung)], replace(SOON, answer_s=0.5, fresh_s=30), 0
    device.boot()
    device.office.reports.clear()
    device.office.assign(apps={APP: apps.two})
    device.device.call_in()
    report = device.until(lambda report: "device-fault" in {item.code for item in report.refusals})
    assert "no answer within 0.5 s" in reason(report, "device-fault")
    assert device.longest_step < 30, "by itself it would have answered in ten minutes"


def test_a_release_that_was_pulled_and_vanished_is_pulled_again(device: AppDevice, apps: Apps) -> None:
    device.assign(apps.one)
    device.office.assign(apps={APP: apps.two})
    device.device.call_in()
    while device.device.agent.work.state is not State.RESTARTING:
        device.step()
    names = subprocess.run(
        [device.runtime, "images", "--no-trunc", "--quiet", "--filter", "reference=edge/video-ingest:next"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    subprocess.run([device.runtime, "rmi", "--force", *names], check=True, capture_output=True)
    report = device.until(refused("restart-failed"))
    assert report.apps == {APP: apps.one.digest}


def test_power_cut_at_every_durable_step_of_a_deployment(device: AppDevice, apps: Apps) -> None:
    """Whatever is cut off, one of the two releases runs after the boot, and the device ends on the assigned one."""

    class Cut(BaseException):
        pass

    device.assign(apps.two)
    device.assign(apps.one)  # both are here: from now on nothing is pulled
    steps: list[str] = []
    device.site.disk.on_step = steps.append
    device.assign(apps.two)
    deploying = [number for number, step in enumerate(steps) if APP in step]
    assert len(deploying) >= 6, steps
    target, other = apps.one, apps.two
    for cut in deploying:
        count = [0]

        def meter(_name: str, count: list[int] = count, cut: int = cut) -> None:
            count[0] += 1
            if count[0] == cut + 1:
                raise Cut

        device.site.disk.on_step = meter
        with suppress(Cut):
            device.assign(target)
        device.site.disk.on_step = lambda _name: None
        device.boot()
        assert device.containers.deployed(APP) in (target.digest, other.digest), f"cut before {steps[cut]}"
        device.office.reports.clear()
        report = device.until(lambda report, target=target: runs(report, target))  # type: ignore[misc]
        assert report.attempts == {}, f"cut before {steps[cut]}"
        target, other = other, target
