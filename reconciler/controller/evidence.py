"""The words of a proposed revert: which release failed, where, what was seen before and after. Pure. Called by `execute`.

Twice the same: plain for the commit's message, as Markdown for the pull request. What a device says of itself (its image, its
checks and what they say) is a stranger's text: `evidence_text` makes it harmless. A body is kept shorter than a forge takes, so
that it is never cut within a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from reconciler.controller.evidence_text import code, fitting, in_commit, some, table, when
from reconciler.controller.gather import World
from reconciler.model.observed import MOST_MESSAGE, CheckChange, DeviceObservation, Health
from reconciler.model.plan import Plan, WaveState, WaveStatus
from reconciler.model.scalars import format_instant

_MOST_DEVICES = 20
_MOST_ROWS = 100
_MOST_NAMES = 8
_MOST_CHECKS = 4
"""Checks of a device in the commit's message."""
_ROWS_CHARS, _CHECKS_CHARS = 24_000, 32_000
"""Of a body, which may have 65,536: the table of devices, and the tables of their checks."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A proposal's title (one line), the commit's message below it, and the pull request's body."""

    title: str
    message: str
    body: str


@dataclass(frozen=True, slots=True)
class _Failed:
    """A wave whose gate failed, when, and how it stands (None: it asks for another release by now)."""

    wave: str
    at: datetime
    status: WaveStatus | None


def evidence_of(key: str, of: str, world: World, plan: Plan) -> Evidence:
    """What is to be said where it is proposed to take back commit `of`, which raised `key`."""
    failed = _failed(key, world, plan)
    waves = ", ".join(sorted({each.wave for each in failed}))
    title = f"Revert the promotion to {key}: its gate failed{f' in {waves}' if waves else ''}"
    digest = _digest(key, world)
    concerned = sorted((d for d in world.everyone() if _concerned(d, key, digest)), key=lambda device: device.name)
    return Evidence(
        title,
        "\n".join(_message(key, of, world, failed, concerned)),
        "\n".join(_body(key, of, world, failed, concerned)),
    )


def _failed(key: str, world: World, plan: Plan) -> list[_Failed]:
    """Failed gates on record and those that this plan established, the earliest of a wave, by instant."""
    first: dict[str, datetime] = {}
    known = [(v.at, v.wave) for v in world.observed.failures if v.key == key and not v.closed]
    for at, wave in sorted([*known, *((fact.at, fact.wave) for fact in plan.facts.failures if fact.key == key)]):
        first.setdefault(wave, at)
    status = {wave.name: wave for wave in plan.waves if _asks(wave, key)}
    return [
        _Failed(wave, at, status.get(wave)) for wave, at in sorted(first.items(), key=lambda each: (each[1], each[0]))
    ]


def _asks(wave: WaveStatus, key: str) -> bool:
    app, at_sign, release = key.partition("@")
    return app in wave.apps and wave.apps[app].release == release if at_sign else wave.image == key


def _digest(key: str, world: World) -> str | None:
    """What a device reports that runs the app's release; None for an image."""
    app, at_sign, release = key.partition("@")
    spec = world.desired.apps.get(app) if at_sign else None
    return None if spec is None else spec.releases.get(release)


def _runs(device: DeviceObservation, key: str, digest: str | None) -> bool:
    app, at_sign, _ = key.partition("@")
    if not at_sign:
        return device.image == key
    return digest is not None and app in device.apps and device.apps[app].digest == digest


def _concerned(device: DeviceObservation, key: str, digest: str | None) -> bool:
    return (_runs(device, key, digest) and device.health is Health.CRITICAL) or bool(device.failed_attempts.get(key))


def _counts(failed: _Failed, key: str) -> tuple[int, int, int] | None:
    """Devices on the release, failed, and of the wave in all."""
    if failed.status is None:
        return None
    app, at_sign, _ = key.partition("@")
    of = failed.status.apps[app] if at_sign else failed.status
    return of.on_release, of.failed, failed.status.devices


# ---------------------------------------------------------------- the commit's message


def _message(
    key: str, of: str, world: World, failed: Sequence[_Failed], devices: Sequence[DeviceObservation]
) -> Iterator[str]:
    yield f"{key} was raised by {of}. As seen at {format_instant(world.now)}, with {world.commit} in force:"
    yield ""
    for each in failed:
        yield f"- wave {each.wave}: the gate failed at {format_instant(each.at)}{_told(each, key)}"
    digest = _digest(key, world)
    for device in devices[:_MOST_DEVICES]:
        yield f"- {_seen(device, key, digest)}"
        yield from _said(device, key, digest)
    if len(devices) > _MOST_DEVICES:
        yield f"- and {len(devices) - _MOST_DEVICES} more devices"
    yield ""
    yield "Merging this lets the devices that run it go back at once, without gates. It was not merged for you."


def _told(each: _Failed, key: str) -> str:
    counts = _counts(each, key)
    if counts is None or each.status is None:
        return ""
    on_release, failed, devices = counts
    return f"; {on_release} of {devices} devices on it, {failed} failed, {each.status.offline} offline"


def _seen(device: DeviceObservation, key: str, digest: str | None) -> str:
    parts = [f"device {device.name} runs {in_commit(device.image or 'an unknown image')}"]
    before = device.health_before_update
    parts.append(f"health {f'{before.value} before, ' if before is not None else ''}{device.health.value} now")
    if device.health_since is not None:
        parts.append(f"since {format_instant(device.health_since)}")
    if worse := _worse(device, key, digest):
        parts.append(f"worse than before: {some([in_commit(name) for name in worse], _MOST_NAMES)}")
    attempts = device.failed_attempts.get(key, 0)
    if attempts:
        parts.append(f"{attempts} failed attempts{when(', the last at ', device.attempt_failed_at)}")
    return ", ".join(parts)


def _said(device: DeviceObservation, key: str, digest: str | None) -> Iterator[str]:
    """Its checks, a line each."""
    checks = [*_now(device, key, digest), *_then(device, key)]
    for check in checks[:_MOST_CHECKS]:
        said = f': "{in_commit(check.message, MOST_MESSAGE)}"' if check.message else ""
        yield (
            f"  - check {in_commit(check.name)}: {_before(check)} before, {check.now.value}"
            f" since {format_instant(check.since)}{said}"
        )
    if len(checks) > _MOST_CHECKS:
        yield f"  - and {len(checks) - _MOST_CHECKS} more checks"


def _before(check: CheckChange) -> str:
    return check.before.value if check.before is not None else "not there"


def _now(device: DeviceObservation, key: str, digest: str | None) -> Sequence[CheckChange]:
    """What is worse on the release; nothing of a device that runs another one by now."""
    return device.checks if _runs(device, key, digest) else ()


def _then(device: DeviceObservation, key: str) -> Sequence[CheckChange]:
    """What was worse during a failed attempt at the release."""
    return device.attempt.checks if device.attempt is not None and device.attempt.release == key else ()


# ---------------------------------------------------------------- the pull request


def _body(
    key: str, of: str, world: World, failed: Sequence[_Failed], devices: Sequence[DeviceObservation]
) -> Iterator[str]:
    yield f"`{key}` was raised by {of}, and its gate failed. It is stopped in every wave; what runs it goes on running it."
    yield ""
    yield "**Merging this** lets the devices that run it go back at once, without gates. It was not merged for you."
    yield "**Closing it** is an answer too: it is not proposed again for this failure."
    yield ""
    yield f"As seen at {format_instant(world.now)}, with {world.commit} in force:"
    yield ""
    yield from table(
        ("wave", "gate failed at", "devices on it", "failed", "offline"), (_wave_row(each, key) for each in failed)
    )
    yield ""
    if not devices:
        yield "No device runs it in bad health any more, and none has used up an attempt: see the controller's journal."
        return
    digest = _digest(key, world)
    header = (
        "device",
        "site",
        "runs",
        "since",
        "health before",
        "health now",
        "since",
        "worse than before",
        "failed attempts",
    )
    rows = list(fitting(([*_device_row(device, key, digest)] for device in devices[:_MOST_ROWS]), _ROWS_CHARS))
    yield from table(header, rows)
    if len(devices) > len(rows):
        yield ""
        yield f"And {len(devices) - len(rows)} more devices; `reconciler explain` and `reconciler status` have them all."
    yield from _checks(key, digest, world, failed, devices)


def _checks(
    key: str, digest: str | None, world: World, failed: Sequence[_Failed], devices: Sequence[DeviceObservation]
) -> Iterator[str]:
    """A table a device of its checks that are, or in a failed attempt were, worse than before the update."""
    ill = [device for device in devices if _now(device, key, digest) or _then(device, key)]
    if not ill:
        return
    yield ""
    yield "### Checks, before and after"
    blocks = ([*_device_checks(device, key, digest, _gate(device, key, world, failed))] for device in ill)
    shown = list(fitting(blocks, _CHECKS_CHARS))
    for block in shown:
        yield from block
    if len(ill) > len(shown):
        yield ""
        yield f"And those of {len(ill) - len(shown)} more devices; `reconciler explain DEVICE` shows them."


def _gate(device: DeviceObservation, key: str, world: World, failed: Sequence[_Failed]) -> _Failed | None:
    """The failure of the device's own wave, where it is on record which took its site; else the first one."""
    taken = world.observed.members.get(key, {})
    own = [each for each in failed if device.site in taken.get(each.wave, ())]
    return next(iter([*own, *failed]), None)


def _device_checks(device: DeviceObservation, key: str, digest: str | None, gate: _Failed | None) -> Iterator[str]:
    header = ("check", "before", "now", "message", "since")
    failed = f"gate of wave {gate.wave} failed {format_instant(gate.at)}" if gate is not None else ""
    if now := _now(device, key, digest):
        flashed = device.image_since if digest is None else device.apps[key.partition("@")[0]].since
        critical = device.health_since if device.health is Health.CRITICAL else None
        times = [
            when("flashed " if digest is None else "restarted for it ", flashed),
            when("critical since the report at ", critical),
            failed,
        ]
        yield ""
        yield f"**{device.name}**: {', '.join(filter(None, times))}"
        yield ""
        yield from table(header, (_check_row(check) for check in now))
    if then := _then(device, key):
        times = [when("attempt failed ", device.attempt_failed_at), failed]
        yield ""
        yield f"**{device.name}**, during its last attempt at `{key}`: {', '.join(filter(None, times))}"
        yield ""
        yield from table((*header[:2], "then", *header[3:]), (_check_row(check) for check in then))


def _worse(device: DeviceObservation, key: str, digest: str | None) -> Sequence[str]:
    """Names of checks: of a device that is on the release now, else of its last failed attempt at it."""
    return device.checks_worse if _runs(device, key, digest) else [check.name for check in _then(device, key)]


def _check_row(check: CheckChange) -> tuple[str, ...]:
    return (
        code(check.name),
        _before(check),
        check.now.value,
        code(check.message, MOST_MESSAGE),
        format_instant(check.since),
    )


def _wave_row(each: _Failed, key: str) -> tuple[str, ...]:
    counts = _counts(each, key)
    if counts is None or each.status is None:
        return (each.wave, format_instant(each.at), "", "", "")
    on_release, failed, devices = counts
    state = " (failed)" if each.status.state is WaveState.FAILED else ""
    return (
        each.wave + state,
        format_instant(each.at),
        f"{on_release} of {devices}",
        str(failed),
        str(each.status.offline),
    )


def _device_row(device: DeviceObservation, key: str, digest: str | None) -> tuple[str, ...]:
    attempts = device.failed_attempts.get(key, 0)
    app = key.partition("@")[0]
    since = device.apps[app].since if digest is not None and app in device.apps else device.image_since
    return (
        device.name,
        device.site or "",
        f"`{key}`" if _runs(device, key, digest) else code(device.image or "unknown"),
        when("", since),
        device.health_before_update.value if device.health_before_update is not None else "not known",
        device.health.value,
        when("", device.health_since),
        some([code(name) for name in _worse(device, key, digest)], _MOST_NAMES),
        f"{attempts}{when(', the last at ', device.attempt_failed_at)}" if attempts else "",
    )
