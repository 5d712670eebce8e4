"""Folds a device's report into what is known of the device. Pure: no clock, no store, no log.

Decides when a run of health begins and ends, when an update is over, which reports count, and whether two devices
claim one name. Never judges a release (the planner does), and never marks a device in flight before it says so (the
recorder of a tick does, with the intent). Called by the server for every report.
Source: contract, fine print 1, 12 and 13; design §5.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any

from reconciler.controller.told import clock_seen, refusals_seen
from reconciler.controller.worse import attempted, changes, worse
from reconciler.model.observed import NO_CONFIG, Boot, DeviceObservation, Health, RunningApp
from reconciler.protocol.report import Report, overall

# `warning` counts as good (contract, "Observed snapshot"): going from one to the other breaks no run.
_GOOD = frozenset({Health.OK, Health.WARNING})
# Phases in which the update that is coming has not changed the image yet, though `checks_before` may be its already.
_BEFORE_BOOT = frozenset({"writing", "rebooting"})
_UPDATING = frozenset({"writing", "rebooting", "trial"})


class _Standing(Enum):
    """What a report is to the ones before it."""

    NEXT = auto()
    NEW_BOOT = auto()
    LATE = auto()
    RIVAL = auto()


def fold(
    previous: DeviceObservation | None,
    report: Report,
    received_at: datetime,
    stale_after_s: float,
    told: tuple[int, int] | None = None,
) -> DeviceObservation:
    """The observation after one more report.

    `previous` is the device's observation as recorded, marks of the loop included, or None. `received_at` is the
    recorder's clock at receipt, UTC. `stale_after_s` is the silence, in seconds, that ends a run; exactly that much
    does not. `told` is the serial of the device's latest assignment on record. A report that is late or doubled changes
    nothing: `previous` itself is returned (test with `is`).
    Raises ValueError where a value does not fit the model. The caller reads `previous` and writes the result in one
    transaction.
    """
    before = previous or DeviceObservation(name=report.device, site=report.site)
    stale = timedelta(seconds=stale_after_s)
    standing = _standing(before, report, received_at, stale)
    if standing is _Standing.LATE and previous is not None:
        return previous
    if standing is _Standing.RIVAL:
        return _claimed_twice(before, report, received_at)
    at, silent = _received(before.last_seen, received_at, stale)
    rebooted = standing is _Standing.NEW_BOOT
    # A trial boot is part of the update: the image is what the device has marked good, so a trial neither starts a soak
    # nor ends one, and a fall-back leaves the old image's record as it was.
    on_trial = _is_on_trial(report)
    if on_trial:
        of_image: dict[str, Any] = {}
    else:
        of_image = _image(before, report, at) | _health(before, report, at, broken=silent, rebooted=rebooted)
    attempts = _attempts(before, report, at)
    values: dict[str, Any] = {
        "site": report.site if report.site is not None else before.site,
        "last_seen": at,
        "phase": report.phase,
        "apps": _apps(before, report, at),
        "config": report.config or NO_CONFIG,
        "serial": report.serial if report.serial is not None else before.serial,
        "clock": clock_seen(before, report, received_at),
        "refusals": refusals_seen(before, report, at),
        **_boots(before, report, at, stale, rebooted=rebooted),
        **of_image,
        **attempts,
        "attempt": attempted(
            before, report, at, of_image.get("checks", ()), attempts["failed_attempts"], on_trial=on_trial
        ),
        **_marks(before, report, at, attempts["failed_attempts"], told, rebooted=rebooted),
    }
    fields = {name: getattr(before, name) for name in DeviceObservation.model_fields}
    return DeviceObservation(**(fields | values))


# ---------------------------------------------------------------- which reports count


def _standing(before: DeviceObservation, report: Report, received_at: datetime, stale: timedelta) -> _Standing:
    """Where a report stands among those of its device. A boot id never returns once another has displaced it."""
    boot, rival = before.boot, before.rival
    # The first report ever: nothing to be late for.
    if boot is None:
        return _Standing.NEW_BOOT
    # One boot counts upwards; what is not newer is late or doubled.
    if report.boot_id == boot.id:
        return _Standing.NEXT if report.sequence > boot.sequence else _Standing.LATE
    # A boot id not seen lately: the device has rebooted, or was installed again and counts from the start.
    if rival is None or report.boot_id != rival.id:
        return _Standing.NEW_BOOT
    # From before the reboot, and doubled.
    if report.sequence <= rival.sequence:
        return _Standing.LATE
    # The other has been silent for so long that only this one is left: the name is this one's.
    if received_at - boot.seen > stale:
        return _Standing.NEW_BOOT
    # Numbers rise over reboots, so one below the present boot's first was sent before it. Nothing is under way for
    # longer than staleAfter, since the device gives up its request long before: after that, the other boot is alive.
    if report.sequence < boot.first_sequence and received_at - boot.since <= stale:
        return _Standing.LATE
    return _Standing.RIVAL


def _claimed_twice(before: DeviceObservation, report: Report, received_at: datetime) -> DeviceObservation:
    """Two devices alternate under one name. The values of the present boot stand; the planner holds the device."""
    assert before.rival is not None
    rival = before.rival.model_copy(update={"sequence": report.sequence, "seen": received_at})
    return before.model_copy(update={"conflict": True, "rival": rival})


def _boots(
    before: DeviceObservation, report: Report, at: datetime, stale: timedelta, *, rebooted: bool
) -> dict[str, Any]:
    """The boots after the report, and whether a conflict stands: it ends when one of the two has fallen silent."""
    if rebooted or before.boot is None:
        boot = Boot(id=report.boot_id, sequence=report.sequence, first_sequence=report.sequence, since=at, seen=at)
        rival = before.boot
    else:
        boot = before.boot.model_copy(update={"sequence": report.sequence, "seen": at})
        rival = before.rival
    conflict = before.conflict and rival is not None and at - rival.seen <= stale
    return {"boot": boot, "rival": rival, "conflict": conflict}


def _received(last_seen: datetime | None, received_at: datetime, stale: timedelta) -> tuple[datetime, bool]:
    """The instant to record, and whether silence broke the runs (fine print 12: strictly more than staleAfter).

    Two server threads may stamp out of order by a little: time never goes back for that. A clock that was wrong by more
    is set right, and breaks the runs, since nothing can be said about how long they were.
    """
    if last_seen is None:
        return received_at, True
    if received_at < last_seen:
        return (last_seen, False) if last_seen - received_at <= stale else (received_at, True)
    return received_at, received_at - last_seen > stale


# ---------------------------------------------------------------- image and health


def _is_on_trial(report: Report) -> bool:
    """Whether what is booted is not marked good: a trial, or the way back from one that was found worse."""
    booted = report.slots.get(report.booted)
    returns = report.phase == "rebooting" and booted is not None and booted.release is not None and not booted.good
    return report.phase == "trial" or returns


def _image(before: DeviceObservation, report: Report, at: datetime) -> dict[str, Any]:
    """The image that the device has marked good, since when, and what it could switch to."""
    same = before.image_since is not None and report.image == before.image
    other = report.slots.get("b" if report.booted == "a" else "a")
    return {
        "image": report.image,
        "image_since": before.image_since if same else (at if report.image is not None else None),
        "previous_image": report.previous,
        # A slot that is half written, or fell back, is nothing to switch to.
        "inactive_slot": other.release if other is not None and other.good else None,
    }


def _health(before: DeviceObservation, report: Report, at: datetime, *, broken: bool, rebooted: bool) -> dict[str, Any]:
    """Health, the start of its run, and the comparison with the health before the update."""
    health = Health(report.health)
    changed = report.image != before.image
    known = before.health_since is not None and not broken and not changed
    # A soak wants a fresh good healthcheck after a reboot, so a good run starts again there (design §4.3). But a device
    # that is critical, reboots, and is critical again must not escape criticalFor by rebooting.
    alike = before.health in _GOOD and not rebooted if health in _GOOD else before.health is health
    runs_on = known and alike
    values: dict[str, Any] = {"health": health, "health_since": before.health_since if runs_on else at}
    # `checks_before` may be those of the update that is coming: they count from the moment the image has changed.
    if report.phase in _BEFORE_BOOT and not changed:
        return values
    if report.checks_before and (changed or before.health_before_update is None):
        values["health_before_update"] = Health(overall(report.checks_before))
    values["checks_worse"] = worse(report)
    values["checks"] = changes(report, values["checks_worse"], at, () if broken or changed else before.checks)
    return values


# ---------------------------------------------------------------- attempts, marks, apps


def _attempts(before: DeviceObservation, report: Report, at: datetime) -> dict[str, Any]:
    """Failed attempts: what the device newly counts is charged once.

    A time-out was charged when it happened, by the tick that judged it. Where the device later reports how that same
    attempt ended, it is not charged again: the surplus of charges over reported ones takes it.
    """
    failed = dict(before.failed_attempts)
    reported: dict[str, tuple[int, int]] = {}
    failed_at = before.attempt_failed_at
    for key in sorted({*before.reported_attempts, *report.attempts}):
        last, told = before.reported_attempts.get(key, (0, 0))
        # The attempts of a release that was closed are dropped from the record; what was told of them counts no more.
        told = min(told, failed.get(key, 0))
        count = report.attempts.get(key, 0)
        # A device that counts from zero again (installed anew) is followed; what was charged stays.
        new = max(0, count - last)
        if new:
            in_flight = key == before.updating_to or key.partition("@")[0] == before.restarting_app
            surplus = failed.get(key, 0) - told
            charged = new - min(new - 1 if in_flight else new, surplus)
            failed[key] = failed.get(key, 0) + charged
            # A tolerated failure must not shorten a soak, so the instant counts (contract, fine print 2).
            failed_at = at if charged else failed_at
        if count or told + new:
            reported[key] = (count, told + new)
    return {"failed_attempts": failed, "reported_attempts": reported, "attempt_failed_at": failed_at}


def _marks(
    before: DeviceObservation,
    report: Report,
    at: datetime,
    failed: Mapping[str, int],
    told: tuple[int, int] | None,
    *,
    rebooted: bool,
) -> dict[str, Any]:
    """What is in flight after the report: a mark is set by the tick that started something, and its outcome ends it."""
    values: dict[str, Any] = {"rebooting_since": None}
    if report.phase == "rebooting":
        values["rebooting_since"] = before.rebooting_since if before.rebooting_since and not rebooted else at
    counted = {key for key, count in report.attempts.items() if count > before.reported_attempts.get(key, (0, 0))[0]}
    arrived = not _is_on_trial(report) and report.image == before.updating_to
    if before.updating_to is not None and (arrived or before.updating_to in counted):
        values |= {"updating_to": None, "updating_since": None}
    elif before.updating_to is None and not _is_behind(report, told) and _unannounced(before, report, failed):
        # The record of the start is lost (a restored backup): the device itself says that it is being updated.
        values |= {"updating_to": report.target, "updating_since": at}
    app = before.restarting_app
    if app is not None:
        moved = app in report.apps and report.apps[app] != _digest(before, app)
        if moved or any(key.partition("@")[0] == app for key in counted if "@" in key):
            values |= {"restarting_app": None, "restarting_since": None}
    # What the device now reports is compared with what git wants by the planner; a change means that it has acted.
    if before.configuring_since is not None and (report.config or NO_CONFIG) != before.config:
        values["configuring_since"] = None
    return values


def _is_behind(report: Report, told: tuple[int, int] | None) -> bool:
    """Whether a newer word waits for the device. What it does by an older one ends when it hears that: it was called off, and a
    mark for it would stand until it is taken for a time-out."""
    return told is not None and (report.serial is None or report.serial < told)


def _unannounced(before: DeviceObservation, report: Report, failed: Mapping[str, int]) -> bool:
    """Whether the device is in an update that nothing here started, and that was not already judged timed out."""
    target = report.target
    if report.phase not in _UPDATING or target is None or "@" in target:
        return False
    timed_out = failed.get(target, 0) > report.attempts.get(target, 0)
    return not timed_out and bool(target != before.image)


def _digest(before: DeviceObservation, app: str) -> str | None:
    return before.apps[app].digest if app in before.apps else None


def _apps(before: DeviceObservation, report: Report, at: datetime) -> dict[str, RunningApp]:
    """Each app's digest, and since when it runs."""
    found = {}
    for app, digest in report.apps.items():
        old = before.apps.get(app)
        found[app] = old if old is not None and old.digest == digest else RunningApp(digest=digest, since=at)
    return found
