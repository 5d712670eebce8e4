"""The words of a proposed revert: which release failed, where, and what was seen. Pure. Called by `execute`."""

from __future__ import annotations

from reconciler.controller.gather import World
from reconciler.model.observed import DeviceObservation, Health
from reconciler.model.plan import Plan
from reconciler.model.scalars import format_instant

_MOST_DEVICES = 20


def evidence_of(key: str, of: str, world: World, plan: Plan) -> tuple[str, str]:
    """Title and body of the commit message that proposes to take back commit `of`, which raised `key`."""
    failures = [verdict for verdict in world.observed.failures if verdict.key == key and not verdict.closed]
    waves = sorted(
        {verdict.wave for verdict in failures} | {fact.wave for fact in plan.facts.failures if fact.key == key}
    )
    where = f" in {', '.join(waves)}" if waves else ""
    title = f"Revert the promotion to {key}: its gate failed{where}"
    lines = [f"{key} was raised by {of}. As seen at {format_instant(world.now)}, with {world.commit} in force:", ""]
    for verdict in failures:
        lines.append(f"- wave {verdict.wave}: the gate failed at {format_instant(verdict.at)}")
    for fact in plan.facts.failures:
        if fact.key == key:
            lines.append(f"- wave {fact.wave}: the gate failed at {format_instant(fact.at)}")
    for status in plan.waves:
        if status.name in waves and status.image == key:
            lines.append(
                f"- wave {status.name}: {status.on_release} of {status.devices} devices on it, "
                f"{status.failed} failed, {status.offline} offline"
            )
    concerned = sorted((d for d in world.everyone() if _concerned(d, key)), key=lambda d: d.name)
    lines += [f"- {_seen(device, key)}" for device in concerned[:_MOST_DEVICES]]
    if len(concerned) > _MOST_DEVICES:
        lines.append(f"- and {len(concerned) - _MOST_DEVICES} more devices")
    lines += [
        "",
        "Merging this lets the devices that run it go back at once, without gates. It was not merged for you.",
    ]
    return title, "\n".join(lines)


def _concerned(device: DeviceObservation, key: str) -> bool:
    runs = device.image == key and device.health is Health.CRITICAL
    return runs or bool(device.failed_attempts.get(key))


def _seen(device: DeviceObservation, key: str) -> str:
    attempts = device.failed_attempts.get(key, 0)
    parts = [f"device {device.name} runs {device.image}", f"health {device.health.value}"]
    if device.health_since is not None:
        parts.append(f"since {format_instant(device.health_since)}")
    if device.checks_worse:
        parts.append(f"worse than before: {', '.join(device.checks_worse)}")
    if attempts:
        parts.append(f"{attempts} failed attempts")
    return ", ".join(parts)
