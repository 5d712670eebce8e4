"""The words of a proposed revert: which release failed, where, what was seen before and after. Pure. Called by `execute`.

Twice the same: plain for the commit's message, as Markdown for the pull request. What a device says of itself (its image, its
checks) is a stranger's text: in the pull request it stands as code, and is no mention, no link and no end of a table there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from reconciler.controller.gather import World
from reconciler.model.observed import DeviceObservation, Health
from reconciler.model.plan import Plan, WaveState, WaveStatus
from reconciler.model.scalars import format_instant

_MOST_DEVICES = 20
_MOST_ROWS = 100
_MOST_TEXT = 120


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
    yield from (f"- {_seen(device, key)}" for device in devices[:_MOST_DEVICES])
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


def _seen(device: DeviceObservation, key: str) -> str:
    parts = [f"device {device.name} runs {_plain(device.image or 'an unknown image')}"]
    before = device.health_before_update
    parts.append(f"health {f'{before.value} before, ' if before is not None else ''}{device.health.value} now")
    if device.health_since is not None:
        parts.append(f"since {format_instant(device.health_since)}")
    if device.checks_worse:
        parts.append(f"worse than before: {', '.join(map(_plain, device.checks_worse))}")
    attempts = device.failed_attempts.get(key, 0)
    if attempts:
        parts.append(f"{attempts} failed attempts{_at(', the last at ', device.attempt_failed_at)}")
    return ", ".join(parts)


# ---------------------------------------------------------------- the pull request


def _body(
    key: str, of: str, world: World, failed: Sequence[_Failed], devices: Sequence[DeviceObservation]
) -> Iterator[str]:
    yield f"{_code(key)} was raised by {of}, and its gate failed. It is stopped in every wave; what runs it goes on running it."
    yield ""
    yield "**Merging this** lets the devices that run it go back at once, without gates. It was not merged for you."
    yield "**Closing it** is an answer too: it is not proposed again for this failure."
    yield ""
    yield f"As seen at {format_instant(world.now)}, with {world.commit} in force:"
    yield ""
    yield from _table(
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
    yield from _table(header, (_device_row(device, key, digest) for device in devices[:_MOST_ROWS]))
    if len(devices) > _MOST_ROWS:
        yield ""
        yield f"And {len(devices) - _MOST_ROWS} more devices; `reconciler explain` and `reconciler status` have them all."


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
        _code(key if _runs(device, key, digest) else device.image or "unknown"),
        _at("", since),
        device.health_before_update.value if device.health_before_update is not None else "not known",
        device.health.value,
        _at("", device.health_since),
        ", ".join(map(_code, device.checks_worse)),
        f"{attempts}{_at(', the last at ', device.attempt_failed_at)}" if attempts else "",
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _at(before: str, at: datetime | None) -> str:
    return f"{before}{format_instant(at)}" if at is not None else ""


def _plain(text: str) -> str:
    """A stranger's text on one line, cut."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _MOST_TEXT else f"{line[:_MOST_TEXT]}…"


def _code(text: str) -> str:
    """The same as code: a forge looks at nothing in it. What would end the code or the cell is shown otherwise."""
    plain = _plain(text).replace("`", "'").replace("|", "¦").replace("\\", "/")
    return f"`{plain}`" if plain else ""
