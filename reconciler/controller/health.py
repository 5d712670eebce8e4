"""Whether a report changed a device's health, for its log. Pure. Called where reports are recorded, in their transaction.

A row is written where the health, the checks that are worse than before the update, or the image differs from the report
before. What a check says may differ every minute: it is kept as it was when the row was written.
"""

from __future__ import annotations

from datetime import datetime

from reconciler.model.events import MOST_SAID, CheckSaid, HealthChange
from reconciler.model.observed import MOST_MESSAGE, DeviceObservation
from reconciler.protocol.report import Report


def changed_health(
    before: DeviceObservation | None, after: DeviceObservation, report: Report, at: datetime
) -> HealthChange | None:
    """The row that a report adds to its device's log, or None. `before` and `after` are the observation around the fold."""
    # A rival's report says nothing of the device that has the name, and during a trial the image on record is another one.
    if after.boot is None or after.boot.id != report.boot_id or after.health_since is None:
        return None
    same = before is not None and before.health_since is not None and before.health is after.health
    if same and before is not None and before.checks_worse == after.checks_worse and before.image == after.image:
        return None
    wrong = [check for check in report.checks if check.status != "ok"]
    return HealthChange(
        device=report.device,
        at=at,
        health=after.health.value,
        release=after.image,
        checks=tuple(CheckSaid(check.name, check.status, check.message[:MOST_MESSAGE]) for check in wrong[:MOST_SAID]),
        worse=after.checks_worse,
    )
