"""The loop's conditions: what an engineer reads first when nothing moves. Pure, apart from the log it is handed.

Each condition is True, False or Unknown, with a reason (one CamelCase word) and a sentence. They are API: `status`,
the metrics and alerts read them. `check_status` holds what must always be true of them; it is called after every test
of the controller, and after every tick where `debug` is set. Source: design §6; style, habits 5 and 6.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from reconciler.model.observed import DeviceObservation
from reconciler.ports import ConditionRow, Intent

_REASON = re.compile(r"^[A-Z][A-Za-z0-9]+$")
MAX_MESSAGE = 1000
AWAITING_SIGNATURE = "AwaitingSignature"
"""The reason of `SigningReady` whose message is a command for a person with the release key."""


class Type(StrEnum):
    """Every condition there is. A status always shows all of them."""

    GIT_READY = "GitReady"
    FLEET_VALID = "FleetValid"
    STORES_READY = "StoresReady"
    SIGNING_READY = "SigningReady"
    FORGE_READY = "ForgeReady"
    NOTIFICATIONS_READY = "NotificationsReady"
    PROGRESSING = "Progressing"
    STALLED = "Stalled"


NOT_YET_KNOWN = "NotYetKnown"
"""The reason of a condition that nobody has looked at since the controller was first started."""
_ASKED_LATER = "looked at once a commit is in force"
_FIRST = {Type.STORES_READY: _ASKED_LATER, Type.SIGNING_READY: _ASKED_LATER}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a step of the loop found out about one condition. `status`: True, False, or None for unknown."""

    type: Type
    status: bool | None
    reason: str
    message: str = ""


class Conditions:
    """All conditions, with the instant at which each last changed its status or its reason."""

    def __init__(self, recorded: Iterable[ConditionRow], at: datetime, log: Callable[..., object]) -> None:
        """Start from what was recorded, so that a restart changes no `since`. `log(event, **fields)` gets changes."""
        self._rows = {
            kind: ConditionRow(kind.value, "Unknown", NOT_YET_KNOWN, _FIRST.get(kind, "the loop has just started"), at)
            for kind in Type
        }
        known = {kind.value for kind in Type}
        self._rows |= {Type(row.type): row for row in recorded if row.type in known}
        self._log = log

    def set(self, finding: Finding, at: datetime) -> None:
        """Take a finding; one line is logged where the status or the reason changes."""
        status = "Unknown" if finding.status is None else str(finding.status)
        before = self._rows[finding.type]
        same = (before.status, before.reason) == (status, finding.reason)
        message = finding.message[:MAX_MESSAGE]
        since = before.since if same else at
        self._rows[finding.type] = ConditionRow(finding.type.value, status, finding.reason, message, since)
        if not same:
            self._log(
                "condition", type=finding.type.value, status=status, reason=finding.reason, before=before.status,
                message=message,
            )  # fmt: skip

    def rows(self) -> tuple[ConditionRow, ...]:
        """All of them, in the order of `Type`."""
        return tuple(self._rows[kind] for kind in Type)

    def is_true(self, kind: Type) -> bool:
        """Whether a condition holds."""
        return self._rows[kind].status == "True"


class StatusFault(AssertionError):
    """The status contradicts itself: a defect of the controller, never of its input."""


def check_status(
    conditions: Sequence[ConditionRow],
    *,
    now: datetime,
    commit: str | None,
    open_intents: Sequence[Intent],
    stalled: Mapping[str, str],
    devices: Iterable[DeviceObservation],
) -> None:
    """Raise StatusFault, with the number of the rule, where the status contradicts itself."""
    rows = {row.type: row for row in conditions}
    faults: list[str] = []
    if sorted(rows) != sorted(kind.value for kind in Type) or len(rows) != len(conditions):
        faults.append("1: every condition is shown exactly once")
    for row in conditions:
        if row.status not in ("True", "False", "Unknown") or not _REASON.match(row.reason):
            faults.append(f"2: {row.type} has a status of three and a reason in one word")
        if row.since > now:
            faults.append(f"3: {row.type} changed in the future")
    good = set(Type) - {Type.PROGRESSING, Type.STALLED}
    for row in conditions:
        if row.status == "False" and row.type in good and not row.message:
            faults.append(f"4: {row.type} is False and says nothing")
    fleet = rows.get(Type.FLEET_VALID)
    if fleet is not None and fleet.status == "True" and commit is None:
        faults.append("5: a valid fleet has a commit in force")
    stall = rows.get(Type.STALLED)
    if stall is not None and (stall.status == "True") != bool(stalled):
        faults.append("6: Stalled is True exactly while an action is stalled")
    keys = [intent.key for intent in open_intents]
    if len(set(keys)) != len(keys):
        faults.append("7: no action is open twice")
    if any(key in stalled for key in keys):
        faults.append("8: a stalled action is not open")
    for device in devices:
        if (device.updating_to is None) != (device.updating_since is None):
            faults.append(f"9: {device.name} is being updated to something, since some instant")
        if (device.restarting_app is None) != (device.restarting_since is None):
            faults.append(f"10: {device.name} restarts some app, since some instant")
    if faults:
        raise StatusFault("; ".join(faults))


def troubled(rows: Sequence[ConditionRow]) -> tuple[ConditionRow, ...]:
    """Those that are not as they should be: True, or False for `Stalled`. Whether anything progresses is no trouble by itself."""
    good = {Type.STALLED.value: "False"}
    return tuple(row for row in rows if row.type != Type.PROGRESSING.value and row.status != good.get(row.type, "True"))
