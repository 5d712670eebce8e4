"""How a tick's decision changes what is recorded of a device: marks, time-outs, rescues, and releases that are closed. Pure.

Two writers meet in a store. A report replaces the observation; a tick only adds its marks. So a tick's
`Decision.observations` are patches: of each, the fields that were set explicitly and are marks (`MARKS`) are written over
the current observation, whatever reports came in between; a mark set to None is cleared; everything else in the patch is
ignored. Attempts merge by the higher count, rescues by key. Called by every store. Source: design §5, §6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from reconciler.model.observed import DeviceObservation
from reconciler.model.plan import DeviceFact, Facts

MARKS = (
    "updating_to",
    "updating_since",
    "rebooting_since",
    "restarting_app",
    "restarting_since",
    "configuring_since",
    "health_before_update",
)
"""Fields that a tick may set on an observation. All others belong to the reports."""

_UPDATE_ENDS: dict[str, Any] = {"updating_to": None, "updating_since": None, "rebooting_since": None}
_RESTART_ENDS: dict[str, Any] = {"restarting_app": None, "restarting_since": None}
_NO_ATTEMPT: Mapping[str, Mapping[str, None]] = {"configure": {"configuring_since": None}, "restart": _RESTART_ENDS}


def patched(current: DeviceObservation, patch: DeviceObservation) -> DeviceObservation:
    """A tick's marks on the row's current observation; see the module."""
    given = patch.model_fields_set
    changes: dict[str, Any] = {name: getattr(patch, name) for name in MARKS if name in given}
    if patch.failed_attempts:
        counts = dict(current.failed_attempts)
        for key, count in patch.failed_attempts.items():
            counts[key] = max(count, counts.get(key, 0))
        changes["failed_attempts"] = counts
    if patch.rescued_from:
        changes["rescued_from"] = {**current.rescued_from, **patch.rescued_from}
    return current.model_copy(update=changes)


def timed_out(current: DeviceObservation, fact: DeviceFact) -> DeviceObservation:
    """Count one attempt and end the update or restart, unless a newer report has ended it already.

    A configuration (`configure`), and a restart of an app that nobody asks for any more (`restart`), end without an attempt.
    """
    if fact.key in _NO_ATTEMPT:
        return current.model_copy(update=_NO_ATTEMPT[fact.key])
    app, at_sign, _ = fact.key.partition("@")
    if at_sign:
        if current.restarting_since is None or current.restarting_app not in (None, app):
            return current
        ends = _RESTART_ENDS
    else:
        if current.updating_to not in (None, fact.key):
            return current
        if current.updating_since is None and current.rebooting_since is None and current.updating_to is None:
            return current
        ends = _UPDATE_ENDS
    count = current.failed_attempts.get(fact.key, 0) + 1
    counted = {"failed_attempts": {**current.failed_attempts, fact.key: count}, "attempt_failed_at": fact.at}
    return current.model_copy(update=ends | counted)


def rescued(current: DeviceObservation, fact: DeviceFact) -> DeviceObservation:
    """Write that the device was rescued from a release. The first instant stays."""
    if fact.key in current.rescued_from:
        return current
    return current.model_copy(update={"rescued_from": {**current.rescued_from, fact.key: fact.at}})


def forgotten(current: DeviceObservation, closed: frozenset[str]) -> DeviceObservation:
    """Drop what a closed release left: its attempts and rescues. The very observation where there is nothing of it.

    What was worse in an attempt goes with the attempts: it is on record only where some are.
    """
    if closed.isdisjoint(current.failed_attempts) and closed.isdisjoint(current.rescued_from):
        return current
    attempt = current.attempt
    return current.model_copy(
        update={
            "attempt": None if attempt is not None and attempt.release in closed else attempt,
            "failed_attempts": {k: v for k, v in current.failed_attempts.items() if k not in closed},
            "rescued_from": {k: v for k, v in current.rescued_from.items() if k not in closed},
        }
    )


Step = tuple[str, Callable[[DeviceObservation], DeviceObservation]]


def amendments(patches: Iterable[DeviceObservation], facts: Facts) -> list[Step]:
    """(device, what to do with its observation), in order: time-outs and rescues first, then marks, since a plan may offer at
    once what it has just judged timed out."""
    steps: list[Step] = []
    for fact in facts.timeouts:
        steps.append((fact.device, lambda current, fact=fact: timed_out(current, fact)))  # type: ignore[misc]
    for fact in facts.rescues:
        steps.append((fact.device, lambda current, fact=fact: rescued(current, fact)))  # type: ignore[misc]
    for patch in patches:
        steps.append((patch.name, lambda current, patch=patch: patched(current, patch)))  # type: ignore[misc]
    return steps
